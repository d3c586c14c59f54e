"""Rates and calibration against numbers worked out by hand, and scikit-learn's definitions."""

import math

import numpy as np
import pytest

from langwright.train.tuning.judged import calibration_error, fit_temperature, judge, mean_nll


def test_rates_by_label():
    told = [0, 0, 1, 1, 1, 2]
    labels = np.array([0, 0, 0, 1, 2, 2])
    logits = np.eye(3)[told] * 4.0
    found = judge(logits, labels, tokens=9)
    assert found.confusion.tolist() == [[2, 1, 0], [0, 1, 0], [0, 1, 1]]
    assert found.accuracy == pytest.approx(4 / 6)
    assert found.precision.tolist() == pytest.approx([1.0, 1 / 3, 1.0])
    assert found.recall.tolist() == pytest.approx([2 / 3, 1.0, 1 / 2])
    assert found.f1.tolist() == pytest.approx([0.8, 0.5, 2 / 3])
    assert found.macro_f1 == pytest.approx((0.8 + 0.5 + 2 / 3) / 3)
    assert found.n == 6


def test_a_label_that_never_occurs_does_not_count():
    found = judge(np.eye(3)[[0, 1]] * 2.0, np.array([0, 1]))
    assert found.macro_f1 == 1.0


def test_the_loss_is_that_of_a_softmax():
    logits = np.array([[0.0, math.log(3.0)], [1000.0, 0.0]])
    assert mean_nll(logits, np.array([1, 0])) == pytest.approx(-math.log(0.75) / 2)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_the_temperature_is_found(temperature: float):
    """Labels drawn from softmax(logits / T) are best told by dividing by T, and then confidence is honest."""
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(40_000, 4)) * 3
    chances = np.exp(logits / temperature)
    chances /= chances.sum(1, keepdims=True)
    labels = (chances.cumsum(1) > rng.random((len(logits), 1))).argmax(1)
    assert fit_temperature(logits, labels) == pytest.approx(temperature, rel=0.05)
    found = judge(logits, labels)
    assert found.calibrated_error < 0.01
    assert (found.calibration_error > 0.05) == (temperature != 1.0)


def test_calibration_error_by_hand():
    logits = np.log(np.array([[0.8, 0.2]] * 10))
    labels = np.array([0] * 6 + [1] * 4)  # 80 % sure, 60 % right
    assert calibration_error(logits, labels) == pytest.approx(0.2)
