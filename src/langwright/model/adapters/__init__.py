"""Adapters: a few trained weights beside frozen ones (LoRA, rank-stabilised LoRA, DoRA), merging them, PEFT's files."""

from langwright.model.adapters.attach import (
    adapter_config,
    adapter_parameters,
    add_adapters,
    has_adapters,
    without_adapters,
)
from langwright.model.adapters.config import AdapterConfig
from langwright.model.adapters.lora import LoRALinear
from langwright.model.adapters.merge import fuse, merge_error
from langwright.model.adapters.peft_folder import load_adapter, save_adapter
from langwright.model.adapters.quantise import quantise_base

__all__ = [
    "AdapterConfig",
    "LoRALinear",
    "adapter_config",
    "adapter_parameters",
    "add_adapters",
    "fuse",
    "has_adapters",
    "load_adapter",
    "merge_error",
    "quantise_base",
    "save_adapter",
    "without_adapters",
]
