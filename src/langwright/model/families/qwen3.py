"""Qwen3, dense (Yang et al. 2025, arXiv:2505.09388): Qwen2 with normed queries and keys instead of biases."""

from typing import Any

from langwright.model.config import ModelConfig
from langwright.model.families.base import ConfigReader, Family
from langwright.model.families.llama import LLAMA_HEADS, LLAMA_RULES, PRE_NORM_RULES, UNUSED, llama_architectures
from langwright.model.families.qwen2 import read_qwen, write_qwen


def _read(reader: ConfigReader) -> dict[str, Any]:
    reader.values.setdefault("head_dim", 128)  # Qwen3 does not derive it from the width
    bias = reader.take("attention_bias", False, bool)
    return read_qwen(reader) | {"qk_norm": True, "qkv_bias": bias, "o_bias": bias}


def _write(config: ModelConfig) -> dict[str, Any]:
    return write_qwen(config) | {"attention_bias": config.qkv_bias}


FAMILY = Family(
    name="qwen3",
    model_types=("qwen3",),
    read=_read,
    write=_write,
    rules=LLAMA_RULES + PRE_NORM_RULES,
    heads=LLAMA_HEADS,
    architectures=llama_architectures("Qwen3"),
    prefix="model.",
    unused=UNUSED,
)
