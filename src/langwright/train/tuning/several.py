"""How well a classifier tells labels of which a text has several or none."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from langwright.train.loop import Score
from langwright.train.tuning.intervals import interval, share_interval, told


@dataclass(frozen=True)
class JudgedSeveral:
    """Of texts whose labels are known: ``shares`` (n, labels) are the probabilities told, ``true`` what is so."""

    loss: float
    """Nats a text and label."""
    shares: np.ndarray
    true: np.ndarray
    threshold: float
    """How probable a label has to be to be told."""
    tokens: int

    @property
    def n(self) -> int:
        """Texts."""
        return len(self.true)

    @property
    def said(self) -> np.ndarray:
        """The labels that are told, (n, labels) bool."""
        return self.shares > self.threshold

    @property
    def subset_accuracy(self) -> float:
        """Share of texts of which every label is told right."""
        return float((self.said == self.true).all(1).mean())

    @property
    def micro_f1(self) -> float:
        """Over all labels of all texts together."""
        return _micro(self.true, self.said)

    @property
    def macro_f1(self) -> float:
        """Mean over the labels that occur."""
        return _macro(self.true, self.said)

    @property
    def is_finite(self) -> bool:
        """Whether the weights that were judged are sound."""
        return math.isfinite(self.loss)

    def score(self, step: int) -> Score:
        """As the figures of that step."""
        more = {"micro_f1": self.micro_f1, "subset_accuracy": self.subset_accuracy}
        return Score(step=step, loss=self.loss, macro_f1=self.macro_f1, more=more, n=self.n)

    def values(self, labels: Sequence[str]) -> dict[str, Any]:
        """All of it by name, with 95 % confidence intervals.

        Beside the figures stand the thresholds that would tell each label best on these same texts, and what they would
        give there: a bound from above, as they saw what they are judged by.
        """
        true, said = self.true, self.said
        precision, recall, f1 = _rates(true, said)
        columns = zip(self.shares.T, true.T, strict=True)
        fitted = np.array([fit_threshold(share, holds, self.threshold) for share, holds in columns])
        better = self.shares > fitted
        return {
            "n": self.n,
            "threshold": self.threshold,
            "micro_f1": self.micro_f1,
            "macro_f1": self.macro_f1,
            "subset_accuracy": self.subset_accuracy,
            "ci95": {
                "micro_f1": interval(lambda rows: _micro(true[rows], said[rows]), self.n),
                "macro_f1": interval(lambda rows: _macro(true[rows], said[rows]), self.n),
                "subset_accuracy": share_interval((said == true).all(1)),
            },
            "loss": self.loss,
            "labels": {
                name: {
                    "n": int(true[:, at].sum()),
                    "precision": float(precision[at]),
                    "recall": float(recall[at]),
                    "f1": float(f1[at]),
                    "fitted_threshold": float(fitted[at]),
                }
                for at, name in enumerate(labels)
            },
            "fitted_on_these_texts": {"micro_f1": _micro(true, better), "macro_f1": _macro(true, better)},
        }

    def lines(self, values: dict[str, Any]) -> list[str]:
        """The gist of its `values`."""
        ends, by_label, fitted = values["ci95"], values["labels"], values["fitted_on_these_texts"]
        worst = sorted(by_label, key=lambda name: by_label[name]["f1"])[:3]
        names = {"micro F1": "micro_f1", "macro F1": "macro_f1", "all labels right": "subset_accuracy"}
        return [
            ", ".join(f"{shown} {told(values[name], ends[name], self.n)}" for shown, name in names.items()),
            "weakest labels: "
            + ", ".join(f"{name} (F1 {by_label[name]['f1']:.0%}, n = {by_label[name]['n']:,})" for name in worst),
            f"thresholds fitted on these same {self.n:,} texts would give micro F1 {fitted['micro_f1']:.1%}, which "
            "flatters; they are not used",
        ]


def judge_several(logits: np.ndarray, true: np.ndarray, threshold: float, *, tokens: int = 0) -> JudgedSeveral:
    """Compare ``logits`` (n, labels) with ``true`` (n, labels) of 0 and 1."""
    # ln(1 + exp(x)) - x y, which stays finite
    nll = np.logaddexp(0.0, logits) - logits * true
    shares = np.exp(-np.logaddexp(0.0, -logits))
    return JudgedSeveral(float(nll.mean()), shares, true.astype(bool), threshold, tokens)


def fit_threshold(shares: np.ndarray, true: np.ndarray, otherwise: float) -> float:
    """The threshold on ``shares`` (n,) with the best F1 for ``true`` (n,) bool; ``otherwise`` where none is true."""
    if not true.any():
        return otherwise
    order = np.argsort(-shares, kind="stable")
    held, hits = shares[order], true[order].cumsum()
    f1 = 2 * hits / (np.arange(1, len(held) + 1) + true.sum())
    f1[:-1][held[:-1] == held[1:]] = -1  # nothing parts equal shares
    best = int(f1.argmax())
    return float((held[best] + (held[best + 1] if best + 1 < len(held) else 0.0)) / 2)


def _counts(true: np.ndarray, said: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Hits, told and true by label."""
    return (true & said).sum(0), said.sum(0), true.sum(0)


def _rates(true: np.ndarray, said: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    hits, tells, holds = _counts(true, said)
    return hits / np.maximum(tells, 1), hits / np.maximum(holds, 1), 2 * hits / np.maximum(tells + holds, 1)


def _micro(true: np.ndarray, said: np.ndarray) -> float:
    hits, tells, holds = (int(each.sum()) for each in _counts(true, said))
    return 2 * hits / max(tells + holds, 1)


def _macro(true: np.ndarray, said: np.ndarray) -> float:
    occurs = true.any(0)
    return float(_rates(true, said)[2][occurs].mean()) if occurs.any() else math.nan
