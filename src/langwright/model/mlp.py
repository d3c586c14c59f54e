"""The position-wise network: plain, or gated (Shazeer 2020, arXiv:2002.05202)."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from langwright.model.config import Activation, ModelConfig
from langwright.model.kernels import ReluSquared, by_hand

ACTIVATIONS: dict[Activation, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "silu": F.silu,
    "relu": F.relu,
    "relu2": lambda x: ReluSquared.apply(x) if by_hand(x) else F.relu(x).square(),
}


class MLP(nn.Module):
    """down(act(up(x))), or down(act(gate(x)) * up(x)) when gated: SwiGLU with silu, GeGLU with gelu."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        if config.gated:
            self.gate_proj = nn.Linear(config.d_model, config.d_mlp, bias=config.mlp_bias)
        self.up_proj = nn.Linear(config.d_model, config.d_mlp, bias=config.mlp_bias)
        self.down_proj = nn.Linear(config.d_mlp, config.d_model, bias=config.mlp_bias)
        self.act = ACTIVATIONS[config.activation]
        self.gated, self.dropout = config.gated, config.mlp_dropout

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        hidden = self.act(self.gate_proj(x)) * self.up_proj(x) if self.gated else self.act(self.up_proj(x))  # (B, T, F)
        return self.down_proj(F.dropout(hidden, self.dropout, self.training))
