"""How well a classifier tells labels: rates by label, what it confuses, whether its probabilities can be believed."""

import math
from dataclasses import dataclass

import numpy as np

from langwright.train.loop import Score

BINS = 15
"""Of confidence, for the calibration error (Guo et al. 2017, arXiv:1706.04599)."""


@dataclass(frozen=True)
class Judged:
    """Of ``n`` texts whose labels are known. ``confusion`` (labels, labels): rows are true, columns are told."""

    loss: float
    """Nats a text, before calibration."""
    confusion: np.ndarray
    temperature: float
    """What logits must be divided by so that the loss on these texts is least (Guo et al. 2017)."""
    calibration_error: float
    """Mean distance of confidence and rate of right answers, before calibration."""
    calibrated_error: float
    """The same after it."""
    tokens: int

    @property
    def n(self) -> int:
        """Texts."""
        return int(self.confusion.sum())

    @property
    def accuracy(self) -> float:
        """Share that is told right."""
        return float(np.trace(self.confusion)) / self.n

    @property
    def precision(self) -> np.ndarray:
        """By label (labels,): of those told so, the share that is; 0 where none was."""
        return np.diag(self.confusion) / np.maximum(self.confusion.sum(0), 1)

    @property
    def recall(self) -> np.ndarray:
        """By label: of those that are so, the share that was told; 0 where there are none."""
        return np.diag(self.confusion) / np.maximum(self.confusion.sum(1), 1)

    @property
    def f1(self) -> np.ndarray:
        """By label: the harmonic mean of both."""
        together = self.precision + self.recall
        return np.divide(2 * self.precision * self.recall, together, out=np.zeros_like(together), where=together > 0)

    @property
    def macro_f1(self) -> float:
        """Mean over the labels that occur."""
        return float(self.f1[self.confusion.sum(1) > 0].mean())

    @property
    def is_finite(self) -> bool:
        """Whether the weights that were judged are sound."""
        return math.isfinite(self.loss)

    def score(self, step: int) -> Score:
        """As the figures of that step."""
        return Score(
            step=step,
            loss=self.loss,
            accuracy=self.accuracy,
            macro_f1=self.macro_f1,
            temperature=self.temperature,
        )


def judge(logits: np.ndarray, labels: np.ndarray, *, tokens: int = 0) -> Judged:
    """Compare ``logits`` (n, labels) with the true ``labels`` (n,)."""
    confusion = np.zeros((logits.shape[1], logits.shape[1]), dtype=np.int64)
    np.add.at(confusion, (labels, logits.argmax(1)), 1)
    temperature = fit_temperature(logits, labels) if np.isfinite(logits).all() else 1.0
    return Judged(
        loss=mean_nll(logits, labels),
        confusion=confusion,
        temperature=temperature,
        calibration_error=calibration_error(logits, labels),
        calibrated_error=calibration_error(logits / temperature, labels),
        tokens=tokens,
    )


def mean_nll(logits: np.ndarray, labels: np.ndarray) -> float:
    """Mean of -ln p(label), nats."""
    top = logits.max(1, keepdims=True)
    norms = np.log(np.exp(logits - top).sum(1)) + top[:, 0]
    return float((norms - logits[np.arange(len(labels)), labels]).mean())


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """The divisor between 0.05 and 20 that makes `mean_nll` least: golden-section search on its logarithm.

    In 1 / temperature the loss is convex, so there is one least value.
    """
    low, high, golden = math.log(0.05), math.log(20.0), (math.sqrt(5) - 1) / 2
    left, right = high - golden * (high - low), low + golden * (high - low)
    at_left, at_right = (mean_nll(logits / math.exp(at), labels) for at in (left, right))
    for _ in range(40):
        if at_left <= at_right:
            high, right, at_right = right, left, at_left
            left = high - golden * (high - low)
            at_left = mean_nll(logits / math.exp(left), labels)
        else:
            low, left, at_left = left, right, at_right
            right = low + golden * (high - low)
            at_right = mean_nll(logits / math.exp(right), labels)
    return math.exp((low + high) / 2)


def calibration_error(logits: np.ndarray, labels: np.ndarray, bins: int = BINS) -> float:
    """Expected calibration error: |rate of right answers - mean confidence| in bins of confidence, by their share."""
    shifted = np.exp(logits - logits.max(1, keepdims=True))
    confidence = shifted.max(1) / shifted.sum(1)
    right = logits.argmax(1) == labels
    places = np.minimum((confidence * bins).astype(int), bins - 1)
    error = 0.0
    for place in np.unique(places):
        here = places == place
        error += here.mean() * abs(right[here].mean() - confidence[here].mean())
    return float(error)
