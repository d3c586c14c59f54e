"""What is minimised.

An objective is two functions: how much a batch weighs, and the *sum* of its losses. The loop divides by the weight of
the whole step, so a step is the same however it is cut into micro-batches; a mean of micro-batches' means is not, when
they hold different numbers of tokens.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from langwright.data.loader import Batch
from langwright.model.model import Model

IGNORED = -100
"""A target that no loss is taken of."""
CHUNK = 1 << 20
"""Logits in float32 at a time; what fits in a cache."""


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
    return summed_nll(model(piece.ids), piece.targets)


CAUSAL_LM = Objective(count_targets, causal_lm_loss)


def summed_nll(logits: Tensor, targets: Tensor) -> Tensor:
    """Sum of -log_softmax(logits)[target] over ``logits`` (..., V) and ``targets`` (...), computed in float32.

    `IGNORED` targets count nothing. Only the logits and one number a row are kept for the backward, and float32 copies
    exist for a chunk of rows at a time.
    """
    return _SummedNLL.apply(logits.flatten(0, -2), targets.flatten())  # pyright: ignore[reportReturnType]


def summed_nll_naive(logits: Tensor, targets: Tensor) -> Tensor:
    """The plain twin of `summed_nll`."""
    return F.cross_entropy(logits.flatten(0, -2).float(), targets.flatten(), reduction="sum", ignore_index=IGNORED)


class _SummedNLL(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor) -> Tensor:
        rows = max(1, CHUNK // logits.shape[-1])
        norms, sums = [], []
        for chunk, wanted in zip(logits.split(rows), targets.split(rows), strict=True):
            wide = chunk.float()
            norm = wide.logsumexp(-1)  # (rows,)
            picked = wide.gather(-1, wanted.clamp(min=0)[:, None])[:, 0]
            sums.append((norm - picked).masked_fill(wanted == IGNORED, 0.0).sum())
            norms.append(norm)
        ctx.save_for_backward(logits, targets, torch.cat(norms))
        return torch.stack(sums).sum()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        logits, targets, norms = ctx.saved_tensors
        rows = max(1, CHUNK // logits.shape[-1])
        out = torch.empty_like(logits)
        parts = zip(logits.split(rows), targets.split(rows), norms.split(rows), out.split(rows), strict=True)
        for chunk, wanted, norm, slot in parts:
            probabilities = (chunk.float() - norm[:, None]).exp_()  # softmax, (rows, V)
            ones = torch.ones_like(norm)[:, None]
            probabilities.scatter_add_(-1, wanted.clamp(min=0)[:, None], -ones)
            scale = grads[0].float() * (wanted != IGNORED)
            slot.copy_(probabilities.mul_(scale[:, None]))
        return out, None
