"""BERT, RoBERTa and ModernBERT: published configurations are read, strange ones refused, written ones read again."""

import re
from pathlib import Path
from typing import Any

import pytest

from langwright.core.errors import UserError
from langwright.core.json_text import read_json_object
from langwright.model.config import ModelConfig
from langwright.model.families import find_family
from langwright.model.heads import HeadKind
from langwright.model.model import build_model
from langwright.model.rename import bind

PUBLISHED: dict[str, dict[str, Any]] = read_json_object(Path(__file__).parent / "published_encoder_configs.json")
BERT, ROBERTA, MODERN = PUBLISHED["bert-base-uncased"], PUBLISHED["roberta-base"], PUBLISHED["ModernBERT-base"]
HEADS: tuple[HeadKind, ...] = ("masked_lm", "sequence_classifier", "token_classifier", "embedding")


def read(values: dict[str, Any]) -> ModelConfig:
    return find_family(values).config_from_hf(values)


def small(values: dict[str, Any]) -> dict[str, Any]:
    sizes = {"hidden_size": 8, "intermediate_size": 6, "num_hidden_layers": 3, "num_attention_heads": 2}
    return values | sizes | {"vocab_size": 11, "pad_token_id": 1, "bos_token_id": 2, "eos_token_id": 3}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_configs_are_read_and_written_back(name: str):
    values = PUBLISHED[name]
    family, config = find_family(values), read(values)
    for head in HEADS:
        written = family.config_to_hf(config, head)
        assert family.config_from_hf(written) == config
        assert family.head_of(written) == head
    assert family.head_of(values) == ("embedding" if "MiniLM" in name else "masked_lm")


def test_what_the_published_configs_say():
    minilm, roberta, modern = read(PUBLISHED["all-MiniLM-L6-v2"]), read(ROBERTA), read(MODERN)
    assert (minilm.d_model, minilm.n_layers, minilm.d_head, minilm.d_mlp) == (384, 6, 32, 1536)
    assert (roberta.max_positions, roberta.position_offset, roberta.n_types) == (512, 2, 1)
    assert modern.layer_types[:5] == ("first", "sliding", "sliding", "full", "sliding")
    assert modern.layer_types.count("sliding") == 14
    assert modern.layer_specs["sliding"].window == 65
    ropes = {name: spec.rope.theta for name, spec in modern.layer_specs.items() if spec.rope}
    assert ropes == {"first": 160_000.0, "full": 160_000.0, "sliding": 10_000.0}
    assert modern.slots(0) == ("mlp_in",)
    assert modern.slots(1) == ("attn_in", "mlp_in")
    assert modern.pooling == "mean"


def test_both_spellings_of_modernbert_are_one():
    rope = {"rope_type": "default", "rope_theta": 10_000.0}
    old = ("global_attn_every_n_layers", "global_rope_theta", "local_rope_theta")
    listed = {key: value for key, value in MODERN.items() if key not in old} | {
        "layer_types": ["sliding_attention" if layer % 3 else "full_attention" for layer in range(22)],
        "rope_parameters": {"full_attention": rope | {"rope_theta": 160_000.0}, "sliding_attention": rope},
    }
    assert read(listed) == read(MODERN)
    written = find_family(MODERN).config_to_hf(read(MODERN), "masked_lm")
    assert {key: written[key] for key in old} == {key: MODERN[key] for key in old}
    assert written["local_attention"] == 128


def test_modernbert_may_begin_with_a_local_layer():
    types = ["sliding_attention", "full_attention", "sliding_attention"]
    config = read(small(MODERN) | {"layer_types": types, "local_attention": 7})
    assert config.layer_types == ("first", "full", "sliding")
    assert config.layer_specs["first"].window == config.layer_specs["sliding"].window == 4
    written = find_family(MODERN).config_to_hf(config, "masked_lm")
    assert written["layer_types"] == types
    assert "global_attn_every_n_layers" not in written


