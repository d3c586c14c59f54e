"""What answers are worth to a model: the sum of their tokens' log-likelihoods."""

from dataclasses import replace
from typing import Any, ClassVar, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from langwright.data.loader import IGNORED
from langwright.model.model import Model
from langwright.train.objective import Piece, to_device
from langwright.train.tuning.parts import Part


def log_likelihoods(model: Model, ids: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Of each row of ``ids`` (N, T): the sum of ln p over its ``targets``, in float32, and how many they are; (N,)."""
    hidden, kept = model.backbone(ids), targets != IGNORED  # (N, T, D); padding stands last, where nobody sees it
    logits = model.head(hidden[kept]).float()  # (M, V)
    nll = F.cross_entropy(logits, targets[kept], reduction="none")  # (M,)
    sums = torch.zeros(len(ids), device=ids.device).index_add(0, kept.nonzero()[:, 0], -nll)
    return sums, kept.sum(1)


def pair_likelihoods(model: Model, piece: Piece) -> tuple[Tensor, Tensor]:
    """The same of pairs of answers (P, 2, T): (P, 2) both."""
    sums, counts = log_likelihoods(model, piece.ids.flatten(0, 1), piece.targets.flatten(0, 1))
    return sums.view(-1, 2), counts.view(-1, 2)


class Compared(Part, Protocol):
    """Pairs of answers that are compared with what they were worth to the model that tuning began with."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def reference(self) -> np.ndarray:
        """That, (n, 2) float32."""
        ...


C = TypeVar("C", bound=Compared)


@torch.no_grad()
def with_reference(part: C, model: Model, size: int) -> C:
    """``part`` with what its answers are worth to ``model``, so many pairs at a time."""
    reference = np.empty((len(part), 2), dtype=np.float32)
    for start in range(0, len(part), size):
        numbers = range(start, min(start + size, len(part)))
        sums, _ = pair_likelihoods(model, to_device(part.batch(numbers), model.device))
        reference[numbers.start : numbers.stop] = sums.cpu().numpy()
    return replace(part, reference=reference)
