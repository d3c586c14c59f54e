"""Frozen projections in 8 or 4 bits (as QLoRA keeps them; Dettmers et al. 2023, arXiv:2305.14314).

A group of weights is its lowest value and a step, and a code a weight: w = floor + code * step. ``int8`` has a group
for every row, ``int4`` one for every 32 columns of a row. Floor and step are bfloat16, and are rounded before the codes
are found: so a model keeps all three when it is cast to bfloat16, and back.
"""

from typing import Any, Literal, Self

import torch
from torch import Tensor, nn
from torch.autograd.function import Function
from torch.nn import functional as F

from langwright.core.errors import UserError
from langwright.model.adapters.config import PROJECTIONS
from langwright.model.model import Model

Kind = Literal["int8", "int4"]
LEVELS: dict[Kind, int] = {"int8": 255, "int4": 15}
GROUP = 32
"""Columns that share floor and step in 4 bits."""


class QuantisedLinear(nn.Module):
    """A linear layer whose weight cannot be trained; gradients pass through it to what it reads."""

    codes: Tensor
    step: Tensor
    floor: Tensor

    def __init__(self, kind: Kind, codes: Tensor, step: Tensor, floor: Tensor, bias: Tensor | None):
        """``codes`` (out, in) uint8, in 4 bits (out, in / 2), two to a byte; ``step`` and ``floor`` (out, groups)."""
        super().__init__()
        self.kind: Kind = kind
        self.out_features, self.in_features = len(codes), codes.shape[1] * (2 if kind == "int4" else 1)
        self.register_buffer("codes", codes)
        self.register_buffer("step", step)
        self.register_buffer("floor", floor)
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)

    @classmethod
    @torch.no_grad()
    def from_linear(cls, linear: nn.Linear, kind: Kind) -> Self:
        """The nearest codes: no weight is off by more than half a step.

        Raises ValueError for a width that ``int4`` cannot divide into groups.
        """
        width = linear.in_features
        if kind == "int4" and width % GROUP:
            raise ValueError(f"int4 works on groups of {GROUP} columns, and {width} is not a multiple of that")
        weight = linear.weight.detach().float().unflatten(1, (-1, GROUP if kind == "int4" else width))  # (out, G, n)
        low, high = weight.amin(-1), weight.amax(-1)
        # A little further out than needed, so that rounding to bfloat16 (by 2^-8 at most) leaves no weight outside.
        floor = (low - low.abs() * 2**-7).bfloat16()
        step = ((high - floor.float()) / LEVELS[kind] * (1 + 2**-7)).clamp_min(1e-30).bfloat16()
        codes = ((weight - floor.float()[..., None]) / step.float()[..., None]).round().clamp(0, LEVELS[kind])
        codes = codes.to(torch.uint8).flatten(1)  # (out, in)
        if kind == "int4":
            codes = codes[:, 0::2] | codes[:, 1::2] << 4
        return cls(kind, codes, step, floor, linear.bias).train(linear.training)

    @property
    def weight(self) -> Tensor:
        """The weight (out, in) that the codes stand for, float32."""
        return self.dequantise(torch.float32)

    def dequantise(self, dtype: torch.dtype) -> Tensor:
        """The weight (out, in), made anew each time."""
        codes = self.codes
        if self.kind == "int4":
            codes = torch.stack((codes & 15, codes >> 4), dim=-1).flatten(1)
        codes = codes.to(dtype).unflatten(1, (self.step.shape[1], -1))  # (out, G, n)
        floor, step = self.floor.to(dtype), self.step.to(dtype)
        return torch.addcmul(floor[..., None], codes, step[..., None]).flatten(1)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        return FrozenProduct.apply(x, self)


class FrozenProduct(Function):
    """x W^T + bias with a weight that is made twice, for forward and for backward, and kept in between by nobody."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: QuantisedLinear) -> Tensor:
        ctx.layer = layer
        return F.linear(x, layer.dequantise(x.dtype), layer.bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return grad @ ctx.layer.dequantise(grad.dtype), None


def quantise_base(model: Model, kind: Kind) -> Model:
    """Replace, in place, every projection of the layers by its `QuantisedLinear`; embeddings, norms and head stay.

    Goes before `add_adapters` (ValueError after it: the adapters would begin on weights that are no longer there).
    Raises `UserError` naming the projection whose width ``int4`` cannot divide.
    """
    found = [
        (name, module)
        for name, module in model.backbone.layers.named_modules()
        if name.rpartition(".")[2] in PROJECTIONS
    ]
    for name, module in found:
        if not isinstance(module, nn.Linear):
            raise ValueError(f"{name} is a {type(module).__name__}; quantise a plain model, before adapters are added")
        if kind == "int4" and module.in_features % GROUP:
            raise UserError(
                f"{name} reads {module.in_features} features, which int4 cannot divide into groups of {GROUP}; use int8"
            )
    for name, module in found:
        assert isinstance(module, nn.Linear)
        model.backbone.layers.set_submodule(name, QuantisedLinear.from_linear(module, kind))
    return model
