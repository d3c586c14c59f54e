"""Examples in rows: nothing lost, nothing twice, none over the edge."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from langwright.data.loader import IGNORED
from langwright.train.tuning.parts import ShuffledBatches
from langwright.train.tuning.rows import Rows, as_sequence, lay_out


def test_a_token_is_predicted_from_all_before_it():
    found = as_sequence([5, 6, 7, 8], [True, False, True, True])
    assert found.ids.tolist() == [5, 6, 7]
    assert found.targets.tolist() == [IGNORED, 7, 8]  # nothing comes before the first


@given(st.lists(st.integers(1, 20), min_size=1, max_size=60))
def test_every_example_has_one_place(lengths: list[int]):
    rows = lay_out(lengths, 20, pack=True)
    assert sorted(number for row in rows for number in row) == list(range(len(lengths)))
    assert all(sum(lengths[number] for number in row) <= 20 for row in rows)
    fewest = -(-sum(lengths) // 20)
    assert len(rows) <= 11 / 9 * max(fewest, 1) + len(lengths) * (fewest == 0) + 1 or len(rows) <= 2 * fewest


def test_packing_fills_rows_and_not_packing_does_not():
    assert lay_out([5, 5, 5, 5], 10, pack=True) == [(0, 1), (2, 3)]
    assert lay_out([7, 3, 6, 4], 10, pack=True) == [(0, 1), (2, 3)]
    assert lay_out([5, 5], 10, pack=False) == [(0,), (1,)]


def rows_of(*lengths: int, room: int = 12) -> Rows:
    examples = [as_sequence(range(10 * n, 10 * n + size + 1), [True] * (size + 1)) for n, size in enumerate(lengths)]
    return Rows(examples, lay_out(lengths, room, pack=True), pad_id=999)


def test_a_batch_tells_examples_and_padding_apart():
    batch = rows_of(5, 4, 7, room=9).batch([0, 1])
    assert batch.documents is not None
    assert batch.ids.tolist() == [
        [20, 21, 22, 23, 24, 25, 26, 999, 999],
        [0, 1, 2, 3, 4, 10, 11, 12, 13],
    ]
    assert batch.targets.tolist() == [
        [21, 22, 23, 24, 25, 26, 27, IGNORED, IGNORED],
        [1, 2, 3, 4, 5, 11, 12, 13, 14],
    ]
    assert batch.documents.tolist() == [[0] * 7 + [1] * 2, [0] * 5 + [1] * 4]


@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_every_epoch_takes_every_row_once_in_another_order(batch_size: int):
    rows = rows_of(*[9, 8, 10, 7, 11, 12], room=12)
    batches = ShuffledBatches(rows, 4, batch_size)
    seen = [place.start for step in range(12 // batch_size) for place in batches.places(step)]
    assert sorted(seen[:6]) == sorted(seen[6:]) == list(range(6))
    assert seen[:6] != seen[6:]


@pytest.mark.parametrize("ranks", [2, 4])
def test_ranks_share_the_rows(ranks: int):
    rows = rows_of(9, 8, 10, 7, 11, 12)
    for step in range(5):
        whole = ShuffledBatches(rows, 1, 4)(step)
        for rank in range(ranks):
            part = ShuffledBatches(rows, 1, 4, range(rank, 4, ranks))(step)
            T = part.ids.shape[1]
            assert np.array_equal(whole.targets[rank::ranks, :T], part.targets)
            assert (whole.targets[rank::ranks, T:] == IGNORED).all()
