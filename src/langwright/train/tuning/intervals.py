"""How far a figure of some examples can be trusted: bootstrap confidence intervals."""

from collections.abc import Callable

import numpy as np

DRAWS, LEVEL = 1000, 0.95


def interval(
    measure: Callable[[np.ndarray], float], n: int, *, draws: int = DRAWS, level: float = LEVEL, seed: int = 0
) -> tuple[float, float]:
    """The percentile bootstrap (Efron 1979): where the middle ``level`` of the figures of redrawn examples lies.

    ``measure`` is given the numbers (n,) of ``n`` examples drawn with replacement. NaN, where nothing is left to
    measure, does not count; (NaN, NaN) where that is all there is. The same ``seed`` draws the same.
    """
    rng = np.random.default_rng(seed)
    found = np.array([measure(rng.integers(0, n, n)) for _ in range(draws)])
    found = found[np.isfinite(found)]
    if not len(found):
        return float("nan"), float("nan")
    low, high = np.quantile(found, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def share_interval(right: np.ndarray) -> tuple[float, float]:
    """Of the share of ``right`` (n,) bool.

    Where all are or none is, redrawing them tells nothing, and the ends are the exact binomial ones (Clopper & Pearson
    1934).
    """
    if right.all() or not right.any():
        reach = ((1 - LEVEL) / 2) ** (1 / len(right))
        return (reach, 1.0) if right.all() else (0.0, 1 - reach)
    return interval(lambda chosen: float(right[chosen].mean()), len(right))


def told(value: float, ends: tuple[float, float], n: int) -> str:
    """``93.2% (95 % CI 92.1% to 94.2%, n = 3,080)``."""
    return f"{value:.1%} (95 % CI {ends[0]:.1%} to {ends[1]:.1%}, n = {n:,})"
