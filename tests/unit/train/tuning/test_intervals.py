"""Bootstrap intervals against what theory says of shares and means."""

import math

import numpy as np
import pytest

from langwright.train.tuning.intervals import interval, share_interval, told


def test_of_a_share_it_is_the_binomials():
    right = np.arange(2000) < 1600
    low, high = share_interval(right)
    error = 1.96 * math.sqrt(0.8 * 0.2 / 2000)
    assert (low, high) == pytest.approx((0.8 - error, 0.8 + error), abs=0.003)
    assert share_interval(right) == (low, high)


def test_all_right_is_no_certainty():
    """Three of three: a rate of 0.29 would still give that once in forty."""
    low, high = share_interval(np.ones(3, dtype=bool))
    assert (low**3, high) == pytest.approx((0.025, 1.0))
    assert share_interval(np.zeros(3, dtype=bool)) == pytest.approx((0.0, 1 - low))


def test_of_a_mean_it_holds_the_truth_as_often_as_it_says():
    """Means of normal samples lie within their 90 % intervals 90 times in 100, give or take six (three errors: 9)."""
    rng = np.random.default_rng(1)
    held = 0
    for seed in range(100):
        sample = rng.normal(size=200)
        low, high = interval(
            lambda rows, sample=sample: float(sample[rows].mean()), 200, draws=200, level=0.9, seed=seed
        )
        held += low <= 0 <= high
    assert 81 <= held <= 99


def test_nothing_to_measure_is_no_number():
    assert all(map(math.isnan, interval(lambda rows: math.nan, 5, draws=3)))
    assert told(0.5, (0.25, 0.75), 1000) == "50.0% (95 % CI 25.0% to 75.0%, n = 1,000)"
