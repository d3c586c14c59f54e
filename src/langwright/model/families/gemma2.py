"""Gemma 2 (Gemma Team 2024, arXiv:2408.00118): norms on both sides of each block, soft-caps, alternating windows."""

import math
from typing import Any

from langwright.model.config import ModelConfig
from langwright.model.families.base import ConfigReader, Family, layer_specs, write_activation, write_layer_types
from langwright.model.families.llama import (
    LLAMA_HEADS,
    LLAMA_RULES,
    UNUSED,
    check_width,
    llama_architectures,
    only_rope,
    read_sizes,
    write_sizes,
)
from langwright.model.families.rotary import read_rope, write_rope_keys
from langwright.model.rename import rule

# "post_attention_layernorm" stands behind attention here, and before the MLP in Llama.
SANDWICH_RULES = tuple(
    rule(f"model.layers.{{i}}.{theirs}.weight", f"backbone.layers.{{i}}.{ours}.weight")
    for theirs, ours in (
        ("input_layernorm", "attn_in"),
        ("post_attention_layernorm", "attn_out"),
        ("pre_feedforward_layernorm", "mlp_in"),
        ("post_feedforward_layernorm", "mlp_out"),
    )
)


def read_gemma(reader: ConfigReader, max_positions: int) -> dict[str, Any]:
    """What Gemma 2 and 3 have in common, all but layers and soft-caps."""
    reader.values.setdefault("head_dim", 256)
    sizes = read_sizes(reader, max_positions, kv_heads=4)
    reader.fixed("use_bidirectional_attention", False)
    reader.ignore("hidden_act")  # a leftover of Gemma 1; hidden_activation decides
    bias = reader.take("attention_bias", False, bool)
    scalar = reader.size("query_pre_attn_scalar", 256)
    return sizes | {
        "norm": "gemma_rmsnorm",
        "norm_slots": ("attn_in", "attn_out", "mlp_in", "mlp_out"),
        "embed_scale": math.sqrt(sizes["d_model"]),
        "activation": reader.activation("hidden_activation", "gelu_pytorch_tanh"),
        "qkv_bias": bias,
        "o_bias": bias,
        "attn_scale": None if scalar == sizes["d_head"] else scalar**-0.5,
        "logit_softcap": reader.nullable("final_logit_softcapping", None, float),
        "tie_embeddings": reader.take("tie_word_embeddings", True, bool),
    }


def write_gemma(config: ModelConfig) -> dict[str, Any]:
    """The inverse of `read_gemma`."""
    check_width(config)
    scalar = config.d_head if config.attn_scale is None else round(config.attn_scale**-2)
    return write_sizes(config) | {
        "hidden_activation": write_activation(config.activation),
        "attention_bias": config.qkv_bias,
        "query_pre_attn_scalar": scalar,
        "final_logit_softcapping": config.logit_softcap,
        "attn_logit_softcapping": config.attn_softcap,
        "layer_types": write_layer_types(config.layer_types),
        "sliding_window": config.layer_specs["sliding"].window if "sliding" in config.layer_specs else None,
    }


def _read(reader: ConfigReader) -> dict[str, Any]:
    reader.values.setdefault("final_logit_softcapping", 30.0)
    fields = read_gemma(reader, 8192)
    types = reader.layer_types(fields["n_layers"], lambda layer: "full" if layer % 2 else "sliding")
    rope = read_rope(reader, fields["max_positions"])
    return fields | {
        "attn_softcap": reader.nullable("attn_logit_softcapping", 50.0, float),
        "layer_types": types,
        "layer_specs": layer_specs(types, reader.nullable("sliding_window", 4096), rope, rope, reader.source),
    }


def _write(config: ModelConfig) -> dict[str, Any]:
    return write_gemma(config) | write_rope_keys(only_rope(config))


FAMILY = Family(
    name="gemma2",
    model_types=("gemma2",),
    read=_read,
    write=_write,
    rules=LLAMA_RULES + SANDWICH_RULES,
    heads=LLAMA_HEADS,
    architectures=llama_architectures("Gemma2"),
    prefix="model.",
    unused=UNUSED,
)
