"""A small model of any family, adapters that do something, and how far two models are apart."""

from typing import Any

import torch
from torch import Tensor

from langwright.model.adapters import AdapterConfig, adapter_parameters
from langwright.model.config import LayerSpec, ModelConfig
from langwright.model.heads import HeadKind
from langwright.model.model import Model, build_model

KINDS: dict[str, dict[str, Any]] = {
    "lora": {},
    "rslora": {"rank_stabilised": True},
    "dora": {"dora": True},
}
"""Fields of an `AdapterConfig`."""
GPT2: dict[str, Any] = {
    "family": "gpt2",
    "d_head": 8,
    "n_kv_heads": 4,
    "d_mlp": 128,
    "positions": "learned",
    "norm": "layernorm",
    "norm_bias": True,
    "activation": "gelu_tanh",
    "gated": False,
    "qkv_bias": True,
    "o_bias": True,
    "mlp_bias": True,
    "layer_specs": {"full": LayerSpec()},
}


def make(head: HeadKind | None = None, seed: int = 0, **changes: Any) -> Model:
    """Two Llama layers of width 32, tied, drawn wide enough that a mistake shows."""
    values = {
        "family": "llama",
        "d_model": 32,
        "n_layers": 2,
        "n_heads": 4,
        "n_kv_heads": 2,
        "d_head": 8,
        "d_mlp": 64,
        "vocab_size": 61,
        "max_positions": 32,
        "init_std": 0.2,
    }
    return build_model(ModelConfig.model_validate(values | changes), head, seed=seed).eval()


def config(**changes: Any) -> AdapterConfig:
    return AdapterConfig(**{"rank": 4, "alpha": 6.0} | changes)


@torch.no_grad()
def shake(model: Model, seed: int = 1) -> Model:
    """Move everything that training moves, as training would."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in adapter_parameters(model).values():
        parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model


def some_ids(model: Model, rows: int = 2, length: int = 9) -> Tensor:
    return torch.randint(1, model.config.vocab_size, (rows, length), generator=torch.Generator().manual_seed(5))


@torch.no_grad()
def gap(one: Model, other: Model) -> float:
    ids = some_ids(one)
    return float((one(ids) - other(ids)).abs().max())
