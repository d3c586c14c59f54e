"""What is minimised.

An objective is two functions: how much a batch weighs, and the *sum* of its losses. The loop divides by the weight of
the whole step, so a step is the same however it is cut into micro-batches; a mean of micro-batches' means is not, when
they hold different numbers of tokens.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from langwright.data.loader import Batch
from langwright.model.model import Model
from langwright.train.linear_nll import IGNORED, head_nll


class Piece(NamedTuple):
    """Some rows of a `Batch` as tensors on the device, (B, T) int64 both."""

    ids: Tensor
    targets: Tensor


@dataclass(frozen=True)
class Objective:
    """``weight(batch)``: the number of terms in a step. ``loss(model, piece)``: the sum of a piece's, in float32."""

    weight: Callable[[Batch], int]
    loss: Callable[[Model, Piece], Tensor]


def count_targets(batch: Batch) -> int:
    """Tokens that are predicted."""
    return int((batch.targets != IGNORED).sum())


def causal_lm_loss(model: Model, piece: Piece) -> Tensor:
    """Sum of -ln p(target | tokens before it), in nats."""
    return head_nll(model.head, model.backbone(piece.ids), piece.targets)


CAUSAL_LM = Objective(count_targets, causal_lm_loss)
