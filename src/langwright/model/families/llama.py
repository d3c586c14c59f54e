"""Llama 2 and 3, SmolLM2, Mistral (Touvron et al. 2023, arXiv:2307.09288; Jiang et al. 2023, arXiv:2310.06825)."""

from typing import Any

from langwright.core.errors import UserError
from langwright.model.config import LayerSpec, ModelConfig, Rope
from langwright.model.families.base import ConfigReader, Family, write_activation
from langwright.model.families.rotary import read_rope, write_rope_keys
from langwright.model.heads import HeadKind
from langwright.model.rename import Rule, rule

# Shared by every family that uses Llama's names.
LLAMA_RULES: tuple[Rule, ...] = (
    rule("model.embed_tokens.weight", "backbone.embed.tokens.weight"),
    *(
        rule(f"model.layers.{{i}}.self_attn.{name}.{{p}}", f"backbone.layers.{{i}}.attn.{name}.{{p}}")
        for name in ("q_proj", "k_proj", "v_proj", "o_proj", "q_norm", "k_norm")
    ),
    *(
        rule(f"model.layers.{{i}}.mlp.{name}.{{p}}", f"backbone.layers.{{i}}.mlp.{name}.{{p}}")
        for name in ("gate_proj", "up_proj", "down_proj")
    ),
    rule("model.norm.weight", "backbone.final_norm.weight"),
)
PRE_NORM_RULES = (
    rule("model.layers.{i}.input_layernorm.weight", "backbone.layers.{i}.attn_in.weight"),
    rule("model.layers.{i}.post_attention_layernorm.weight", "backbone.layers.{i}.mlp_in.weight"),
)
LLAMA_HEADS: dict[HeadKind, tuple[Rule, ...]] = {
    "causal_lm": (rule("lm_head.weight", "head.proj.weight"),),
    "sequence_classifier": (rule("score.weight", "head.proj.weight"),),
    "token_classifier": (rule("score.{p}", "head.proj.{p}"),),
    "embedding": (),
}


def llama_architectures(stem: str) -> dict[HeadKind, str]:
    """The names `transformers` gives a decoder family's heads."""
    return {
        "causal_lm": f"{stem}ForCausalLM",
        "sequence_classifier": f"{stem}ForSequenceClassification",
        "token_classifier": f"{stem}ForTokenClassification",
        "embedding": f"{stem}Model",
    }


def read_sizes(reader: ConfigReader, max_positions: int, *, kv_heads: int | None = None) -> dict[str, Any]:
    """The fields that every family with Llama's key names has; the arguments are what absent keys mean."""
    heads, width = reader.size("num_attention_heads"), reader.size("hidden_size")
    narrow = reader.nullable("num_key_value_heads", kv_heads)
    return {
        "d_model": width,
        "n_layers": reader.size("num_hidden_layers"),
        "n_heads": heads,
        "n_kv_heads": heads if narrow is None else narrow,
        "d_head": reader.size("head_dim", max(width // heads, 1)),
        "d_mlp": reader.size("intermediate_size"),
        "vocab_size": reader.size("vocab_size"),
        "max_positions": reader.size("max_position_embeddings", max_positions),
        "norm_eps": reader.take("rms_norm_eps", 1e-6, float),
        "attn_dropout": reader.take("attention_dropout", 0.0, float),
        "init_std": reader.take("initializer_range", 0.02, float),
    }


def write_sizes(config: ModelConfig) -> dict[str, Any]:
    """The inverse of `read_sizes`, and what else every such family says."""
    return {
        "hidden_size": config.d_model,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "num_key_value_heads": config.n_kv_heads,
        "head_dim": config.d_head,
        "intermediate_size": config.d_mlp,
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.max_positions,
        "rms_norm_eps": config.norm_eps,
        "attention_dropout": config.attn_dropout,
        "initializer_range": config.init_std,
        "tie_word_embeddings": config.tie_embeddings,
        "use_cache": True,
    }


def check_width(config: ModelConfig) -> None:
    """Raise `UserError` for a width that `transformers` refuses in most families."""
    if config.d_model % config.n_heads:
        raise UserError(
            f"d_model ({config.d_model}) must be a multiple of n_heads ({config.n_heads}) for a {config.family} "
            "checkpoint that transformers can read; change one, or write the model with family 'langwright'"
        )


def only_rope(config: ModelConfig) -> Rope:
    """The rotary settings of a model whose layers share them; raises `UserError` for others."""
    ropes = [spec.rope for spec in config.layer_specs.values()]
    if ropes[0] is None or any(rope != ropes[0] for rope in ropes):
        raise UserError(f"a {config.family} config.json holds one set of rotary settings for all layers")
    return ropes[0]


def _read(reader: ConfigReader) -> dict[str, Any]:
    sizes = read_sizes(reader, 2048)
    reader.fixed("pretraining_tp", 1, 2, 4, 8)  # a way to split the same product; the result is the same
    reader.fixed("rope_interleaved", False)
    bias = reader.take("attention_bias", False, bool)
    return sizes | {
        "activation": reader.activation("hidden_act", "silu"),
        "qkv_bias": bias,
        "o_bias": bias,
        "mlp_bias": reader.take("mlp_bias", False, bool),
        "tie_embeddings": reader.take("tie_word_embeddings", False, bool),
        "layer_specs": {"full": LayerSpec(rope=read_rope(reader, sizes["max_positions"]))},
    }


def _write(config: ModelConfig) -> dict[str, Any]:
    check_width(config)
    return (
        write_sizes(config)
        | write_rope_keys(only_rope(config))
        | {
            "hidden_act": write_activation(config.activation),
            "attention_bias": config.qkv_bias,
            "mlp_bias": config.mlp_bias,
        }
    )


def _read_mistral(reader: ConfigReader) -> dict[str, Any]:
    sizes = read_sizes(reader, 131_072, kv_heads=8)
    spec = LayerSpec(window=reader.nullable("sliding_window", 4096), rope=read_rope(reader, sizes["max_positions"]))
    return sizes | {
        "activation": reader.activation("hidden_act", "silu"),
        "tie_embeddings": reader.take("tie_word_embeddings", False, bool),
        "layer_specs": {"full": spec},
    }


def _write_mistral(config: ModelConfig) -> dict[str, Any]:
    window = config.layer_specs[config.layer_types[0]].window
    return (
        write_sizes(config)
        | write_rope_keys(only_rope(config))
        | {"hidden_act": write_activation(config.activation), "sliding_window": window}
    )


UNUSED = (r".*\.rotary_emb\.inv_freq",)

FAMILY = Family(
    name="llama",
    model_types=("llama",),
    read=_read,
    write=_write,
    rules=LLAMA_RULES + PRE_NORM_RULES,
    heads=LLAMA_HEADS,
    architectures=llama_architectures("Llama"),
    prefix="model.",
    unused=UNUSED,
)
MISTRAL = Family(
    name="mistral",
    model_types=("mistral",),
    read=_read_mistral,
    write=_write_mistral,
    rules=LLAMA_RULES + PRE_NORM_RULES,
    heads=LLAMA_HEADS,
    architectures=llama_architectures("Mistral"),
    prefix="model.",
    unused=UNUSED,
)