@pytest.mark.parametrize(
    ("published", "key", "value"),
    [
        ("bert-base-uncased", "position_embedding_type", "relative_key"),
        ("bert-base-uncased", "is_decoder", True),
        ("bert-base-uncased", "add_cross_attention", True),
        ("bert-base-uncased", "tie_word_embeddings", False),
        ("bert-base-uncased", "hidden_act", "gelu_10"),
        ("bert-base-uncased", "embedding_size", 128),
        ("bert-base-uncased", "hidden_size", 770),
        ("bert-base-uncased", "hidden_size", "768"),
        ("bert-base-uncased", "num_attention_heads", 0),
        ("bert-base-chinese", "directionality", "unidi"),
        ("bert-base-chinese", "pooler_type", "mean"),
        ("roberta-base", "pad_token_id", None),
        ("roberta-base", "pad_token_id", -1),
        ("roberta-base", "is_decoder", True),
        ("roberta-base", "directionality", "bidi"),
        ("ModernBERT-base", "classifier_pooling", "last"),
        ("ModernBERT-base", "global_attn_every_n_layers", 0),
        ("ModernBERT-base", "layer_types", ["full_attention"] * 21 + ["chunked_attention"]),
        ("ModernBERT-base", "layer_types", ["full_attention"] * 21),
        ("ModernBERT-base", "layer_types", []),
        ("ModernBERT-base", "rope_parameters", {"rope_type": "default"}),
        ("ModernBERT-base", "rope_parameters", {"full_attention": {"rope_type": "longrope"}}),
        ("ModernBERT-base", "rope_scaling", {"rope_type": "linear", "factor": "2"}),
        ("ModernBERT-base", "local_attention", -2),
        ("ModernBERT-base", "hidden_activation", "swiglu"),
        ("ModernBERT-base", "num_key_value_heads", 4),
    ],
)
def test_what_is_not_understood_is_refused_by_name(published: str, key: str, value: Any):
    with pytest.raises(UserError) as caught:
        read(PUBLISHED[published] | {key: value})
    words = {"layer_types": "layer", "rope_scaling": "factor", "rope_parameters": "rot|rope"}
    assert re.search(words.get(key, key), str(caught.value))
    assert "\n" not in str(caught.value)


def test_an_impossible_rotary_scaling_is_one_line():
    with pytest.raises(UserError, match="factor: Input should be greater than or equal to 1"):
        read(MODERN | {"rope_scaling": {"rope_type": "linear", "factor": 0.5}})


@pytest.mark.parametrize("key", ["hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size"])
@pytest.mark.parametrize("name", PUBLISHED)
def test_missing_sizes_are_named(name: str, key: str):
    with pytest.raises(UserError, match=key):
        read({k: v for k, v in PUBLISHED[name].items() if k != key})


def test_dropout_of_the_classifier():
    assert read(BERT).head_dropout is None
    config = read(BERT | {"classifier_dropout": 0.3})
    assert config.head_dropout == 0.3
    assert find_family(BERT).config_to_hf(config, "sequence_classifier")["classifier_dropout"] == 0.3


def test_a_variant_that_has_no_form_is_not_written():
    config = read(BERT).replace(qkv_bias=False)
    with pytest.raises(UserError, match="qkv_bias"):
        find_family(BERT).config_to_hf(config, "masked_lm")


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("values", [BERT, ROBERTA, MODERN], ids=["bert", "roberta", "modernbert"])
def test_every_parameter_has_one_rule(values: dict[str, Any], head: HeadKind):
    """Tied and untied, with biases and without; `bind` raises for a gap or an overlap."""
    extra = [{}]
    if values is MODERN:
        extra.append(dict.fromkeys(("attention_bias", "mlp_bias", "norm_bias", "classifier_bias"), True))
        extra.append({"tie_word_embeddings": False, "decoder_bias": False})
    for changes in extra:
        config = read(small(values) | changes)
        model = build_model(config, head)
        family = find_family(values)
        bind(family.rules + family.heads[head], config, dict(model.named_parameters()))
