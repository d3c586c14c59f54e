"""Heads at work: what they give for a piece of texts, and for all held-out texts."""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from langwright.model.model import Model
from langwright.train.objective import Piece, to_device
from langwright.train.spread import Spread
from langwright.train.tuning.parts import Part
from langwright.train.validate import ValidationStopped


def read(model: Model, piece: Piece) -> Tensor:
    """What the head gives for a piece, in float32; a model without segments does not read their types."""
    types = piece.types if model.config.n_types > 1 else None
    return model(piece.ids, attention_mask=piece.mask, type_ids=types).float()


@torch.no_grad()
def read_all(
    model: Model, part: Part, lengths: Sequence[int], stopping: Callable[[], bool], spread: Spread, size: int = 64
) -> Iterator[tuple[list[int], Piece, Tensor]]:
    """`read` of every entry of ``part`` once, those of like length together, with their numbers.

    Several ranks all read all of them. Raises `ValidationStopped` when ``stopping`` becomes true.
    """
    model.eval()
    order = sorted(range(len(part)), key=lambda number: lengths[number])
    for start in range(0, len(order), size):
        if stopping():
            raise ValidationStopped
        chosen = order[start : start + size]
        piece = to_device(part.batch(chosen), model.device)
        yield chosen, piece, spread.run(model, lambda each, piece=piece: read(each, piece))
