"""Probabilities of labels."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from langwright.infer.evaluating import evaluating
from langwright.model.model import Model


@torch.inference_mode()
def label_logits(model: Model, sequences: Sequence[Sequence[int]], *, batch_size: int = 32) -> Tensor:
    """What a sequence classifier gives for each of ``sequences``, none of them empty: (n, n_labels) float32, CPU."""
    rows: list[Tensor | None] = [None] * len(sequences)
    order = sorted(range(len(sequences)), key=lambda number: len(sequences[number]))
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        texts = [torch.tensor(sequences[number]) for number in chosen]
        ids = pad_sequence(texts, batch_first=True).to(model.device)  # (B, T)
        lengths = torch.tensor([len(text) for text in texts], device=model.device)
        real = torch.arange(ids.shape[1], device=model.device) < lengths[:, None]  # (B, T)
        with evaluating(model):
            logits = model(ids, attention_mask=None if bool(real.all()) else real).float().cpu()  # (B, n_labels)
        for number, row in zip(chosen, logits, strict=True):
            rows[number] = row
    return torch.stack([row for row in rows if row is not None])
