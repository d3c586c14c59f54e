"""How well a classifier tells labels: rates by label, what it confuses, whether its probabilities can be believed."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from langwright.train.loop import Score
from langwright.train.tuning.intervals import interval, share_interval, told

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
    true: np.ndarray
    """The label of each text, (n,)."""
    said: np.ndarray
    """The likeliest label of each text."""

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
        return _rates(self.confusion)[0]

    @property
    def recall(self) -> np.ndarray:
        """By label: of those that are so, the share that was told; 0 where there are none."""
        return _rates(self.confusion)[1]

    @property
    def f1(self) -> np.ndarray:
        """By label: the harmonic mean of both."""
        return _rates(self.confusion)[2]

    @property
    def macro_f1(self) -> float:
        """Mean over the labels that occur."""
        return _macro(self.confusion)

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
            n=self.n,
        )

    def values(self, labels: Sequence[str], out_of_scope: str | None = None) -> dict[str, Any]:
        """All of it by name, with 95 % confidence intervals; with ``out_of_scope`` that label apart from the others."""
        L = len(labels)
        by_label = {
            name: {
                "n": int(self.confusion[number].sum()),
                "precision": float(self.precision[number]),
                "recall": float(self.recall[number]),
                "f1": float(self.f1[number]),
            }
            for number, name in enumerate(labels)
        }
        confused = [
            {"true": labels[true], "told": labels[told], "n": int(self.confusion[true, told])}
            for true, told in zip(*np.nonzero(self.confusion), strict=True)
            if true != told
        ]
        confused.sort(key=lambda pair: -pair["n"])
        found = {
            "n": self.n,
            "accuracy": self.accuracy,
            "macro_f1": self.macro_f1,
            "ci95": {
                "accuracy": share_interval(self.true == self.said),
                "macro_f1": interval(lambda rows: _macro(confusion(self.true[rows], self.said[rows], L)), self.n),
            },
            "loss": self.loss,
            "calibration": {
                "temperature": self.temperature,
                "error_before": self.calibration_error,
                "error_after": self.calibrated_error,
            },
            "labels": by_label,
            "confused": confused,
            "confusion": self.confusion.tolist(),
        }
        if out_of_scope is not None:
            outside = self.true == labels.index(out_of_scope)
            right = self.true == self.said
            found["out_of_scope"] = {
                "label": out_of_scope,
                "in_scope_accuracy": _share(right[~outside]),
                "recall": _share(right[outside]),
            }
        return found

    def lines(self, values: dict[str, Any]) -> list[str]:
        """The gist of its `values`."""
        ends, by_label = values["ci95"], values["labels"]
        worst = sorted(by_label, key=lambda name: by_label[name]["f1"])[:3]
        apart = values.get("out_of_scope")
        scope = [] if apart is None else [_scope_line(apart)]
        return [
            f"accuracy {told(self.accuracy, ends['accuracy'], self.n)}, "
            f"macro F1 {told(self.macro_f1, ends['macro_f1'], self.n)}",
            *scope,
            "weakest labels: "
            + ", ".join(f"{name} (F1 {by_label[name]['f1']:.0%}, n = {by_label[name]['n']:,})" for name in worst),
            f"calibration error {self.calibration_error:.1%}, with temperature {self.temperature:.2f} "
            f"{self.calibrated_error:.1%} (n = {self.n:,})",
        ]


def _share(right: np.ndarray) -> dict[str, Any]:
    """A share of ``right`` (n,), its interval and n; null where n is 0."""
    if not len(right):
        return {"n": 0, "share": None, "ci95": None}
    return {"n": len(right), "share": float(right.mean()), "ci95": share_interval(right)}


def _scope_line(apart: dict[str, Any]) -> str:
    parts = {"in-scope accuracy": apart["in_scope_accuracy"], f"recall of {apart['label']}": apart["recall"]}
    return ", ".join(
        f"{name} {told(found['share'], found['ci95'], found['n']) if found['n'] else '(n = 0)'}"
        for name, found in parts.items()
    )


def confusion(true: np.ndarray, said: np.ndarray, labels: int) -> np.ndarray:
    """How often each label (rows) was told to be each (columns), (labels, labels) int64."""
    return np.bincount(true * labels + said, minlength=labels * labels).reshape(labels, labels)


def _rates(confusion: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Precision, recall and F1 by label."""
    hits, said, true = np.diag(confusion), confusion.sum(0), confusion.sum(1)
    return hits / np.maximum(said, 1), hits / np.maximum(true, 1), 2 * hits / np.maximum(said + true, 1)


def _macro(confusion: np.ndarray) -> float:
    return float(_rates(confusion)[2][confusion.sum(1) > 0].mean())


def judge(logits: np.ndarray, labels: np.ndarray, *, tokens: int = 0) -> Judged:
    """Compare ``logits`` (n, labels) with the true ``labels`` (n,)."""
    said = logits.argmax(1)
    temperature = fit_temperature(logits, labels) if np.isfinite(logits).all() else 1.0
    return Judged(
        loss=mean_nll(logits, labels),
        confusion=confusion(labels, said, logits.shape[1]),
        temperature=temperature,
        calibration_error=calibration_error(logits, labels),
        calibrated_error=calibration_error(logits / temperature, labels),
        tokens=tokens,
        true=labels,
        said=said,
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
