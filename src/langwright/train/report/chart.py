"""Curves as SVG paths: only numbers and labels are made here; the page's template draws and escapes them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

Point = tuple[float, float]
WIDTH, HEIGHT = 640, 250
LEFT, RIGHT, TOP, BOTTOM = 54, 14, 10, 34
MOST_POINTS = 600
"""More than a screen has room for."""
BEGINNING = 0.05
"""Share of a curve that does not decide how far up it is drawn: an untrained model's loss would hide what is learnt."""

FEWEST_LATE = 4
"""Points after the beginning without which everything is drawn."""


@dataclass(frozen=True)
class Line:
    """A curve: ``path`` is what SVG draws, ``dots`` are its points where there are few."""

    label: str
    color: int
    path: str
    dots: tuple[Point, ...]
    faint: bool
    last: str
    """The last value, in words."""


@dataclass(frozen=True)
class Tick:
    """A line of the grid, at ``at``."""

    at: float
    text: str


@dataclass(frozen=True)
class Chart:
    """Everything the template needs."""

    title: str
    x_title: str
    lines: tuple[Line, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]


def draw(
    title: str,
    series: Sequence[tuple[str, Sequence[Point]]],
    *,
    x_title: str = "step",
    smooth: bool = False,
    crop: bool = False,
) -> Chart | None:
    """A chart of (label, points) pairs; None where there is nothing to draw.

    ``smooth`` adds to each curve its running mean and makes it faint; ``crop`` lets the beginning run off the top.
    """
    series = [(label, points) for label, points in series if points]
    if not series:
        return None
    everything = [point for _, points in series for point in points]
    x_low, x_high = _span([x for x, _ in everything])
    late = [y for x, y in everything if x >= x_low + BEGINNING * (x_high - x_low)]
    y_low, y_high = _span(late if crop and len(late) >= FEWEST_LATE else [y for _, y in everything])
    y_low = min([y_low, *(y for _, y in everything)])
    room = 0.06 * (y_high - y_low)
    y_low, y_high = (max(0.0, y_low - room) if y_low >= 0 else y_low - room), y_high + room

    def place(point: Point) -> Point:
        x = LEFT + (point[0] - x_low) / (x_high - x_low) * (WIDTH - LEFT - RIGHT)
        y = HEIGHT - BOTTOM - (point[1] - y_low) / (y_high - y_low) * (HEIGHT - TOP - BOTTOM)
        return round(x, 1), round(max(y, -HEIGHT), 1)

    lines = []
    for color, (label, points) in enumerate(series):
        mean = smooth and len(points) >= 20
        lines.append(_line(label, color, [place(point) for point in thin(points)], points[-1][1], faint=mean))
        if mean:
            smoothed = running_mean(points)
            lines.append(_line(label, color, [place(point) for point in thin(smoothed)], smoothed[-1][1]))
    return Chart(
        title,
        x_title,
        tuple(lines),
        tuple(Tick(place((at, y_low))[0], told(at)) for at in ticks(x_low, x_high)),
        tuple(Tick(place((x_low, at))[1], told(at)) for at in ticks(y_low, y_high, 4)),
    )


def thin(points: Sequence[Point], most: int = MOST_POINTS) -> list[Point]:
    """At most about ``most`` of ``points``: of each stretch the lowest and the highest, so that no spike is lost."""
    if len(points) <= most:
        return list(points)
    size = math.ceil(2 * len(points) / most)
    kept: list[Point] = [points[0]]
    for start in range(0, len(points), size):
        part = points[start : start + size]
        extremes = {min(part, key=lambda point: point[1]), max(part, key=lambda point: point[1])}
        kept += sorted(extremes)
    return [*kept, points[-1]]


def running_mean(points: Sequence[Point], share: float = 0.05) -> list[Point]:
    """Mean over about ``share`` of the curve around each point, less at the ends, so that it lags behind nowhere."""
    sums = list(accumulate((y for _, y in points), initial=0.0))
    most, last = max(1, round(share * len(points) / 2)), len(points) - 1
    out = []
    for at, (x, _) in enumerate(points):
        reach = min(most, at, last - at)
        out.append((x, (sums[at + reach + 1] - sums[at - reach]) / (2 * reach + 1)))
    return out


def ticks(low: float, high: float, about: int = 6) -> list[float]:
    """Round numbers between ``low`` and ``high``, some ``about`` of them."""
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [number * step for number in range(first, math.floor(high / step + 1e-9) + 1)]


def told(value: float) -> str:
    """``12k``, ``0.25``, ``3e-4``: a number for an axis or a legend."""
    size = abs(value)
    if size >= 1e9 or 0 < size < 1e-3:
        digits, _, power = f"{value:.2e}".partition("e")
        return f"{float(digits):g}e{int(power)}"
    for factor, letter in ((1e6, "M"), (1e3, "k")):
        if size >= 10 * factor:
            return f"{value / factor:.4g}{letter}"
    return f"{value:.4g}"


def _line(label: str, color: int, places: list[Point], last: float, *, faint: bool = False) -> Line:
    path = "M" + " L".join(f"{x:g},{y:g}" for x, y in places)
    dots = tuple(places) if len(places) <= 60 else ()
    return Line(label, color, path, () if faint else dots, faint, told(last))


def _span(values: list[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    if high - low > 1e-9 * max(abs(low), abs(high)):
        return low, high
    return low - (abs(low) * 0.1 or 0.5), high + (abs(high) * 0.1 or 0.5)
