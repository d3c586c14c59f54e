"""Rotary frequencies against `transformers`' own functions."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from langwright.model.families.rotary import rope_from
from langwright.model.positions import rotary_rates

_HEADS = st.sampled_from([8, 16, 64, 80, 128])
_THETA = st.sampled_from([100.0, 1e4, 5e5, 1e6])
_FACTOR = st.floats(1.0, 40.0)
_ORIGINAL = st.sampled_from([16, 256, 2048, 8192, 32768])


def _compare(kind: str, d_head: int, theta: float, longest: int, max_positions: int, **values):
    parameters = {"rope_type": kind, "rope_theta": theta, **values}
    config = LlamaConfig(
        hidden_size=2 * d_head,
        num_attention_heads=2,
        max_position_embeddings=max_positions,
        rope_parameters=dict(parameters),
    )
    expected, factor = ROPE_INIT_FUNCTIONS[kind](config, torch.device("cpu"), seq_len=longest)
    rope = rope_from(parameters, "test", max_positions, 1e4)
    rates, ours = rotary_rates(rope, d_head, longest, torch.device("cpu"))
    assert ours == pytest.approx(factor, rel=1e-12)
    torch.testing.assert_close(rates, expected, rtol=1e-6, atol=0)


@settings(max_examples=40, deadline=None)
@given(_HEADS, _THETA, _FACTOR)
def test_linear(d_head, theta, factor):
    _compare("linear", d_head, theta, 0, 2048, factor=factor)


@settings(max_examples=60, deadline=None)
@given(_HEADS, _THETA, _FACTOR, _ORIGINAL, st.floats(0.1, 10.0))
def test_dynamic(d_head, theta, factor, original, share):
    """Within the original length nothing changes; beyond it the base grows with the length."""
    _compare("dynamic", d_head, theta, max(1, int(original * share)), original, factor=factor)


@settings(max_examples=60, deadline=None)
@given(_HEADS, _THETA, _FACTOR, _ORIGINAL, st.floats(1.0, 4.0), st.floats(4.5, 16.0))
def test_llama3(d_head, theta, factor, original, low, high):
    _compare(
        "llama3",
        d_head,
        theta,
        0,
        original * 8,
        factor=factor,
        low_freq_factor=low,
        high_freq_factor=high,
        original_max_position_embeddings=original,
    )


@settings(max_examples=120, deadline=None)
@given(
    _HEADS,
    _THETA,
    _FACTOR,
    _ORIGINAL,
    st.fixed_dictionaries(
        {},
        optional={
            "beta_fast": st.floats(8.0, 64.0),
            "beta_slow": st.floats(0.5, 4.0),
            "attention_factor": st.floats(0.5, 2.0),
            "mscale": st.floats(0.1, 2.0),
            "mscale_all_dim": st.floats(0.1, 2.0),
            "truncate": st.booleans(),
        },
    ),
)
def test_yarn(d_head, theta, factor, original, optional):
    _compare(
        "yarn", d_head, theta, 0, original * 8, factor=factor, original_max_position_embeddings=original, **optional
    )
