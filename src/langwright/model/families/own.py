"""Models without a Hugging Face class: our own ``config.json``, which is a `ModelConfig` written out.

``vanilla`` is the model of PyTorch's language-modelling tutorial (the block of Vaswani et al. 2017 as
`torch.nn.TransformerEncoder`), with that model's tensor names. ``langwright`` is any other combination, with our names.
"""

from typing import Any

from langwright.core.errors import UserError
from langwright.model.config import ModelConfig
from langwright.model.families.base import ConfigReader, Family
from langwright.model.heads import HEADS, HeadKind
from langwright.model.rename import Rule, rule

_BY_READER = ("family", "n_labels", "labels", "problem", "bos_id", "eos_ids", "pad_id")


def _read(reader: ConfigReader) -> dict[str, Any]:
    fields = {name: reader.values.pop(name) for name in ModelConfig.model_fields if name in reader.values}
    if "n_layers" in fields and not isinstance(fields["n_layers"], int):
        raise UserError(f"{reader.source}: 'n_layers' should be int, is {fields['n_layers']!r:.60}")
    return {name: value for name, value in fields.items() if name not in _BY_READER}


def _write(config: ModelConfig) -> dict[str, Any]:
    return config.model_dump(mode="json", exclude=set(_BY_READER))


def _architectures(stem: str) -> dict[HeadKind, str]:
    return {head: stem + "".join(part.title() for part in head.split("_")) for head in HEADS}


def _same_names() -> tuple[Rule, ...]:
    modules = [
        *(f"embed.{name}" for name in ("tokens", "positions", "types", "norm")),
        *(f"layers.{{i}}.{slot}" for slot in ("attn_in", "attn_out", "attn_res", "mlp_in", "mlp_out", "mlp_res")),
        *(
            f"layers.{{i}}.attn.{name}"
            for name in ("q_proj", "k_proj", "v_proj", "o_proj", "q_norm", "k_norm", "value_embed")
        ),
        *(f"layers.{{i}}.mlp.{name}" for name in ("gate_proj", "up_proj", "down_proj")),
        "final_norm",
    ]
    return tuple(rule(f"backbone.{name}.{{p}}", f"backbone.{name}.{{p}}") for name in modules)


_OWN_HEAD = tuple(
    rule(f"head.{name}.{{p}}", f"head.{name}.{{p}}") for name in ("proj", "transform.dense", "transform.norm")
)

LANGWRIGHT = Family(
    name="langwright",
    model_types=("langwright",),
    read=_read,
    write=_write,
    rules=_same_names(),
    heads=dict.fromkeys(HEADS, _OWN_HEAD),
    architectures=_architectures("Langwright"),
)

_QKV = ("q_proj", "k_proj", "v_proj")
_LAYER = "transformer_encoder.layers.{i}"

VANILLA = Family(
    name="vanilla",
    model_types=("langwright-vanilla",),
    read=_read,
    write=_write,
    rules=(
        rule("embedding.weight", "backbone.embed.tokens.weight"),
        rule(f"{_LAYER}.self_attn.in_proj_weight", *(f"backbone.layers.{{i}}.attn.{n}.weight" for n in _QKV)),
        rule(f"{_LAYER}.self_attn.in_proj_bias", *(f"backbone.layers.{{i}}.attn.{n}.bias" for n in _QKV)),
        rule(f"{_LAYER}.self_attn.out_proj.{{p}}", "backbone.layers.{i}.attn.o_proj.{p}"),
        rule(f"{_LAYER}.linear1.{{p}}", "backbone.layers.{i}.mlp.up_proj.{p}"),
        rule(f"{_LAYER}.linear2.{{p}}", "backbone.layers.{i}.mlp.down_proj.{p}"),
        rule(f"{_LAYER}.norm1.{{p}}", "backbone.layers.{i}.attn_res.{p}"),
        rule(f"{_LAYER}.norm2.{{p}}", "backbone.layers.{i}.mlp_res.{p}"),
        rule("transformer_encoder.norm.{p}", "backbone.final_norm.{p}"),
    ),
    heads={"causal_lm": (rule("linear.{p}", "head.proj.{p}"),)},
    architectures=_architectures("LangwrightVanilla"),
)
