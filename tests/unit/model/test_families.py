"""Reading and writing ``config.json``: real ones are understood, what is not understood is refused by name."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from langwright.core.errors import FormatError, UserError
from langwright.model.config import LayerSpec, Llama3Scaling, ModelConfig, Rope
from langwright.model.families import FAMILIES, find_family
from langwright.model.model import Model, count_parameters
from tests.parity.draws import DRAWS, vanilla_config

PUBLISHED = json.loads((Path(__file__).parent / "published_configs.json").read_text())
EVERY = pytest.mark.parametrize("name", PUBLISHED)
# Parameters, tied ones once, as the models' cards or files say.
PARAMETERS = {
    "gpt2": 124_439_808,
    "Llama-3.2-1B": 1_235_814_400,
    "Llama-2-7b-hf": 6_738_415_616,
    "SmolLM2-135M": 134_515_008,
    "Mistral-7B-v0.1": 7_241_732_096,
    "Mistral-7B-v0.3": 7_248_023_552,
    "Qwen2.5-0.5B": 494_032_768,
    "Qwen3-0.6B": 596_049_920,
    "gemma-2-2b": 2_614_341_888,
    "gemma-3-1b-it": 999_885_952,
    "pythia-160m": 162_322_944,
}


def read(values: dict) -> ModelConfig:
    return find_family(values).config_from_hf(values)


@EVERY
def test_published_configs_are_read(name):
    with torch.device("meta"):
        model = Model(read(PUBLISHED[name]))
    assert count_parameters(model) == PARAMETERS[name]


@EVERY
def test_round_trip_is_identity(name):
    config = read(PUBLISHED[name])
    family = FAMILIES[config.family]
    written = family.config_to_hf(config, "causal_lm")
    assert find_family(written) is family
    assert family.config_from_hf(json.loads(json.dumps(written))) == config
    assert family.head_of(written) == "causal_lm"


@pytest.mark.parametrize("draw", DRAWS)
def test_round_trip_of_unusual_configs(draw):
    config = read(DRAWS[draw])
    family = FAMILIES[config.family]
    assert family.config_from_hf(family.config_to_hf(config, "causal_lm")) == config


@pytest.mark.parametrize("head", ["causal_lm", "sequence_classifier", "token_classifier", "embedding"])
def test_own_configs_round_trip(head):
    family = FAMILIES["langwright"]
    config = vanilla_config(family="langwright", n_labels=4, eos_ids=(1, 2), pooling="mean")
    written = json.loads(json.dumps(family.config_to_hf(config, head)))
    assert find_family(written) is family
    assert family.config_from_hf(written) == config
    assert family.head_of(written) == head


def test_gpt2():
    config = read(PUBLISHED["gpt2"])
    assert (config.d_model, config.n_layers, config.n_heads, config.d_head, config.d_mlp) == (768, 12, 12, 64, 3072)
    assert (config.positions, config.norm, config.activation) == ("learned", "layernorm", "gelu_tanh")
    assert config.tie_embeddings
    assert config.eos_ids == (50256,)


def test_llama3():
    spec = read(PUBLISHED["Llama-3.2-1B"]).layer_specs["full"]
    scaling = Llama3Scaling(factor=32, low_freq_factor=1, high_freq_factor=4, original_positions=8192)
    assert spec.rope == Rope(theta=500_000, scaling=scaling)


def test_mistral_windows():
    assert read(PUBLISHED["Mistral-7B-v0.1"]).layer_specs["full"].window == 4096
    assert read(PUBLISHED["Mistral-7B-v0.3"]).layer_specs["full"].window is None


def test_qwen():
    older, newer = read(PUBLISHED["Qwen2.5-0.5B"]), read(PUBLISHED["Qwen3-0.6B"])
    assert (older.qkv_bias, older.o_bias, older.qk_norm) == (True, False, False)
    assert (newer.qkv_bias, newer.o_bias, newer.qk_norm) == (False, False, True)
    assert newer.d_head == 128 != newer.d_model // newer.n_heads
    values = PUBLISHED["Qwen2.5-0.5B"] | {"use_sliding_window": True, "max_window_layers": 20}
    config = read(values)
    assert config.layer_types == ("full",) * 20 + ("sliding",) * 4
    assert config.layer_specs["sliding"].window == 32768


def test_gemma():
    second, third = read(PUBLISHED["gemma-2-2b"]), read(PUBLISHED["gemma-3-1b-it"])
    assert second.layer_types == ("sliding", "full") * 13
    assert (second.attn_softcap, second.logit_softcap) == (50.0, 30.0)
    assert second.embed_scale == 48.0
    assert third.layer_types == (("sliding",) * 5 + ("full",)) * 4 + ("sliding",) * 2
    assert third.layer_specs["sliding"] == LayerSpec(window=512, rope=Rope(theta=10_000))
    assert third.layer_specs["full"] == LayerSpec(rope=Rope(theta=1_000_000))
    assert (third.attn_softcap, third.logit_softcap, third.eos_ids) == (None, None, (1, 106))


def test_pythia():
    config = read(PUBLISHED["pythia-160m"])
    assert config.parallel_residual
    assert config.layer_specs["full"].rope == Rope(theta=10_000, fraction=0.25)
    assert not config.tie_embeddings


def test_absent_and_null_may_differ():
    """Gemma 2's soft-caps have defaults, and null turns them off."""
    values = {k: v for k, v in PUBLISHED["gemma-2-2b"].items() if not k.endswith("softcapping")}
    assert read(values).attn_softcap == 50.0
    assert read(values | {"attn_logit_softcapping": None, "final_logit_softcapping": None}).attn_softcap is None


