"""GPT-NeoX and Pythia (Black et al. 2022, arXiv:2204.06745; Biderman et al. 2023, arXiv:2304.01373)."""

from typing import Any

from langwright.core.errors import UserError
from langwright.model.config import LayerSpec, ModelConfig
from langwright.model.families.base import ConfigReader, Family, write_activation
from langwright.model.families.llama import check_width, only_rope
from langwright.model.families.rotary import read_rope, write_rope_keys
from langwright.model.rename import rule

_LAYER = "gpt_neox.layers.{i}"
_OURS = "backbone.layers.{i}"


def _read(reader: ConfigReader) -> dict[str, Any]:
    width, heads = reader.size("hidden_size"), reader.size("num_attention_heads")
    if width % heads:
        raise UserError(f"{reader.source}: hidden_size ({width}) must be a multiple of num_attention_heads ({heads})")
    max_positions = reader.size("max_position_embeddings", 2048)
    # Both settings have had two names.
    fraction = reader.take("partial_rotary_factor", reader.take("rotary_pct", 0.25, float), float)
    rope = read_rope(reader, max_positions, reader.take("rotary_emb_base", 10_000.0, float), fraction)
    attention_bias = reader.take("attention_bias", True, bool)
    reader.fixed("attention_probs_dropout_prob", 0)
    reader.fixed("hidden_dropout_prob", 0)
    reader.fixed("is_decoder", False, True)
    reader.ignore("classifier_dropout")
    return {
        "d_model": width,
        "n_layers": reader.size("num_hidden_layers"),
        "n_heads": heads,
        "n_kv_heads": heads,
        "d_head": width // heads,
        "d_mlp": reader.size("intermediate_size"),
        "vocab_size": reader.size("vocab_size"),
        "max_positions": max_positions,
        "norm": "layernorm",
        "norm_eps": reader.take("layer_norm_eps", 1e-5, float),
        "norm_bias": True,
        "parallel_residual": reader.take("use_parallel_residual", True, bool),
        "activation": reader.activation("hidden_act", "gelu"),
        "gated": False,
        "qkv_bias": attention_bias,
        "o_bias": attention_bias,
        "mlp_bias": True,
        "tie_embeddings": reader.take("tie_word_embeddings", False, bool),
        "layer_specs": {"full": LayerSpec(rope=rope)},
        "dropout": reader.take("hidden_dropout", 0.0, float),
        "attn_dropout": reader.take("attention_dropout", 0.0, float),
        "init_std": reader.take("initializer_range", 0.02, float),
    }


def _write(config: ModelConfig) -> dict[str, Any]:
    check_width(config)
    rope = only_rope(config)
    keys = write_rope_keys(rope)
    keys["rope_parameters"]["partial_rotary_factor"] = rope.fraction
    return keys | {
        "hidden_size": config.d_model,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "intermediate_size": config.d_mlp,
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.max_positions,
        "layer_norm_eps": config.norm_eps,
        "use_parallel_residual": config.parallel_residual,
        "hidden_act": write_activation(config.activation),
        "attention_bias": config.qkv_bias,
        "tie_word_embeddings": config.tie_embeddings,
        "rotary_pct": rope.fraction,
        "rotary_emb_base": rope.theta,
        "hidden_dropout": config.dropout,
        "attention_dropout": config.attn_dropout,
        "initializer_range": config.init_std,
        "use_cache": True,
    }


FAMILY = Family(
    name="gpt_neox",
    model_types=("gpt_neox",),
    read=_read,
    write=_write,
    rules=(
        rule("gpt_neox.embed_in.weight", "backbone.embed.tokens.weight"),
        rule(f"{_LAYER}.input_layernorm.{{p}}", f"{_OURS}.attn_in.{{p}}"),
        rule(
            f"{_LAYER}.attention.query_key_value.{{p}}",
            *(f"{_OURS}.attn.{name}.{{p}}" for name in ("q_proj", "k_proj", "v_proj")),
            layout="by_head",
        ),
        rule(f"{_LAYER}.attention.dense.{{p}}", f"{_OURS}.attn.o_proj.{{p}}"),
        rule(f"{_LAYER}.post_attention_layernorm.{{p}}", f"{_OURS}.mlp_in.{{p}}"),
        rule(f"{_LAYER}.mlp.dense_h_to_4h.{{p}}", f"{_OURS}.mlp.up_proj.{{p}}"),
        rule(f"{_LAYER}.mlp.dense_4h_to_h.{{p}}", f"{_OURS}.mlp.down_proj.{{p}}"),
        rule("gpt_neox.final_layer_norm.{p}", "backbone.final_norm.{p}"),
    ),
    heads={
        "causal_lm": (rule("embed_out.weight", "head.proj.weight"),),
        "sequence_classifier": (rule("score.weight", "head.proj.weight"),),
        "token_classifier": (rule("classifier.{p}", "head.proj.{p}"),),
        "embedding": (),
    },
    architectures={
        "causal_lm": "GPTNeoXForCausalLM",
        "sequence_classifier": "GPTNeoXForSequenceClassification",
        "token_classifier": "GPTNeoXForTokenClassification",
        "embedding": "GPTNeoXModel",
    },
    prefix="gpt_neox.",
    # Causal masks and rotary frequencies, which early checkpoints store.
    unused=(
        r"(gpt_neox\.)?layers\.\d+\.attention\.(masked_)?bias",
        r"(gpt_neox\.)?layers\.\d+\.attention\.rotary_emb\.inv_freq",
    ),
)
