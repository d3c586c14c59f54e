"""Qwen2 and Qwen2.5 (Yang et al. 2024, arXiv:2407.10671): Llama with biases on query, key and value."""

from typing import Any

from langwright.model.config import ModelConfig
from langwright.model.families.base import ConfigReader, Family, layer_specs, write_activation, write_layer_types
from langwright.model.families.llama import (
    LLAMA_HEADS,
    LLAMA_RULES,
    PRE_NORM_RULES,
    UNUSED,
    llama_architectures,
    only_rope,
    read_sizes,
    write_sizes,
)
from langwright.model.families.rotary import read_rope, write_rope_keys


def read_qwen(reader: ConfigReader) -> dict[str, Any]:
    """What Qwen2 and Qwen3 have in common: Llama's keys, and sliding windows in the upper layers."""
    sizes = read_sizes(reader, 32_768, kv_heads=32)
    reader.fixed("use_mrope", False)
    slides = reader.take("use_sliding_window", False, bool)
    window = reader.nullable("sliding_window", 4096)
    first = reader.take("max_window_layers", 28)
    window = window if slides else None
    upper = sizes["n_layers"] if window is None else first
    types = reader.layer_types(sizes["n_layers"], lambda layer: "sliding" if layer >= upper else "full")
    rope = read_rope(reader, sizes["max_positions"])
    return sizes | {
        "activation": reader.activation("hidden_act", "silu"),
        "tie_embeddings": reader.take("tie_word_embeddings", False, bool),
        "layer_types": types,
        "layer_specs": layer_specs(types, window, rope, rope, reader.source),
    }


def write_qwen(config: ModelConfig) -> dict[str, Any]:
    """The inverse of `read_qwen`."""
    types = config.layer_types
    window = config.layer_specs["sliding"].window if "sliding" in types else None
    return (
        write_sizes(config)
        | write_rope_keys(only_rope(config))
        | {
            "hidden_act": write_activation(config.activation),
            "layer_types": write_layer_types(types),
            "use_sliding_window": window is not None,
            "sliding_window": window,
            "max_window_layers": types.index("sliding") if "sliding" in types else config.n_layers,
        }
    )


def _read(reader: ConfigReader) -> dict[str, Any]:
    return read_qwen(reader) | {"qkv_bias": True}


FAMILY = Family(
    name="qwen2",
    model_types=("qwen2",),
    read=_read,
    write=write_qwen,
    rules=LLAMA_RULES + PRE_NORM_RULES,
    heads=LLAMA_HEADS,
    architectures=llama_architectures("Qwen2"),
    prefix="model.",
    unused=UNUSED,
)
