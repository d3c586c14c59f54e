"""Curves keep what matters when they are thinned, smoothed and placed."""

import math
from itertools import pairwise

import pytest

from langwright.train.report.chart import HEIGHT, LEFT, MOST_POINTS, RIGHT, WIDTH, draw, running_mean, thin, ticks, told


def test_thinning_keeps_ends_and_spikes():
    points = [(float(x), 1.0) for x in range(50_000)]
    points[31_234] = (31_234.0, 99.0)
    kept = thin(points)
    assert len(kept) <= MOST_POINTS + 3
    assert kept[0] == points[0]
    assert kept[-1] == points[-1]
    assert (31_234.0, 99.0) in kept
    assert kept == sorted(kept)
    assert thin(points[:MOST_POINTS]) == points[:MOST_POINTS]


def test_the_running_mean_of_a_straight_line_is_the_line():
    line = [(float(x), 3.0 * x) for x in range(200)]
    assert running_mean(line) == [(x, pytest.approx(y)) for x, y in line]
    noisy = [(float(x), float(x % 2)) for x in range(200)]
    assert all(abs(y - 0.5) < 0.11 for _, y in running_mean(noisy)[10:-10])


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0, 300), (1e-4, 3e-4), (-5, 5), (0.7756, 0.7757), (1, 1e12)])
def test_ticks_are_round_inside_and_few(low: float, high: float):
    found = ticks(low, high)
    assert 3 <= len(found) <= 8
    hair = 1e-9 * (high - low)
    assert all(low - hair <= at <= high + hair for at in found)
    steps = {f"{b - a:.3g}" for a, b in pairwise(found)}
    assert len(steps) == 1


def test_numbers_read_well():
    assert [told(value) for value in (0, 0.25, 3e-4, 1234, 12_000, 3.5e7, 2e9)] == [
        "0",
        "0.25",
        "3e-4",
        "1234",
        "12k",
        "35M",
        "2e9",
    ]


def test_points_lie_within_the_frame_but_for_what_runs_off_the_top():
    curve = [(float(x), 9 * math.exp(-x / 5) + 1) for x in range(101)]
    chart = draw("loss", [("a", curve)], crop=True)
    assert chart is not None
    places = [tuple(map(float, pair.split(","))) for pair in chart.lines[0].path[1:].split(" L")]
    assert all(LEFT <= x <= WIDTH - RIGHT and y <= HEIGHT for x, y in places)
    assert places[0][1] < 0  # the untrained model's loss is out of sight
    assert all(y > 0 for _, y in places[6:])
    assert chart.lines[0].last == "1"


@pytest.mark.parametrize("points", [[(0.0, 0.0)], [(5.0, 2.0), (5.0, 2.0)], [(1.0, 1e-12), (2.0, 1e-12)]])
def test_flat_and_single_points_can_be_drawn(points: list[tuple[float, float]]):
    chart = draw("x", [("a", points)])
    assert chart is not None
    assert "nan" not in chart.lines[0].path
    assert draw("x", [("a", [])]) is None


def test_only_long_curves_are_smoothed():
    curve = [(float(x), float(x % 3)) for x in range(30)]
    long, short = draw("x", [("a", curve)], smooth=True), draw("x", [("a", curve[:10])], smooth=True)
    assert long is not None
    assert short is not None
    assert [line.faint for line in long.lines] == [True, False]
    assert [line.faint for line in short.lines] == [False]
    assert {line.color for line in long.lines} == {0}
