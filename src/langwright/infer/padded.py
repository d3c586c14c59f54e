"""Sequences as padded batches, those of like length together."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence


class Padded(NamedTuple):
    """Some sequences, by their ``numbers``: ``ids`` (B, T), which of them are ``real`` (B, T), segment ``types``."""

    numbers: list[int]
    ids: Tensor
    real: Tensor
    types: Tensor | None

    @property
    def mask(self) -> Tensor | None:
        """``real``, where anything is not."""
        return None if bool(self.real.all()) else self.real


def padded(
    sequences: Sequence[Sequence[int]],
    batch_size: int,
    device: torch.device,
    types: Sequence[Sequence[int] | None] | None = None,
) -> Iterator[Padded]:
    """All ``sequences``, none of them empty, once, the shortest first; ``types`` go with them, or None for all 0."""
    order = sorted(range(len(sequences)), key=lambda number: len(sequences[number]))
    for start in range(0, len(order), batch_size):
        numbers = order[start : start + batch_size]
        rows = [torch.tensor(sequences[number]) for number in numbers]
        ids = pad_sequence(rows, batch_first=True).to(device)  # (B, T)
        lengths = torch.tensor([len(row) for row in rows], device=device)
        real = torch.arange(ids.shape[1], device=device) < lengths[:, None]
        kinds = None
        if types is not None:
            given = [types[number] or [0] * len(sequences[number]) for number in numbers]
            kinds = pad_sequence([torch.tensor(each) for each in given], batch_first=True).to(device)
        yield Padded(numbers, ids, real, kinds)
