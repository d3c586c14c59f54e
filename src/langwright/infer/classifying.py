"""What classifiers give: logits of labels for texts, and for words within texts."""

from collections.abc import Sequence

import torch
from torch import Tensor

from langwright.infer.evaluating import evaluating
from langwright.infer.padded import padded
from langwright.model.model import Model


@torch.inference_mode()
def label_logits(
    model: Model,
    sequences: Sequence[Sequence[int]],
    types: Sequence[Sequence[int] | None] | None = None,
    *,
    batch_size: int = 32,
) -> Tensor:
    """What a sequence classifier gives for each of ``sequences``, none of them empty: (n, n_labels) float32, CPU.

    ``types`` are the segment types of pairs; a model without segments does not read them.
    """
    rows: dict[int, Tensor] = {}
    for batch in padded(sequences, batch_size, model.device, types if model.config.n_types > 1 else None):
        with evaluating(model):
            logits = model(batch.ids, attention_mask=batch.mask, type_ids=batch.types).float().cpu()  # (B, n_labels)
        rows |= zip(batch.numbers, logits, strict=True)
    return torch.stack([rows[number] for number in range(len(sequences))])


@torch.inference_mode()
def word_logits(
    model: Model, sequences: Sequence[Sequence[int]], places: Sequence[Sequence[int]], *, batch_size: int = 32
) -> list[Tensor]:
    """What a token classifier gives at some ``places`` of each of ``sequences``: (words, n_labels) float32, CPU."""
    rows: dict[int, Tensor] = {}
    for batch in padded(sequences, batch_size, model.device):
        with evaluating(model):
            logits = model(batch.ids, attention_mask=batch.mask).float().cpu()  # (B, T, n_labels)
        for number, row in zip(batch.numbers, logits, strict=True):
            rows[number] = row[list(places[number])]
    return [rows[number] for number in range(len(sequences))]
