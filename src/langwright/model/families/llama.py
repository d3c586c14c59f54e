"""Llama 2 and 3, SmolLM2, Mistral (Touvron et al. 2023, arXiv:2307.09288; Jiang et al. 2023, arXiv:2310.06825)."""

from typing import Any

from langwright.core.errors import UserError
from langwright.model.config import LayerSpec, ModelConfig
from langwright.model.families.base import ConfigReader, Family, read_rope, write_rope
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


def read_sizes(reader: ConfigReader, max_positions: int) -> dict[str, Any]:
    """The sizes that every family with Llama's key names has."""
    heads, width = reader.take("num_attention_heads"), reader.take("hidden_size")
    return {
        "d_model": width,
        "n_layers": reader.take("num_hidden_layers"),
        "n_heads": heads,
        "n_kv_heads": reader.take("num_key_value_heads", heads),
        "d_head": reader.take("head_dim", width // max(heads, 1)),
        "d_mlp": reader.take("intermediate_size"),
        "vocab_size": reader.take("vocab_size"),
        "max_positions": reader.take("max_position_embeddings", max_positions),
        "norm_eps": reader.take("rms_norm_eps", 1e-6, float),
        "attn_dropout": reader.take("attention_dropout", 0.0, float),
        "init_std": reader.take("initializer_range", 0.02, float),
    }


def write_sizes(config: ModelConfig) -> dict[str, Any]:
    """The inverse of `read_sizes`."""
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


def _read(reader: ConfigReader) -> dict[str, Any]:
    mistral = reader.values.get("model_type") == "mistral"
    sizes = read_sizes(reader, 131_072 if mistral else 2048)
    window = reader.take("sliding_window", 4096 if mistral and "sliding_window" not in reader.values else None)
    reader.fixed("hidden_act", "silu")
    reader.fixed("pretraining_tp", 1, 2, 4, 8)  # a way to split the same product; the result is the same
    reader.fixed("rope_interleaved", False)
    bias = False if mistral else reader.take("attention_bias", False, bool)
    mlp_bias = False if mistral else reader.take("mlp_bias", False, bool)
    rope = read_rope(reader, sizes["max_positions"])
    return sizes | {
        "qkv_bias": bias,
        "o_bias": bias,
        "mlp_bias": mlp_bias,
        "tie_embeddings": reader.take("tie_word_embeddings", False, bool),
        "layer_specs": {"full": LayerSpec(window=window, rope=rope)},
    }


def _write(config: ModelConfig) -> dict[str, Any]:
    spec = config.layer_specs["full"]
    assert spec.rope is not None
    rope = {"rope_parameters": write_rope(spec.rope), "rope_theta": spec.rope.theta}
    common = write_sizes(config) | rope | {"hidden_act": "silu"}
    if spec.window is not None:
        if config.qkv_bias or config.mlp_bias:
            raise UserError("a Llama with a sliding window and biases has no Hugging Face form; drop one of the two")
        return common | {"model_type": "mistral", "sliding_window": spec.window}
    return common | {"attention_bias": config.qkv_bias, "mlp_bias": config.mlp_bias}


FAMILY = Family(
    name="llama",
    model_types=("llama", "mistral"),
    read=_read,
    write=_write,
    rules=LLAMA_RULES + PRE_NORM_RULES,
    heads=LLAMA_HEADS,
    architectures=llama_architectures("Llama"),
    prefix="model.",
    unused=(r".*\.rotary_emb\.inv_freq",),
)
