"""Learning rates at named steps, worked out by hand."""

import pytest

from langwright.train.config import LoopSettings
from langwright.train.schedule import lr_multiplier


def settings(**changes) -> LoopSettings:
    return LoopSettings(max_steps=10, batch_size=1, context=1, lr=1.0, **changes)


def rates(chosen: LoopSettings, steps: int = 10, steps_per_epoch: int = 3) -> list[float]:
    return [lr_multiplier(chosen, step, steps, steps_per_epoch) for step in range(steps)]


def test_warmup_rises_in_a_straight_line_to_the_full_rate():
    assert rates(settings(schedule="constant", warmup_steps=4)) == pytest.approx([0.25, 0.5, 0.75, 1] + [1] * 6)


def test_warmup_never_takes_more_than_half_of_the_run():
    assert rates(settings(schedule="constant", warmup_steps=100), steps=4) == pytest.approx([0.5, 1, 1, 1])
    assert rates(settings(schedule="constant", warmup_steps=100), steps=1) == [1.0]


def test_cosine_has_the_full_rate_first_the_middle_half_way_and_the_lowest_last():
    found = rates(settings(schedule="cosine", min_lr_ratio=0.2), steps=5)
    assert found == pytest.approx([1, 0.2 + 0.8 * (1 + 0.5**0.5) / 2, 0.6, 0.2 + 0.8 * (1 - 0.5**0.5) / 2, 0.2])


def test_cosine_after_warmup():
    found = rates(settings(schedule="cosine", warmup_steps=2, min_lr_ratio=0.0), steps=5)
    assert found == pytest.approx([0.5, 1, 1, 0.5, 0])


def test_warmup_stable_decay():
    found = rates(settings(schedule="wsd", warmup_steps=2, decay_fraction=0.4, min_lr_ratio=0.1))
    assert found == pytest.approx([0.5, 1, 1, 1, 1, 1, 0.775, 0.55, 0.325, 0.1])
    assert rates(settings(schedule="wsd", decay_fraction=0.0)) == [1.0] * 10


def test_step_schedule_falls_after_every_epoch():
    found = rates(settings(schedule="step", gamma=0.95))
    assert found == pytest.approx([1, 1, 1, 0.95, 0.95, 0.95, 0.9025, 0.9025, 0.9025, 0.857375])


def test_one_step_is_enough():
    for schedule in ("cosine", "wsd", "constant", "step"):
        assert 0 <= lr_multiplier(settings(schedule=schedule), 0, 1, 1) <= 1
