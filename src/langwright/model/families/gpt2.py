"""GPT-2 (Radford et al. 2019): learned positions, LayerNorm before each block, one matrix for query, key and value."""

from typing import Any

from langwright.core.errors import UserError
from langwright.model.config import LayerSpec, ModelConfig
from langwright.model.families.base import ConfigReader, Family, write_activation
from langwright.model.rename import rule

_LAYER = "transformer.h.{i}"
_OURS = "backbone.layers.{i}"


def _read(reader: ConfigReader) -> dict[str, Any]:
    width, heads = reader.size("n_embd", 768), reader.size("n_head", 12)
    if width % heads:
        raise UserError(f"{reader.source}: n_embd ({width}) must be a multiple of n_head ({heads})")
    dropout, embed_dropout = reader.take("resid_pdrop", 0.1, float), reader.take("embd_pdrop", 0.1, float)
    scaled = reader.take("scale_attn_weights", True, bool)
    reader.fixed("scale_attn_by_inverse_layer_idx", False)
    reader.fixed("reorder_and_upcast_attn", False, True)  # a matter of rounding in half precision, not of the result
    reader.fixed("add_cross_attention", False)
    reader.fixed("is_decoder", False, True)
    reader.ignore("n_ctx", "n_special", "predict_special_tokens", "classifier_dropout")
    reader.ignore("summary_activation", "summary_first_dropout", "summary_proj_to_labels", "summary_type")
    reader.ignore("summary_use_proj")
    return {
        "d_model": width,
        "n_layers": reader.size("n_layer", 12),
        "n_heads": heads,
        "n_kv_heads": heads,
        "d_head": width // heads,
        "d_mlp": reader.size("n_inner", 4 * width),
        "vocab_size": reader.size("vocab_size", 50_257),
        "max_positions": reader.size("n_positions", 1024),
        "positions": "learned",
        "norm": "layernorm",
        "norm_eps": reader.take("layer_norm_epsilon", 1e-5, float),
        "norm_bias": True,
        "activation": reader.activation("activation_function", "gelu_new"),
        "gated": False,
        "qkv_bias": True,
        "o_bias": True,
        "mlp_bias": True,
        "attn_scale": None if scaled else 1.0,
        "tie_embeddings": reader.take("tie_word_embeddings", True, bool),
        "layer_specs": {"full": LayerSpec()},
        "dropout": dropout,
        "embed_dropout": None if embed_dropout == dropout else embed_dropout,
        "attn_dropout": reader.take("attn_pdrop", 0.1, float),
        "init_std": reader.take("initializer_range", 0.02, float),
    }


def _write(config: ModelConfig) -> dict[str, Any]:
    return {
        "n_embd": config.d_model,
        "n_layer": config.n_layers,
        "n_head": config.n_heads,
        "n_inner": config.d_mlp,
        "vocab_size": config.vocab_size,
        "n_positions": config.max_positions,
        "n_ctx": config.max_positions,
        "layer_norm_epsilon": config.norm_eps,
        "activation_function": "gelu_new" if config.activation == "gelu_tanh" else write_activation(config.activation),
        "scale_attn_weights": config.attn_scale is None,
        "tie_word_embeddings": config.tie_embeddings,
        "resid_pdrop": config.dropout,
        "embd_pdrop": config.dropout if config.embed_dropout is None else config.embed_dropout,
        "attn_pdrop": config.attn_dropout,
        "initializer_range": config.init_std,
        "use_cache": True,
    }


FAMILY = Family(
    name="gpt2",
    model_types=("gpt2",),
    read=_read,
    write=_write,
    rules=(
        rule("transformer.wte.weight", "backbone.embed.tokens.weight"),
        rule("transformer.wpe.weight", "backbone.embed.positions.weight"),
        rule(f"{_LAYER}.ln_1.{{p}}", f"{_OURS}.attn_in.{{p}}"),
        rule(
            f"{_LAYER}.attn.c_attn.{{p}}",
            *(f"{_OURS}.attn.{name}.{{p}}" for name in ("q_proj", "k_proj", "v_proj")),
            layout="transposed",
        ),
        rule(f"{_LAYER}.attn.c_proj.{{p}}", f"{_OURS}.attn.o_proj.{{p}}", layout="transposed"),
        rule(f"{_LAYER}.ln_2.{{p}}", f"{_OURS}.mlp_in.{{p}}"),
        rule(f"{_LAYER}.mlp.c_fc.{{p}}", f"{_OURS}.mlp.up_proj.{{p}}", layout="transposed"),
        rule(f"{_LAYER}.mlp.c_proj.{{p}}", f"{_OURS}.mlp.down_proj.{{p}}", layout="transposed"),
        rule("transformer.ln_f.{p}", "backbone.final_norm.{p}"),
    ),
    heads={
        "causal_lm": (rule("lm_head.weight", "head.proj.weight"),),
        "sequence_classifier": (rule("score.weight", "head.proj.weight"),),
        "token_classifier": (rule("classifier.{p}", "head.proj.{p}"),),
        "embedding": (),
    },
    architectures={
        "causal_lm": "GPT2LMHeadModel",
        "sequence_classifier": "GPT2ForSequenceClassification",
        "token_classifier": "GPT2ForTokenClassification",
        "embedding": "GPT2Model",
    },
    prefix="transformer.",
    # Causal masks, which early checkpoints store.
    unused=(r"(transformer\.)?h\.\d+\.attn\.(masked_)?bias",),
)
