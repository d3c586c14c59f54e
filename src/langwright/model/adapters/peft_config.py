"""``adapter_config.json`` of the PEFT library: written so that PEFT reads it, read strictly.

Whatever the file says that is not honoured here must be switched off: a feature that were ignored would change what the
model computes. Keys that PEFT adds later are refused in the same way, unless they are null, false or empty.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from langwright.core.errors import FormatError, UserError
from langwright.core.json_text import read_json_object, write_json
from langwright.model.adapters.config import AdapterConfig
from langwright.model.families.base import ConfigReader
from langwright.model.heads import HeadKind

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
TASKS: dict[HeadKind, str] = {
    "causal_lm": "CAUSAL_LM",
    "sequence_classifier": "SEQ_CLS",
    "token_classifier": "TOKEN_CLS",
    "embedding": "FEATURE_EXTRACTION",
}
"""PEFT's name for the task of a head; a masked language model has none."""

# What says nothing about the arithmetic, or only about how adapters begin or are served.
_HARMLESS = (
    "auto_mapping",
    "eva_config",
    "inference_mode",
    "layers_pattern",
    "loftq_config",
    "megatron_core",
    "peft_version",
    "qalora_group_size",
    "runtime_config",
)
# Other ways to begin change the base model as well, and would have to be repeated on loading.
_BEGINNINGS = (None, True, False, "gaussian", "eva", "orthogonal")


@dataclass(frozen=True)
class PeftConfig:
    """What an ``adapter_config.json`` says."""

    adapter: AdapterConfig
    """Without targets, which are in `target_modules`."""
    task: str | None
    base: str | None
    """Folder, name or hub id of the model that the adapter is for, and there which revision."""
    revision: str | None
    target_modules: tuple[str, ...] | None
    """Names or ends of names; None where the file gives a pattern instead."""
    modules_to_save: tuple[str, ...]


def read_peft_config(folder: Path) -> PeftConfig:
    """Raises `UserError` or `FormatError` naming the key that is wrong, missing or not supported."""
    source = folder / CONFIG
    reader = ConfigReader(read_json_object(source), str(source))
    kind = reader.take("peft_type", kind=str)
    if kind != "LORA":
        raise UserError(f"{source}: peft_type = {kind!r:.60} is not supported (only 'LORA', with or without DoRA)")
    reader.fixed("bias", "none")
    reader.fixed("fan_in_fan_out", False)
    beginning = reader.values.pop("init_lora_weights", None)
    if beginning not in _BEGINNINGS:
        raise UserError(
            f"{source}: init_lora_weights = {beginning!r:.60} changes the base model, which is not supported; merge "
            "the adapter with peft (merge_and_unload) and load the merged folder"
        )
    adapter = {
        "rank": reader.size("r"),
        "alpha": reader.take("lora_alpha", kind=float),
        "dropout": reader.take("lora_dropout", 0.0, float),
        "rank_stabilised": reader.take("use_rslora", False, bool),
        "dora": reader.take("use_dora", False, bool),
    }
    targets = reader.take("target_modules", kind=(list, str))
    found = PeftConfig(
        adapter=AdapterConfig.parse(adapter, str(source)),
        task=reader.take("task_type", None, str),
        base=reader.take("base_model_name_or_path", None, str),
        revision=reader.take("revision", None, str),
        # A pattern is not run: it is somebody else's regular expression, and the tensors tell what it meant.
        target_modules=_names(targets, "target_modules", source) if isinstance(targets, list) else None,
        modules_to_save=_names(reader.take("modules_to_save", [], list), "modules_to_save", source),
    )
    reader.ignore(*_HARMLESS)
    for key, value in sorted(reader.values.items()):
        if value not in (None, False, "", [], {}):
            raise UserError(
                f"{source}: {key} = {value!r:.60} is a feature of PEFT that is not supported here; merge the adapter "
                "with peft (merge_and_unload) and load the merged folder"
            )
    return found


def write_peft_config(
    config: AdapterConfig, head: HeadKind, base: str, target_modules: list[str], modules_to_save: list[str]
) -> str:
    """The text of the file; keys that are left out have PEFT's defaults, which are off."""
    values: dict[str, Any] = {
        "peft_type": "LORA",
        "task_type": TASKS.get(head),
        "base_model_name_or_path": base,
        "revision": None,
        "inference_mode": True,
        "r": config.rank,
        "lora_alpha": int(config.alpha) if config.alpha.is_integer() else config.alpha,
        "lora_dropout": config.dropout,
        "use_rslora": config.rank_stabilised,
        "use_dora": config.dora,
        "target_modules": target_modules,
        "modules_to_save": modules_to_save or None,
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "layers_to_transform": None,
        "layers_pattern": None,
        "rank_pattern": {},
        "alpha_pattern": {},
    }
    return write_json(values)


def _names(values: list[Any], key: str, source: Path) -> tuple[str, ...]:
    if wrong := [value for value in values if not isinstance(value, str) or not value]:
        raise FormatError(f"{source}: {key!r} should be a list of names, holds {wrong[0]!r:.60}")
    return tuple(values)
