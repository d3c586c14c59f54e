"""A frozen projection and the low-rank update that is trained beside it."""

import math
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from langwright.model.adapters.config import AdapterConfig
from langwright.model.adapters.quantise import QuantisedLinear

Projection = nn.Linear | QuantisedLinear
"""What may be adapted."""


class LoRALinear(nn.Module):
    """W x + scale B A x, or with DoRA m (W + scale B A) x / |W + scale B A|, row by row; the bias stays outside.

    ``base`` holds W (out, in) and the bias, both frozen; ``lora_a`` is A (r, in), ``lora_b`` is B (out, r), and
    ``magnitude`` (out,) is DoRA's m. Those three are float32 whatever the base is, and are rounded where they are used.
    """

    magnitude: nn.Parameter | None

    def __init__(self, base: Projection, config: AdapterConfig):
        super().__init__()
        device = base.weight.device
        self.base, self.config = base.requires_grad_(False), config
        self.lora_a = nn.Parameter(torch.zeros(config.rank, base.in_features, device=device))
        self.lora_b = nn.Parameter(torch.zeros(base.out_features, config.rank, device=device))
        self.magnitude = nn.Parameter(self.row_norms()) if config.dora else None
        self.active = True
        """If not, it is the base alone."""
        self.train(base.training)

    @classmethod
    def from_base(cls, base: Projection, config: AdapterConfig, generator: torch.Generator) -> Self:
        """An adapter that changes nothing yet: A uniform in +-1/sqrt(in) as PEFT draws it, B zero, m the row norms.

        ``generator`` is one of the CPU, so that a seed means the same on every device.
        """
        adapted = cls(base, config)
        bound = 1 / math.sqrt(base.in_features)  # Kaiming's uniform distribution with a = sqrt(5)
        drawn = torch.empty(config.rank, base.in_features).uniform_(-bound, bound, generator=generator)
        with torch.no_grad():
            adapted.lora_a.copy_(drawn)
        return adapted

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        if not self.active:
            return self.base(x)
        config = self.config
        read = F.dropout(x, config.dropout, self.training)
        low = F.linear(read, self.lora_a.to(x.dtype))  # (..., r)
        if self.magnitude is None:
            return self._add_update(self.base(x), low)
        plain = self._product(x)  # (..., out)
        # As PEFT does it: dropout is on all that the adapter changes, and with DoRA that is a part of W x too.
        dropped = self._product(read) if config.dropout and self.training else plain
        ratio = (self.magnitude.float() / self.row_norms()).to(x.dtype)
        out = ratio * self._add_update(dropped, low)
        if dropped is not plain:
            out = out + plain - dropped
        return out if self.base.bias is None else out + self.base.bias

    def _add_update(self, plain: Tensor, low: Tensor) -> Tensor:
        """plain (..., out) + scale low B^T in one pass."""
        b, rows = self.lora_b.to(low.dtype), low.reshape(-1, low.shape[-1])
        return torch.addmm(plain.reshape(-1, len(b)), rows, b.T, alpha=self.config.scale).view_as(plain)

    def _product(self, x: Tensor) -> Tensor:
        """W x, without the bias."""
        out = self.base(x)
        return out if self.base.bias is None else out - self.base.bias

    def _sum(self) -> Tensor:
        """W + scale B A, (out, in) float32."""
        a, b = self.lora_a.float(), self.lora_b.float()
        return torch.addmm(self.base.weight.float(), b, a, alpha=self.config.scale)

    @torch.no_grad()
    def row_norms(self) -> Tensor:
        """The length of each row of W + scale B A, (out,) float32; for gradients a constant (DoRA, section 4.3)."""
        return self._sum().norm(dim=1).clamp_min(torch.finfo(torch.float32).tiny)

    @torch.no_grad()
    def merged_weight(self) -> Tensor:
        """The one matrix that does what base and adapter do together, (out, in) float32."""
        weight = self._sum()
        if self.magnitude is not None:
            weight *= (self.magnitude.float() / self.row_norms())[:, None]
        return weight
