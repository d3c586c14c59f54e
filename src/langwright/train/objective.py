"""What is minimised.

An objective is two functions: how much a batch weighs, and the *sum* of its losses. The loop divides by the weight of
the whole step, so a step is the same however it is cut into micro-batches; a mean of micro-batches' means is not, when
they hold different numbers of tokens.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from langwright.data.loader import IGNORED, Batch
from langwright.model.model import Model
from langwright.train.linear_nll import head_nll

if TYPE_CHECKING:
    from langwright.train.spread import Spread


class Piece(NamedTuple):
    """Some rows of a `Batch` as tensors on the device, of the same shapes and dtypes."""

    ids: Tensor
    targets: Tensor
    documents: Tensor | None = None
    mask: Tensor | None = None
    reference: Tensor | None = None
    reward: Tensor | None = None
    types: Tensor | None = None


def to_device(batch: Batch, device: torch.device, rows: slice = slice(None)) -> Piece:
    """Some rows of a batch, all by default; through pinned memory where that lets the host go on meanwhile."""

    def move(part: np.ndarray | None) -> Tensor | None:
        if part is None:
            return None
        tensor = torch.tensor(part)
        return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)

    batch = batch.part(rows)
    ids, targets = move(batch.ids), move(batch.targets)
    assert ids is not None
    assert targets is not None
    return Piece(
        ids,
        targets,
        move(batch.documents),
        move(batch.mask),
        move(batch.reference),
        move(batch.reward),
        move(batch.types),
    )


@dataclass(frozen=True)
class Objective:
    """``weight(batch)``: the number of terms in a step. ``loss(model, piece)``: the sum of a piece's, in float32.

    ``prepare(model, batch, spread)`` adds, once a step and before it is cut into pieces, what has to be asked of the
    model about the whole of it; what is random there draws from torch's generator, which is seeded for the step.

    Where a row's loss depends on the other rows, ``join(found, targets)`` is the sum of the whole batch's losses, of
    what ``loss`` then gives of each piece: (rows, ...), in float32 (`langwright.train.joint`).
    """

    weight: Callable[[Batch], int]
    loss: Callable[[Model, Piece], Tensor]
    prepare: "Callable[[Model, Batch, Spread], Batch]" = lambda model, batch, spread: batch
    join: Callable[[Tensor, Tensor], Tensor] | None = None


def count_targets(batch: Batch) -> int:
    """Tokens that are predicted."""
    return int((batch.targets != IGNORED).sum())


def lm_loss(model: Model, piece: Piece) -> Tensor:
    """Sum of -ln p(target | tokens before it), in nats."""
    return head_nll(model.head, model.backbone(piece.ids, documents=piece.documents), piece.targets)


def masked_lm_loss(model: Model, piece: Piece) -> Tensor:
    """The same of a model that sees both sides; only what was hidden goes through the head."""
    hidden, kept = model.backbone(piece.ids, documents=piece.documents), piece.targets != IGNORED
    return head_nll(model.head, hidden[kept], piece.targets[kept])


CAUSAL_LM = Objective(count_targets, lm_loss)
MASKED_LM = Objective(count_targets, masked_lm_loss)


def lm_objective(model: Model) -> Objective:
    """What pretraining minimises for a model with this head."""
    return MASKED_LM if model.head_kind == "masked_lm" else CAUSAL_LM
