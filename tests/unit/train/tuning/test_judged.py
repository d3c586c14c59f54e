"""Rates and calibration against numbers worked out by hand, and scikit-learn's definitions."""

import math

import numpy as np
import pytest

from langwright.train.tuning.judged import calibration_error, fit_temperature, judge, mean_nll
from langwright.train.tuning.regression import JudgedNumbers, pearson, ranks
from langwright.train.tuning.several import fit_threshold, judge_several


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


def test_several_labels_by_hand():
    true = np.array([[1, 0, 0], [1, 1, 0], [0, 0, 0], [0, 1, 0]])
    said = np.array([[1, 0, 0], [1, 0, 0], [1, 0, 0], [0, 1, 0]])
    found = judge_several(np.where(said, 2.0, -2.0), true.astype(np.float32), 0.5)
    assert found.micro_f1 == pytest.approx(2 * 3 / (4 + 4))
    assert found.macro_f1 == pytest.approx((2 * 2 / 5 + 2 / 3) / 2)  # the third label never occurs
    assert found.subset_accuracy == pytest.approx(0.5)
    right, wrong = math.log1p(math.exp(-2)), math.log1p(math.exp(2))
    assert found.loss == pytest.approx((10 * right + 2 * wrong) / 12)
    values = found.values(("a", "b", "c"))
    assert values["labels"]["a"]["precision"] == pytest.approx(2 / 3)
    assert len(found.lines(values)) == 3


def test_the_threshold_with_the_best_f1_is_found():
    """All thresholds between neighbours are tried, against trying them one by one."""
    rng = np.random.default_rng(0)
    for _ in range(20):
        shares, true = rng.random(30).round(1).clip(0.1), rng.random(30) < 0.4
        tried = np.arange(0.05, 1.0, 0.1)
        f1 = [2 * (true & (shares > at)).sum() / ((shares > at).sum() + true.sum()) for at in tried]
        at = fit_threshold(shares, true, 0.5)
        assert 2 * (true & (shares > at)).sum() / ((shares > at).sum() + true.sum()) == pytest.approx(max(f1))
    assert fit_threshold(np.array([0.9, 0.1]), np.zeros(2, dtype=bool), 0.5) == 0.5


def test_numbers_by_hand():
    said, true = np.array([1.0, 2.0, 3.0, 10.0]), np.array([1.0, 3.0, 2.0, 4.0])
    found = JudgedNumbers(said, true, 0)
    assert found.figures["rmse"] == pytest.approx(math.sqrt((0 + 1 + 1 + 36) / 4))
    assert found.figures["pearson"] == pytest.approx(np.corrcoef(said, true)[0, 1])
    assert found.figures["spearman"] == pytest.approx(0.8)  # 1 - 6 * 2 / (4 * 15)
    assert ranks(np.array([5.0, 1.0, 5.0, 7.0])).tolist() == [2.5, 1.0, 2.5, 4.0]
    assert math.isnan(pearson(said, np.ones(4)))
    assert set(JudgedNumbers(said, np.ones(4), 0).values()) == {"n", "rmse", "ci95", "loss"}
