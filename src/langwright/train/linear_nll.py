"""The last linear layer and the loss as one operation that never holds all logits.

Logits are by far the largest tensor of a language model (2,048 tokens x 50,304 words in float32 are 412 MB), and the
plain way keeps three such. Here rows go through in chunks; each chunk's gradient is made at once, while its logits are
still there, so they are computed once and only one chunk of them exists (the idea of Liger's and Apple's fused losses:
arXiv:2410.10989, arXiv:2411.09009).
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from langwright.data.loader import IGNORED
from langwright.model.heads import CausalLMHead, MaskedLMHead

CHUNK = 1 << 20
"""Logits at a time: about 4 MB, what fits in a cache."""
FEWEST_ROWS = 512
"""But never fewer rows, or the matrix products would wait for the weights to come from memory."""


Rule = Callable[[Tensor, slice, bool], tuple[Tensor, Tensor | None]]
"""Of the logits (n, V) float32 of some rows, which it may overwrite: the sum of their losses and, where that is asked
for, its gradient (n, V)."""


def head_nll(head: nn.Module, hidden: Tensor, targets: Tensor) -> Tensor:
    """Sum of -ln p(target) in nats, float32, of a language-model ``head`` over ``hidden`` (..., D), ``targets`` (...).

    `IGNORED` targets count nothing. Raises ValueError for heads without token logits.
    """
    return head_loss(head, hidden, nll_rule(targets.flatten()))


def head_loss(head: nn.Module, hidden: Tensor, rule: Rule) -> Tensor:
    """The sum, float32, of what ``rule`` says of the logits of ``head`` over ``hidden`` (..., D), in chunks.

    Raises ValueError for heads without token logits.
    """
    if isinstance(head, MaskedLMHead):
        hidden = head.transform(hidden)
    elif not isinstance(head, CausalLMHead):
        raise ValueError(f"{type(head).__name__} gives no token logits")
    cap = head.cap if isinstance(head, CausalLMHead) else None
    return _apply(hidden, head.proj.weight, head.proj.bias, cap, rule)


def linear_nll(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, cap: float | None = None
) -> Tensor:
    """Sum of -log_softmax(cap tanh((hidden weight^T + bias) / cap))[target]; no cap when None.

    ``hidden`` (..., D), ``weight`` (V, D), ``bias`` (V,), ``targets`` (...). Softmax and sums are in float32, and so
    are the sums of the chunks' gradients of weight and bias.
    """
    return _apply(hidden, weight, bias, cap, nll_rule(targets.flatten()))


def linear_nll_naive(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, cap: float | None = None
) -> Tensor:
    """The plain twin of `linear_nll`."""
    logits = F.linear(hidden, weight, bias)
    if cap is not None:
        logits = cap * torch.tanh(logits / cap)
    return F.cross_entropy(logits.flatten(0, -2).float(), targets.flatten(), reduction="sum", ignore_index=IGNORED)


def nll_rule(targets: Tensor) -> Rule:
    """-ln p(target), for ``targets`` (N,) of which `IGNORED` ones count nothing."""

    def rule(logits: Tensor, rows: slice, learnt: bool) -> tuple[Tensor, Tensor | None]:
        norm = logits.logsumexp(-1, keepdim=True)  # (n, 1)
        index, real = targets[rows].clamp(min=0)[:, None], (targets[rows] != IGNORED)[:, None]
        total = (norm - logits.gather(-1, index)).masked_fill_(~real, 0.0).sum()
        if not learnt:
            return total, None
        grad = logits.sub_(norm).exp_()  # softmax
        return total, grad.scatter_add_(-1, index, torch.full_like(norm, -1.0)).mul_(real)

    return rule


def _apply(hidden: Tensor, weight: Tensor, bias: Tensor | None, cap: float | None, rule: Rule) -> Tensor:
    return _InChunks.apply(hidden.flatten(0, -2), weight, bias, cap, rule)  # pyright: ignore[reportReturnType]


class _InChunks(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, cap: float | None, rule: Rule) -> Tensor:
        needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        learnt = any(ctx.needs_input_grad[:3])
        size = max(FEWEST_ROWS, CHUNK // len(weight))
        wide = {"dtype": torch.float32, "device": hidden.device}
        d_hidden = torch.empty_like(hidden) if needs_hidden else None
        d_weight = torch.zeros(weight.shape, **wide) if needs_weight else None
        d_bias = torch.zeros(len(weight), **wide) if needs_bias else None
        total = torch.zeros((), **wide)
        for start in range(0, len(hidden), size):
            rows = slice(start, start + size)
            part = hidden[rows]
            logits = F.linear(part, weight, bias).float()  # (n, V)
            if cap is not None:
                logits = logits.div_(cap).tanh_().mul_(cap)
            slope = 1 - (logits / cap).square_() if cap is not None and learnt else None  # of the cap
            loss, grad = rule(logits, rows, learnt)
            total += loss
            if grad is None:
                continue
            if slope is not None:
                grad.mul_(slope)
            if d_bias is not None:
                d_bias += grad.sum(0)
            grad = grad.to(part.dtype)
            if d_hidden is not None:
                torch.mm(grad, weight, out=d_hidden[rows])
            if d_weight is not None:
                if part.dtype == torch.float32:
                    d_weight.addmm_(grad.t(), part)
                else:
                    d_weight += grad.t() @ part
        ctx.save_for_backward(d_hidden, d_weight, d_bias)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None, None]:
        scale = grads[0]
        d_hidden, d_weight, d_bias = (None if kept is None else kept * scale for kept in ctx.saved_tensors)
        return d_hidden, d_weight, d_bias, None, None
