"""Sinusoids and rotations, from their definitions."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from langwright.model.config import DynamicScaling, LinearScaling, Rope
from langwright.model.positions import rotary_rates, rotary_tables, rotate, sinusoid

CPU = torch.device("cpu")


def test_sinusoid_is_the_papers_formula():
    table = sinusoid(torch.tensor([[0, 1, 7]]), 6)[0]
    for row, position in zip(table.tolist(), (0, 1, 7), strict=True):
        for pair in range(3):
            angle = position / 10_000 ** (2 * pair / 6)
            assert row[2 * pair] == pytest.approx(math.sin(angle), abs=1e-6)
            assert row[2 * pair + 1] == pytest.approx(math.cos(angle), abs=1e-6)


def turned(x: torch.Tensor, positions: list[int], rope: Rope) -> torch.Tensor:
    """One head's vectors (T, E) at ``positions``."""
    cos, sin = rotary_tables(rope, x.shape[-1], torch.tensor([positions]), 0)
    return rotate(x[None, None], cos, sin)[0, 0]


@settings(max_examples=50, deadline=None)
@given(
    st.sampled_from([4, 8, 32]),
    st.integers(0, 500),
    st.integers(0, 500),
    st.integers(0, 300),
    st.sampled_from([0.25, 0.5, 1.0]),
)
def test_scores_depend_on_distance_alone(d_head, first, second, shift, fraction):
    rope = Rope(theta=100.0, fraction=1.0 if d_head == 4 else fraction)
    q, k = torch.randn(2, 1, d_head, generator=torch.Generator().manual_seed(d_head), dtype=torch.float64)
    here = turned(q, [first], rope) @ turned(k, [second], rope).T
    there = turned(q, [first + shift], rope) @ turned(k, [second + shift], rope).T
    torch.testing.assert_close(here, there, atol=2e-3, rtol=1e-3)
    assert turned(q, [first], rope).norm().item() == pytest.approx(q.norm().item(), rel=1e-5)


def test_position_zero_is_left_alone():
    x = torch.randn(1, 8)
    assert torch.equal(turned(x, [0], Rope()), x)


def test_pairs_are_halves_and_the_rest_is_kept():
    x = torch.arange(1.0, 9.0)[None]  # four rotated dimensions, pairs (0, 2) and (1, 3)
    out = turned(x, [3], Rope(theta=16.0, fraction=0.5))[0]
    for pair, rate in ((0, 1.0), (1, 16**-0.5)):
        first, second, angle = x[0, pair].item(), x[0, pair + 2].item(), 3 * rate
        assert out[pair].item() == pytest.approx(first * math.cos(angle) - second * math.sin(angle), rel=1e-5)
        assert out[pair + 2].item() == pytest.approx(second * math.cos(angle) + first * math.sin(angle), rel=1e-5)
    assert torch.equal(out[4:], x[0, 4:])


def test_linear_scaling_is_a_shorter_position():
    plain, scaled = Rope(), Rope(scaling=LinearScaling(factor=4.0))
    x = torch.randn(2, 8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(turned(x, [8, 20], scaled), turned(x, [2, 5], plain))


def test_dynamic_scaling_begins_beyond_the_original_length():
    rope = Rope(scaling=DynamicScaling(factor=2.0, original_positions=10))
    plain, _ = rotary_rates(Rope(), 8, 10, CPU)
    assert torch.equal(rotary_rates(rope, 8, 10, CPU)[0], plain)
    longer, _ = rotary_rates(rope, 8, 20, CPU)
    assert longer[0] == plain[0]
    assert (longer[1:] < plain[1:]).all()


def test_tables_are_float32_and_keep_the_vectors_dtype():
    cos, sin = rotary_tables(Rope(), 8, torch.tensor([[100_000]]), 0)
    assert cos.dtype == sin.dtype == torch.float32
    assert rotate(torch.randn(1, 1, 1, 8).bfloat16(), cos, sin).dtype == torch.bfloat16
