"""Windows over long texts, and the figures of a score."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from langwright.core.errors import UserError
from langwright.infer.scoring import Score, window_sizes, windows


@given(st.integers(1, 200), st.integers(1, 50), st.integers(1, 50))
def test_windows_count_every_prediction_once_and_fit_the_context(length, context, stride):
    stride = min(stride, context)
    counted = []
    for number, (start, first, end) in enumerate(windows(length, context, stride)):
        assert 0 <= start <= first < end <= length
        assert end - start <= context
        assert number == 0 or first - start >= context - stride
        counted += range(first, end)
    assert counted == list(range(length))


def test_windows_of_a_long_text():
    assert [tuple(window) for window in windows(10, 4, 2)] == [(0, 0, 4), (2, 4, 6), (4, 6, 8), (6, 8, 10)]
    assert [tuple(window) for window in windows(10, 4, 4)] == [(0, 0, 4), (4, 4, 8), (6, 8, 10)]
    assert [tuple(window) for window in windows(3, 4, 2)] == [(0, 0, 3)]


def test_window_sizes_have_bounds():
    assert window_sizes(8192, None, None) == (2048, 1024)
    assert window_sizes(100, None, None) == (100, 50)
    assert window_sizes(1, None, None) == (1, 1)
    assert window_sizes(100, 10, None) == (10, 5)
    for context, stride in ((0, None), (101, None), (-5, None), (10, 11), (10, 0)):
        with pytest.raises(UserError, match="choose 1 to"):
            window_sizes(100, context, stride)


def test_a_scores_figures():
    score = Score(nll=8 * math.log(2), tokens=4, bytes=16, context=8, stride=4)
    assert score.bits_per_byte == pytest.approx(0.5)
    assert score.perplexity == pytest.approx(4.0)
    assert Score(nll=1e6, tokens=1, bytes=1, context=8, stride=4).perplexity == math.inf
