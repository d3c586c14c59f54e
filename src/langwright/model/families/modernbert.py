"""ModernBERT (Warner et al. 2024, arXiv:2412.13663): pre-norm, rotary, gated, local attention between global layers."""

from typing import Any

from langwright.core.errors import UserError
from langwright.model.config import ModelConfig, NormSlot
from langwright.model.families.base import ConfigReader, Family, layer_specs, write_activation, write_layer_types
from langwright.model.families.bert import read_encoder_sizes, write_encoder_sizes
from langwright.model.families.rotary import rope_from, write_rope
from langwright.model.rename import rule

# The first layer reads the stream as the embedding's norm left it.
_FIRST_SLOTS: tuple[NormSlot, ...] = ("mlp_in",)
_FULL, _SLIDING = "full_attention", "sliding_attention"


def _read_layers(reader: ConfigReader, n_layers: int, max_positions: int) -> dict[str, Any]:
    """layer_types and layer_specs from either spelling: the layers listed, or one global layer in every few."""
    source = reader.source
    period = reader.take("global_attn_every_n_layers", 3)
    if period < 1:
        raise UserError(f"{source}: global_attn_every_n_layers = {period} should be 1 or more")
    types = reader.layer_types(n_layers, lambda layer: "sliding" if layer % period else "full")
    scaling = reader.take("rope_scaling", {}, dict)
    thetas = reader.take("global_rope_theta", 160_000.0, float), reader.take("local_rope_theta", 10_000.0, float)
    given = ConfigReader(reader.take("rope_parameters", {}, dict), f"{source}: rope_parameters")
    full, sliding = (
        rope_from(given.take(kind, {}, dict) | scaling, source, max_positions, float(theta))
        for kind, theta in zip((_FULL, _SLIDING), thetas, strict=True)
    )
    given.finish()
    # ``local_attention`` counts both sides; a query sees the keys up to half of it away, that one included.
    local = reader.take("local_attention", 128)
    if local < 0:
        raise UserError(f"{source}: local_attention = {local} should be 0 or more")
    specs = layer_specs(types, local // 2 + 1, full, sliding, source)
    if types:
        specs["first"] = specs[types[0]].replace(norm_slots=_FIRST_SLOTS)
        types = ("first", *types[1:])
    return {"layer_types": types, "layer_specs": {name: spec for name, spec in specs.items() if name in types}}


def _read(reader: ConfigReader) -> dict[str, Any]:
    reader.values.setdefault("pad_token_id", 50283)
    reader.fixed("position_embedding_type", "absolute")  # a key without a meaning here, and published so
    reader.ignore(
        "cls_token_id",
        "deterministic_flash_attn",
        "initializer_cutoff_factor",
        "layer_norm_eps",  # published beside ``norm_eps``, the one that counts
        "reference_compile",
        "repad_logits_with_grad",
        "sparse_pred_ignore_index",
        "sparse_prediction",
    )
    sizes = read_encoder_sizes(reader)
    positions, bias = reader.take("max_position_embeddings", 8192), reader.take("attention_bias", False, bool)
    pooling = reader.take("classifier_pooling", None, str)
    if pooling not in (None, "cls", "mean"):
        raise UserError(f"{reader.source}: classifier_pooling = {pooling!r:.60} is not supported (cls and mean are)")
    return (
        sizes
        | _read_layers(reader, sizes["n_layers"], positions)
        | {
            "max_positions": positions,
            "embed_norm": True,
            "norm": "layernorm",
            "norm_eps": reader.take("norm_eps", 1e-5, float),
            "norm_bias": reader.take("norm_bias", False, bool),
            "activation": reader.activation("hidden_activation", "gelu"),
            "qkv_bias": bias,
            "o_bias": bias,
            "mlp_bias": reader.take("mlp_bias", False, bool),
            "tie_embeddings": reader.take("tie_word_embeddings", True, bool),
            "head_bias": reader.take("decoder_bias", True, bool),
            "head_activation": reader.activation("classifier_activation", "gelu"),
            "head_dense_bias": reader.take("classifier_bias", False, bool),
            "classifier": "act_norm",
            "classifier_bias": True,
            "pooling": pooling,
            "embed_dropout": reader.take("embedding_dropout", 0.0, float),
            "attn_dropout": reader.take("attention_dropout", 0.0, float),
            "mlp_dropout": reader.take("mlp_dropout", 0.0, float),
            "head_dropout": reader.take("classifier_dropout", 0.0, float),
        }
    )


def _write_layers(config: ModelConfig) -> dict[str, Any]:
    """The inverse of `_read_layers`, in both spellings as far as the older one can say it."""
    specs = [config.layer_specs[name] for name in config.layer_types]
    types = ["full" if spec.window is None else "sliding" for spec in specs]
    ropes = {name: spec.rope for name, spec in zip(types, specs, strict=True) if spec.rope}
    windows = [spec.window for spec in specs if spec.window is not None]
    values: dict[str, Any] = {"layer_types": write_layer_types(types)}
    values["rope_parameters"] = dict(zip(write_layer_types(list(ropes)), map(write_rope, ropes.values()), strict=True))
    if "full" in ropes:
        values["global_rope_theta"] = ropes["full"].theta
    if "sliding" in ropes:
        values |= {"local_rope_theta": ropes["sliding"].theta, "local_attention": 2 * (windows[0] - 1)}
    period = types.index("full", 1) if "full" in types[1:] else len(types)
    if types == ["sliding" if i % period else "full" for i in range(len(types))]:
        values["global_attn_every_n_layers"] = period
    return values


def _write(config: ModelConfig) -> dict[str, Any]:
    values = write_encoder_sizes(config) | _write_layers(config)
    if config.pooling is not None:
        values["classifier_pooling"] = config.pooling
    return values | {
        "max_position_embeddings": config.max_positions,
        "norm_eps": config.norm_eps,
        "norm_bias": config.norm_bias,
        "hidden_activation": write_activation(config.activation),
        "attention_bias": config.qkv_bias,
        "mlp_bias": config.mlp_bias,
        "tie_word_embeddings": config.tie_embeddings,
        "decoder_bias": config.head_bias,
        "classifier_activation": write_activation(config.head_activation),
        "classifier_bias": config.head_dense_bias,
        "embedding_dropout": config.dropout if config.embed_dropout is None else config.embed_dropout,
        "attention_dropout": config.attn_dropout,
        "mlp_dropout": config.mlp_dropout,
        "classifier_dropout": config.dropout if config.head_dropout is None else config.head_dropout,
        "cls_token_id": config.bos_id,
        "sep_token_id": config.eos_ids[0] if config.eos_ids else None,
    }


_LAYER, _OURS = "model.layers.{i}", "backbone.layers.{i}"
_CLASSIFIER = (
    rule("head.dense.{p}", "head.transform.dense.{p}"),
    rule("head.norm.{p}", "head.transform.norm.{p}"),
    rule("classifier.{p}", "head.proj.{p}"),
)

FAMILY = Family(
    name="modernbert",
    model_types=("modernbert",),
    read=_read,
    write=_write,
    rules=(
        rule("model.embeddings.tok_embeddings.weight", "backbone.embed.tokens.weight"),
        rule("model.embeddings.norm.{p}", "backbone.embed.norm.{p}"),
        rule(f"{_LAYER}.attn_norm.{{p}}", f"{_OURS}.attn_in.{{p}}"),
        rule(f"{_LAYER}.attn.Wqkv.{{p}}", *(f"{_OURS}.attn.{name}_proj.{{p}}" for name in "qkv")),
        rule(f"{_LAYER}.attn.Wo.{{p}}", f"{_OURS}.attn.o_proj.{{p}}"),
        rule(f"{_LAYER}.mlp_norm.{{p}}", f"{_OURS}.mlp_in.{{p}}"),
        rule(f"{_LAYER}.mlp.Wi.{{p}}", f"{_OURS}.mlp.gate_proj.{{p}}", f"{_OURS}.mlp.up_proj.{{p}}"),
        rule(f"{_LAYER}.mlp.Wo.{{p}}", f"{_OURS}.mlp.down_proj.{{p}}"),
        rule("model.final_norm.{p}", "backbone.final_norm.{p}"),
    ),
    heads={
        "masked_lm": (
            rule("head.dense.{p}", "head.transform.dense.{p}"),
            rule("head.norm.{p}", "head.transform.norm.{p}"),
            rule("decoder.{p}", "head.proj.{p}"),
        ),
        "sequence_classifier": _CLASSIFIER,
        "token_classifier": _CLASSIFIER,
        "embedding": (),
    },
    architectures={
        "masked_lm": "ModernBertForMaskedLM",
        "sequence_classifier": "ModernBertForSequenceClassification",
        "token_classifier": "ModernBertForTokenClassification",
        "embedding": "ModernBertModel",
    },
    prefix="model.",
)
