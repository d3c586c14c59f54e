"""Batches made ahead are the batches."""

import threading
import time

import numpy as np
import pytest

from langwright.data.loader import Batch
from langwright.data.prefetch import Prefetch


def make(step: int) -> Batch:
    return Batch(np.full((1, 2), step), np.full((1, 2), step + 1))


@pytest.mark.parametrize("workers", [0, 1, 2, 5])
def test_the_same_whatever_is_asked_in_whatever_order(workers: int):
    """Later steps are made faster than earlier ones, and a run may go back."""

    def uneven(step: int) -> Batch:
        time.sleep(0.004 * (step % 3 == 0))
        return make(step)

    with Prefetch(uneven, workers, max_steps=12) as batches:
        for step in [0, 1, 2, 3, 4, 2, 3, 4, 5, 9, 10, 11, 0]:
            assert batches(step).ids.tolist() == [[step, step]]


def test_batches_are_made_ahead_but_not_past_the_end():
    made, third = [], threading.Event()

    def note(step: int) -> Batch:
        made.append(step)
        if step == 2:
            third.set()
        return make(step)

    with Prefetch(note, 1, max_steps=3) as batches:
        batches(0)
        assert third.wait(60)
        batches(1)
        batches(2)
    assert sorted(made) == [0, 1, 2]


def test_an_error_is_raised_at_its_step():
    def broken(step: int) -> Batch:
        if step == 2:
            raise ValueError("damaged")
        return make(step)

    with Prefetch(broken, 2, max_steps=9) as batches:
        batches(0)
        batches(1)
        with pytest.raises(ValueError, match="damaged"):
            batches(2)


def test_threads_end_with_the_block():
    before = threading.active_count()
    with Prefetch(make, 3, max_steps=99) as batches:
        batches(0)
    assert threading.active_count() == before
