"""Normalisation. Statistics are taken in float32 whatever the compute dtype."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from langwright.model.config import ModelConfig
from langwright.model.kernels import RMSScale, by_hand


class LayerNorm(nn.Module):
    """(x - mean) / sqrt(var + eps) * weight + bias (Ba et al. 2016, arXiv:1607.06450); bias optional."""

    def __init__(self, size: int, eps: float, bias: bool):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(size))
        self.bias = nn.Parameter(torch.zeros(size)) if bias else None

    def reset(self) -> None:
        """The identity on normalised features."""
        nn.init.ones_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight (Zhang & Sennrich 2019, arXiv:1910.07467).

    With ``plus_one`` the scale is 1 + weight and multiplies before the cast back, as Gemma does.
    """

    def __init__(self, size: int, eps: float, plus_one: bool = False):
        super().__init__()
        self.eps, self.plus_one = eps, plus_one
        self.weight = nn.Parameter(torch.zeros(size) if plus_one else torch.ones(size))

    def reset(self) -> None:
        """The identity on normalised features."""
        nn.init.constant_(self.weight, 0.0 if self.plus_one else 1.0)

    def forward(self, x: Tensor) -> Tensor:
        if by_hand(x):
            weight = 1.0 + self.weight.float() if self.plus_one else self.weight
            if weight.dtype == x.dtype:
                return RMSScale.apply(x, weight, self.eps)
        wide = x.float()
        wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        if self.plus_one:
            return (wide * (1.0 + self.weight.float())).to(x.dtype)
        return wide.to(x.dtype) * self.weight


def build_norm(config: ModelConfig, size: int | None = None) -> nn.Module:
    """The model's kind of norm over ``size`` features (default d_model)."""
    size = size or config.d_model
    if config.norm == "layernorm":
        return LayerNorm(size, config.norm_eps, config.norm_bias)
    return RMSNorm(size, config.norm_eps, plus_one=config.norm == "gemma_rmsnorm")
