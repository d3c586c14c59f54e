"""Element-wise steps with a backward of their own: fewer passes over memory and fewer tensors kept than autograd's.

For training on a CPU, where such passes take more of a small model's time than they should. Each has its plain twin,
which computes the same and serves everything else: without gradients, and a GPU, where the compiler fuses it.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import Function
from torch.autograd.graph import saved_tensors_hooks


def by_hand(x: Tensor) -> bool:
    """True where the backward of this module is to be used for ``x``."""
    return x.device.type == "cpu" and torch.is_grad_enabled() and not torch.compiler.is_compiling()


LARGE = 1 << 20
"""Numbers in a tensor that is worth making again; smaller ones stay in the processor's caches anyway."""


def made_again(made: Tensor, make: Callable[[], Tensor]) -> AbstractContextManager[object]:
    """Within, autograd keeps nothing of ``made``: the backward calls ``make``, which gives the same numbers once more.

    For what is cheap to make from tensors that are kept anyway. What else is saved within is kept as always.
    """
    place, numbers = made.data_ptr(), made.numel()  # autograd keeps these functions, so they must not hold it

    def pack(kept: Tensor) -> Tensor | torch.Size:
        same = kept.data_ptr() == place and kept.numel() == numbers and kept.is_contiguous()
        return kept.shape if same else kept

    def unpack(kept: Tensor | torch.Size) -> Tensor:
        return kept if isinstance(kept, Tensor) else make().view(kept)

    return saved_tensors_hooks(pack, unpack)


class RMSScale(Function):
    """x / sqrt(mean(x^2) + eps) * weight over the last dimension; ``weight`` is of x's dtype, the mean float32."""

    @staticmethod
    def inverse(x: Tensor, eps: float) -> Tensor:
        """1 over the root of the mean square."""
        return torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        wide, ctx.eps = x.float(), eps
        inverse = RMSScale.inverse(wide, eps)
        ctx.save_for_backward(x, weight, inverse)
        return (wide * inverse).to(x.dtype).mul_(weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, weight, inverse = ctx.saved_tensors
        if torch.is_grad_enabled():  # a second derivative is wanted, and what is kept has no history
            inverse = RMSScale.inverse(x.float(), ctx.eps)
        wide = grad.float()
        unit = x.float() * inverse
        product = wide * unit
        grad_weight = product.reshape(-1, x.shape[-1]).sum(0).to(weight.dtype) if ctx.needs_input_grad[1] else None
        along = (product @ weight.float())[..., None]  # what the length takes back
        grad_x = (wide * weight).addcmul_(unit, along, value=-1 / x.shape[-1]).mul_(inverse)
        return grad_x.to(x.dtype), grad_weight, None


class ReluSquared(Function):
    """max(x, 0)^2; keeps x alone."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.clamp_min(0).square_()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        (x,) = ctx.saved_tensors
        return torch.addcmul(grad.new_zeros(()), grad, x.clamp_min(0), value=2)  # one pass for 2 * grad * positive


class Rotation(Function):
    """Turn all of ``x`` (B, H, T, E) by the tables (B, 1, T, E), pairs (i, i + E/2); keeps the tables alone."""

    @staticmethod
    def turn(x: Tensor, cos: Tensor, sin: Tensor, sign: int) -> Tensor:
        """By the angle, or with ``sign`` -1 back."""
        half = x.shape[-1] // 2
        out = x * cos
        out[..., :half].addcmul_(x[..., half:], sin[..., :half], value=-sign)
        out[..., half:].addcmul_(x[..., :half], sin[..., half:], value=sign)
        return out

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return Rotation.turn(x, cos, sin, 1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        cos, sin = ctx.saved_tensors
        return Rotation.turn(grad, cos, sin, -1), None, None