@EVERY
def test_unknown_keys_are_refused_by_name(name):
    with pytest.raises(UserError, match=r"'alibi_slopes'.*unknown for this architecture"):
        read(PUBLISHED[name] | {"alibi_slopes": 0.5})


@pytest.mark.parametrize(
    ("name", "changes", "named"),
    [
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx"),
        ("gpt2", {"add_cross_attention": True}, "add_cross_attention"),
        ("gpt2", {"activation_function": "mish"}, "activation_function"),
        ("gpt2", {"n_head": 7}, "n_embd"),
        ("gpt2", {"quantization_config": {"bits": 4}}, "quantization_config"),
        ("gpt2", {"pruned_heads": {"0": [1]}}, "pruned_heads"),
        ("Llama-3.2-1B", {"rope_interleaved": True}, "rope_interleaved"),
        ("Llama-3.2-1B", {"rope_scaling": {"rope_type": "longrope", "factor": 2}}, "longrope"),
        ("Llama-3.2-1B", {"rope_scaling": {"rope_type": "linear"}}, "factor"),
        ("Llama-3.2-1B", {"rope_scaling": {"rope_type": "linear", "factor": 2, "depth": 1}}, "depth"),
        ("Llama-3.2-1B", {"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
        ("Llama-3.2-1B", {"sliding_window": 512}, "sliding_window"),
        ("Llama-3.2-1B", {"num_key_value_heads": 5}, "n_kv_heads"),
        ("Llama-3.2-1B", {"num_key_value_heads": 0}, "n_kv_heads"),
        ("Qwen2.5-0.5B", {"layer_types": ["sliding_attention"] * 24}, "sliding_window"),
        ("Qwen2.5-0.5B", {"layer_types": ["full_attention"] * 23}, "layer_types"),
        ("Qwen2.5-0.5B", {"layer_types": ["linear_attention"] * 24}, "linear_attention"),
        ("Qwen2.5-0.5B", {"use_mrope": True}, "use_mrope"),
        ("gemma-2-2b", {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
        ("gemma-2-2b", {"query_pre_attn_scalar": 0}, "query_pre_attn_scalar"),
        ("gemma-3-1b-it", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping"),
        ("gemma-3-1b-it", {"sliding_window_pattern": 0}, "sliding_window_pattern"),
        ("gemma-3-1b-it", {"model_type": "gemma3", "text_config": {}, "vision_config": {}}, "images"),
        ("pythia-160m", {"rotary_pct": 0.3}, "rotated dimensions"),
        ("pythia-160m", {"hidden_act": "gelu_10"}, "hidden_act"),
    ],
)
def test_unsupported_values_are_refused_by_name(name, changes, named):
    with pytest.raises(UserError, match=named) as caught:
        read(PUBLISHED[name] | changes)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", ["64", 6.4, True, [64], {"a": 1}])
@pytest.mark.parametrize(
    ("name", "key"), [("gpt2", "n_embd"), ("pythia-160m", "hidden_size"), ("Qwen3-0.6B", "head_dim")]
)
def test_values_of_another_type_are_refused(name, key, value):
    with pytest.raises(FormatError, match=key):
        read(PUBLISHED[name] | {key: value})


@pytest.mark.parametrize("name", [name for name in PUBLISHED if name != "gpt2"])
def test_missing_sizes_are_named(name):
    values = {key: value for key, value in PUBLISHED[name].items() if key != "hidden_size"}
    with pytest.raises(FormatError, match="'hidden_size' is missing"):
        read(values)


@pytest.mark.parametrize("value", [0, -1, 10**400, 10**18])
@pytest.mark.parametrize(
    ("name", "key"), [("gpt2", "n_head"), ("gemma-2-2b", "hidden_size"), ("pythia-160m", "vocab_size")]
)
def test_impossible_sizes_are_refused_by_name(name, key, value):
    with pytest.raises(FormatError, match=key):
        read(PUBLISHED[name] | {key: value})


@EVERY
def test_a_lying_layer_count_does_not_fill_memory(name):
    key = "n_layer" if name == "gpt2" else "num_hidden_layers"
    with pytest.raises(UserError, match="n_layers is 1000000000000"):
        read(PUBLISHED[name] | {key: 10**12})


def test_unknown_architectures_are_met_with_the_known_ones():
    with pytest.raises(UserError, match=r"'qwen2_' is not supported; did you mean 'qwen2'.*supported: .*llama"):
        find_family({"model_type": "qwen2_"})
    with pytest.raises(UserError, match="None is not supported"):
        find_family({})


@pytest.mark.parametrize(
    ("name", "changes", "named"),
    [
        ("Llama-3.2-1B", {"norm": "layernorm"}, "norm"),
        ("Llama-3.2-1B", {"layer_specs": {"full": LayerSpec(window=9, rope=Rope())}}, "layer_specs"),
        ("Llama-3.2-1B", {"d_model": 2047}, "d_model"),
        ("Llama-3.2-1B", {"o_bias": True}, "o_bias"),
        ("gpt2", {"n_kv_heads": 1}, "n_kv_heads"),
        ("gpt2", {"attn_scale": 0.3}, "attn_scale"),
        ("Qwen3-0.6B", {"qk_norm": False}, "qk_norm"),
        ("gemma-2-2b", {"embed_scale": 1.0}, "embed_scale"),
        ("gemma-2-2b", {"attn_scale": 0.3}, "attn_scale"),
        ("pythia-160m", {"gated": True}, "gated"),
    ],
)
def test_what_a_dialect_cannot_say_is_not_written(name, changes, named):
    config = read(PUBLISHED[name]).replace(**changes)
    with pytest.raises(UserError, match=named):
        FAMILIES[config.family].config_to_hf(config, "causal_lm")


def test_training_settings_do_not_stop_a_model_from_being_written():
    config = read(PUBLISHED["Llama-3.2-1B"]).replace(dropout=0.1, mlp_dropout=0.1, embed_dropout=0.2)
    FAMILIES["llama"].config_to_hf(config, "causal_lm")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(sorted(PUBLISHED)), st.data())
def test_anything_else_is_a_model_or_one_line(name, data):
    values = dict(PUBLISHED[name])
    extra = ["layer_types", "rope_parameters", "rope_scaling", "id2label", "num_labels", "head_dim", "architectures"]
    for key in data.draw(st.lists(st.sampled_from(sorted(values) + extra), max_size=3)):
        values[key] = data.draw(JSON)
    try:
        config = read(values)
        FAMILIES[config.family].head_of(values)
        message = ""
    except UserError as error:
        message = str(error)
    assert "\n" not in message
    assert len(message) < 1000
