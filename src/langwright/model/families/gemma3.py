"""Gemma 3, text (Gemma Team 2025, arXiv:2503.19786): normed queries and keys, five local layers to a global one."""

from typing import Any

from langwright.core.errors import UserError
from langwright.model.config import ModelConfig, Rope
from langwright.model.families.base import ConfigReader, Family, layer_specs
from langwright.model.families.gemma2 import SANDWICH_RULES, read_gemma, write_gemma
from langwright.model.families.llama import LLAMA_HEADS, LLAMA_RULES, UNUSED
from langwright.model.families.rotary import rope_from, write_rope
from langwright.model.heads import HeadKind


def _read(reader: ConfigReader) -> dict[str, Any]:
    if reader.values.get("model_type") == "gemma3":
        raise UserError(
            f"{reader.source}: this Gemma 3 reads images too (model_type 'gemma3'), which is not supported; "
            "take a text-only one (model_type 'gemma3_text', such as gemma-3-1b-it)"
        )
    fields = read_gemma(reader, 131_072)
    reader.fixed("attn_logit_softcapping", None)
    period = reader.size("sliding_window_pattern", reader.size("_sliding_window_pattern", 6))
    types = reader.layer_types(fields["n_layers"], lambda layer: "sliding" if (layer + 1) % period else "full")
    full, sliding = _read_ropes(reader, fields["max_positions"])
    return fields | {
        "qk_norm": True,
        "layer_types": types,
        "layer_specs": layer_specs(types, reader.nullable("sliding_window", 4096), full, sliding, reader.source),
    }


def _read_ropes(reader: ConfigReader, max_positions: int) -> tuple[Rope, Rope]:
    """Global and local rotary settings, nested or flat; a flat scaling is that of the global layers."""
    theta = reader.take("rope_theta", 1_000_000.0, float)
    local = reader.take("rope_local_base_freq", 10_000.0, float)
    scaling = reader.take("rope_scaling", {}, dict)
    nested = ConfigReader(reader.take("rope_parameters", {}, dict), f"{reader.source}: rope_parameters")
    full, sliding = nested.take("full_attention", {}, dict), nested.take("sliding_attention", {}, dict)
    nested.finish()
    return (
        rope_from(full | scaling, reader.source, max_positions, theta),
        rope_from(sliding, reader.source, max_positions, local),
    )


def _write(config: ModelConfig) -> dict[str, Any]:
    full, sliding = (
        config.layer_specs[name].rope if name in config.layer_specs else None for name in ("full", "sliding")
    )
    full, sliding = full or Rope(theta=1_000_000.0), sliding or Rope()
    scaling = {name: value for name, value in write_rope(full).items() if name != "rope_theta"}
    return write_gemma(config) | {
        "rope_parameters": {"full_attention": write_rope(full), "sliding_attention": write_rope(sliding)},
        "rope_theta": full.theta,
        "rope_local_base_freq": sliding.theta,
        "rope_scaling": scaling if full.scaling else None,
    }


_ARCHITECTURES: dict[HeadKind, str] = {
    "causal_lm": "Gemma3ForCausalLM",
    "sequence_classifier": "Gemma3TextForSequenceClassification",
    "embedding": "Gemma3TextModel",
}

FAMILY = Family(
    name="gemma3",
    model_types=("gemma3_text", "gemma3"),
    read=_read,
    write=_write,
    rules=LLAMA_RULES + SANDWICH_RULES,
    heads=LLAMA_HEADS,
    architectures=_ARCHITECTURES,
    prefix="model.",
    unused=UNUSED,
)
