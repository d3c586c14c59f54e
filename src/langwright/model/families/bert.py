"""BERT (Devlin et al. 2018, arXiv:1810.04805) and models of its shape: MiniLM (Wang et al. 2020, arXiv:2002.10957)."""

from typing import Any

from langwright.core.errors import FormatError
from langwright.model.config import LayerSpec, ModelConfig
from langwright.model.families.base import ConfigReader, Family, write_activation
from langwright.model.rename import Rule, rule


def read_encoder_sizes(reader: ConfigReader) -> dict[str, Any]:
    """The sizes that every encoder's ``config.json`` spells alike."""
    heads, width = reader.take("num_attention_heads"), reader.take("hidden_size")
    if heads < 1 or width % heads:
        raise FormatError(
            f"{reader.source}: 'hidden_size' ({width}) is not a multiple of 'num_attention_heads' ({heads})"
        )
    return {
        "d_model": width,
        "n_layers": reader.take("num_hidden_layers"),
        "n_heads": heads,
        "n_kv_heads": heads,
        "d_head": width // heads,
        "d_mlp": reader.take("intermediate_size"),
        "vocab_size": reader.take("vocab_size"),
        "causal": False,
        "init_std": reader.take("initializer_range", 0.02, float),
    }


def write_encoder_sizes(config: ModelConfig) -> dict[str, Any]:
    """The inverse of `read_encoder_sizes`."""
    return {
        "hidden_size": config.d_model,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "intermediate_size": config.d_mlp,
        "vocab_size": config.vocab_size,
        "initializer_range": config.init_std,
    }


def read_bert(reader: ConfigReader) -> dict[str, Any]:
    """Everything that BERT and RoBERTa have in common."""
    reader.fixed("position_embedding_type", "absolute")
    reader.fixed("is_decoder", False)
    reader.fixed("add_cross_attention", False)
    # Untied, the reference library adds another tensor for the bias of the masked-LM head.
    reader.fixed("tie_word_embeddings", True)
    reader.ignore("output_past")
    activation = reader.activation("hidden_act", "gelu")
    return read_encoder_sizes(reader) | {
        "positions": "learned",
        "max_positions": reader.take("max_position_embeddings", 512),
        "n_types": reader.take("type_vocab_size", 2),
        "embed_norm": True,
        "norm": "layernorm",
        "norm_eps": reader.take("layer_norm_eps", 1e-12, float),
        "norm_bias": True,
        "norm_slots": ("attn_res", "mlp_res"),
        "final_norm": False,
        "activation": activation,
        "gated": False,
        "qkv_bias": True,
        "o_bias": True,
        "mlp_bias": True,
        "head_bias": True,
        "head_activation": activation,
        "classifier": "tanh",
        "classifier_bias": True,
        "layer_specs": {"full": LayerSpec()},
        "dropout": reader.take("hidden_dropout_prob", 0.1, float),
        "attn_dropout": reader.take("attention_probs_dropout_prob", 0.1, float),
        "head_dropout": reader.take("classifier_dropout", None, float),
    }


def write_bert(config: ModelConfig) -> dict[str, Any]:
    """The inverse of `read_bert`."""
    return write_encoder_sizes(config) | {
        "max_position_embeddings": config.max_positions,
        "type_vocab_size": config.n_types,
        "layer_norm_eps": config.norm_eps,
        "hidden_act": write_activation(config.activation),
        "hidden_dropout_prob": config.dropout,
        "attention_probs_dropout_prob": config.attn_dropout,
        "classifier_dropout": config.head_dropout,
        "position_embedding_type": "absolute",
    }


# The names of Google's checkpoints, which bert-base-uncased and its contemporaries were published with.
OLDER_NAMES = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}


def bert_rules(prefix: str) -> tuple[Rule, ...]:
    """The backbone's names, which begin with ``prefix``."""
    layer, ours = f"{prefix}encoder.layer.{{i}}", "backbone.layers.{i}"
    return (
        rule(f"{prefix}embeddings.word_embeddings.weight", "backbone.embed.tokens.weight"),
        rule(f"{prefix}embeddings.position_embeddings.weight", "backbone.embed.positions.weight"),
        rule(f"{prefix}embeddings.token_type_embeddings.weight", "backbone.embed.types.weight"),
        rule(f"{prefix}embeddings.LayerNorm.{{p}}", "backbone.embed.norm.{p}"),
        rule(f"{layer}.attention.self.query.{{p}}", f"{ours}.attn.q_proj.{{p}}"),
        rule(f"{layer}.attention.self.key.{{p}}", f"{ours}.attn.k_proj.{{p}}"),
        rule(f"{layer}.attention.self.value.{{p}}", f"{ours}.attn.v_proj.{{p}}"),
        rule(f"{layer}.attention.output.dense.{{p}}", f"{ours}.attn.o_proj.{{p}}"),
        rule(f"{layer}.attention.output.LayerNorm.{{p}}", f"{ours}.attn_res.{{p}}"),
        rule(f"{layer}.intermediate.dense.{{p}}", f"{ours}.mlp.up_proj.{{p}}"),
        rule(f"{layer}.output.dense.{{p}}", f"{ours}.mlp.down_proj.{{p}}"),
        rule(f"{layer}.output.LayerNorm.{{p}}", f"{ours}.mlp_res.{{p}}"),
    )


def _read(reader: ConfigReader) -> dict[str, Any]:
    reader.values.setdefault("pad_token_id", 0)
    # Google's own keys, on a pooler that no published model has.
    reader.fixed("directionality", "bidi")
    reader.fixed("pooler_type", "first_token_transform")
    reader.ignore("pooler_fc_size", "pooler_num_attention_heads", "pooler_num_fc_layers", "pooler_size_per_head")
    return read_bert(reader)


FAMILY = Family(
    name="bert",
    model_types=("bert",),
    read=_read,
    write=write_bert,
    rules=bert_rules("bert."),
    heads={
        "masked_lm": (
            rule("cls.predictions.transform.dense.{p}", "head.transform.dense.{p}"),
            rule("cls.predictions.transform.LayerNorm.{p}", "head.transform.norm.{p}"),
            rule("cls.predictions.decoder.weight", "head.proj.weight"),
            rule("cls.predictions.bias", "head.proj.bias"),
        ),
        "sequence_classifier": (
            rule("bert.pooler.dense.{p}", "head.transform.dense.{p}"),
            rule("classifier.{p}", "head.proj.{p}"),
        ),
        "token_classifier": (rule("classifier.{p}", "head.proj.{p}"),),
        "embedding": (),
    },
    architectures={
        "masked_lm": "BertForMaskedLM",
        "sequence_classifier": "BertForSequenceClassification",
        "token_classifier": "BertForTokenClassification",
        "embedding": "BertModel",
    },
    prefix="bert.",
    older=OLDER_NAMES,
    unused=(
        r"(bert\.)?pooler\..*",
        r"(bert\.)?embeddings\.(position_ids|token_type_ids)",
        r"cls\.seq_relationship\..*",
        r"cls\.predictions\.decoder\.bias",
    ),
)
