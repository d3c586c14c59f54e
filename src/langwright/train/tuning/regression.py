"""How well a number is told of a text."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from langwright.train.loop import Score
from langwright.train.tuning.intervals import interval


@dataclass(frozen=True)
class JudgedNumbers:
    """Of texts whose number is known: what is ``said`` of each, and what is ``true``, (n,)."""

    said: np.ndarray
    true: np.ndarray
    tokens: int

    @property
    def n(self) -> int:
        """Texts."""
        return len(self.true)

    @property
    def loss(self) -> float:
        """Mean square of the errors."""
        return float(((self.said - self.true) ** 2).mean())

    @property
    def is_finite(self) -> bool:
        """Whether the weights that were judged are sound."""
        return math.isfinite(self.loss)

    @property
    def figures(self) -> dict[str, float]:
        """Root of the mean square, and both correlations where they exist."""
        found = {"rmse": math.sqrt(self.loss), "pearson": pearson(self.said, self.true)}
        found["spearman"] = pearson(ranks(self.said), ranks(self.true))
        return {name: value for name, value in found.items() if math.isfinite(value)}

    def score(self, step: int) -> Score:
        """As the figures of that step."""
        return Score(step=step, loss=self.loss, more=self.figures, n=self.n)

    def values(self) -> dict[str, Any]:
        """All of it by name, with 95 % confidence intervals."""
        measures = {
            "rmse": lambda said, true: math.sqrt(((said - true) ** 2).mean()),
            "pearson": pearson,
            "spearman": lambda said, true: pearson(ranks(said), ranks(true)),
        }
        figures = self.figures
        ends = {
            name: interval(lambda rows, measure=measures[name]: measure(self.said[rows], self.true[rows]), self.n)
            for name in figures
        }
        return {"n": self.n, **figures, "ci95": ends, "loss": self.loss}

    def lines(self, values: dict[str, Any]) -> list[str]:
        """The gist of its `values`."""
        ends = values["ci95"].items()
        parts = [f"{name} {values[name]:.3f} (95 % CI {low:.3f} to {high:.3f})" for name, (low, high) in ends]
        return [f"{', '.join(parts)}, n = {self.n:,}"]


def pearson(one: np.ndarray, other: np.ndarray) -> float:
    """The correlation of two (n,); NaN where one does not vary."""
    one, other = one - one.mean(), other - other.mean()
    scale = math.sqrt(float((one**2).sum()) * float((other**2).sum()))
    return float((one * other).sum()) / scale if scale > 0 else math.nan


def ranks(values: np.ndarray) -> np.ndarray:
    """The rank of each of (n,), from 1; equal ones share the mean of theirs (so Pearson's of ranks is Spearman's)."""
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (counts.cumsum() - (counts - 1) / 2)[places]
