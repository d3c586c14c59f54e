"""The position-wise network: plain, or gated (Shazeer 2020, arXiv:2002.05202)."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from langwright.model.config import Activation, ModelConfig
from langwright.model.kernels import LARGE, ReluSquared, by_hand, made_again

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
        self.lean = config.activation != "relu"
        """Whether training makes again what lies between the matrices; relu's own backward keeps its result anyway."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        before = self.gate_proj(x) if self.gated else self.up_proj(x)  # (B, T, F)
        up = self.up_proj(x) if self.gated else None
        dropout = self.dropout if self.training else 0.0
        if not (self.lean and before.numel() >= LARGE and by_hand(before)) or dropout:
            return self.down_proj(F.dropout(self._between(before, up), dropout, self.training))
        activated = self.act(before)
        with made_again(activated, lambda: self.act(before)):
            hidden = activated if up is None else activated * up
        with made_again(hidden, lambda: self._between(before, up)):
            return self.down_proj(hidden)

    def _between(self, before: Tensor, up: Tensor | None) -> Tensor:
        """(B, T, F), what the last matrix reads."""
        return self.act(before) if up is None else self.act(before) * up
