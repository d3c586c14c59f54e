"""Order: every window once an epoch, the same for any number of ranks, at any step at once; validation covers all."""

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from langwright.core.errors import FormatError, UserError
from langwright.data.loader import batch_at, eval_windows, windows_per_epoch
from langwright.data.order import ROUNDS, draw_keys, permute
from langwright.data.shards import HEADER_BYTES, ShardWriter, TokenShards, shard_name

EOS = 999


def make(folder: Path, n_tokens: int, shard_tokens: int = 50) -> TokenShards:
    """Shards whose token at place ``i`` is ``i``, so that a window says where it was cut."""
    with ShardWriter(folder, vocab_size=100_000, eos_id=EOS, shard_tokens=shard_tokens) as writer:
        for start in range(0, n_tokens - 1, 10):
            stop = min(start + 10, n_tokens - 1)
            writer.add(range(start, stop), 2 * (stop - start), ends_document=stop == n_tokens - 1)
    shards = TokenShards.open(folder)
    assert shards.n_tokens == n_tokens
    return shards


def permute_one(place: int, n: int, keys: list[int]) -> int:
    """The naive twin of `permute`: one number at a time, in plain integers."""
    half = max(1, ((n - 1).bit_length() + 1) // 2)
    everything = (1 << 64) - 1
    while True:
        left, right = place >> half, place % (1 << half)
        for key in keys[:ROUNDS]:
            hashed = right ^ key
            hashed = (hashed ^ hashed >> 30) * 0xBF58476D1CE4E5B9 & everything
            hashed = (hashed ^ hashed >> 27) * 0x94D049BB133111EB & everything
            left, right = right, left ^ (hashed ^ hashed >> 31) % (1 << half)
        place = left << half | right
        if place < n:
            return place


@given(n=st.integers(1, 3000), seed=st.integers(0, 1 << 63), epoch=st.integers(0, 1 << 40))
@settings(max_examples=80, deadline=None)
def test_permute_is_a_permutation(n, seed, epoch):
    keys = draw_keys(seed, epoch)
    order = permute(np.arange(n), n, keys)
    assert np.array_equal(np.sort(order), np.arange(n))
    some = range(0, n, max(1, n // 20))
    assert [permute_one(place, n, keys.tolist()) for place in some] == order[list(some)].tolist()


def test_permute_far_out():
    n = (1 << 40) + 7
    places = np.array([0, 1, n - 1, n // 2])
    keys = draw_keys(3, 1)
    assert permute(places, n, keys).tolist() == [permute_one(int(place), n, keys.tolist()) for place in places]


def test_order_is_the_same_everywhere():
    """A change here would make every interrupted run resume in another order."""
    assert permute(np.arange(10), 10, draw_keys(0, 0)).tolist() == [0, 1, 2, 8, 4, 5, 7, 3, 6, 9]
    assert permute(np.arange(10), 10, draw_keys(0, 1)).tolist() == [8, 3, 5, 0, 7, 9, 1, 4, 2, 6]


def test_permute_mixes():
    """What stands first over many epochs is spread evenly (chi-squared), and neighbours do not stay together."""
    n, epochs = 10, 4000
    first = np.bincount(
        [int(permute(np.zeros(1, np.int64), n, draw_keys(0, e))[0]) for e in range(epochs)], minlength=n
    )
    assert ((first - epochs / n) ** 2 / (epochs / n)).sum() < 27.9  # p = 0.001 at 9 degrees of freedom
    order = permute(np.arange(100_000), 100_000, draw_keys(0, 0))
    assert abs(np.corrcoef(order[:-1], order[1:])[0, 1]) < 0.02
    assert abs(np.corrcoef(order, np.arange(100_000))[0, 1]) < 0.02


@given(
    n_tokens=st.integers(20, 400),
    context=st.integers(1, 19),
    batch_size=st.integers(1, 9),
    seed=st.integers(0, 1 << 40),
)
@settings(max_examples=40, deadline=None)
def test_every_window_once_an_epoch(tmp_path_factory, n_tokens, context, batch_size, seed):
    shards = make(tmp_path_factory.mktemp("shards"), n_tokens)
    n_windows = windows_per_epoch(shards, context)
    assert n_tokens - 1 - n_windows * context < 2 * context
    rows = []
    for step in range(-(-2 * n_windows // batch_size)):
        batch = batch_at(shards, seed=seed, step=step, batch_size=batch_size, context=context)
        assert batch.ids.shape == batch.targets.shape == (batch_size, context)
        assert batch.ids.dtype == batch.targets.dtype == np.int64
        stream = shards.tokens[:]
        for ids, targets in zip(batch.ids, batch.targets, strict=True):
            assert ids.tolist() == stream[ids[0] : ids[0] + context].tolist()
            assert targets.tolist() == stream[ids[0] + 1 : ids[0] + context + 1].tolist()
        rows += batch.ids[:, 0].tolist()
    for epoch in (0, 1):
        starts = sorted(rows[epoch * n_windows : (epoch + 1) * n_windows])
        assert starts == [starts[0] + context * number for number in range(n_windows)]


def test_order_does_not_depend_on_ranks_or_history(tmp_path):
    shards = make(tmp_path, 500)
    for step in (0, 7, 123_456_789):
        whole = batch_at(shards, seed=5, step=step, batch_size=12, context=8)
        for n_ranks in (2, 3, 4):
            for rank in range(n_ranks):
                part = batch_at(shards, seed=5, step=step, batch_size=12, context=8, rows=range(rank, 12, n_ranks))
                assert np.array_equal(part.ids, whole.ids[rank::n_ranks])
                assert np.array_equal(part.targets, whole.targets[rank::n_ranks])
        assert not np.array_equal(batch_at(shards, seed=6, step=step, batch_size=12, context=8).ids, whole.ids)


def test_epochs_differ_in_order_and_place(tmp_path):
    shards = make(tmp_path, 1000)
    n_windows = windows_per_epoch(shards, 10)
    starts = [
        batch_at(shards, seed=0, step=epoch, batch_size=n_windows, context=10).ids[:, 0].tolist() for epoch in range(20)
    ]
    assert len({tuple(order) for order in starts}) == 20
    assert len({min(order) for order in starts}) > 5
    seen = {token for order in starts for start in order for token in range(start, start + 11)}
    assert len(seen) == 1000


def test_a_resumed_run_goes_on_where_it_was(tmp_path):
    shards = make(tmp_path, 300)
    straight = [batch_at(shards, seed=1, step=step, batch_size=4, context=16).ids for step in range(30)]
    again = TokenShards.open(tmp_path)
    for step in (29, 11, 0):
        assert np.array_equal(batch_at(again, seed=1, step=step, batch_size=4, context=16).ids, straight[step])


def test_too_little_data(tmp_path):
    shards = make(tmp_path, 12)
    batch_at(shards, seed=0, step=0, batch_size=2, context=11)
    with pytest.raises(UserError, match=r"12 tokens are too few for a context of 12; use a context of at most 11"):
        batch_at(shards, seed=0, step=0, batch_size=2, context=12)


@given(
    n_tokens=st.integers(2, 200),
    context=st.integers(1, 40),
    batch_size=st.integers(1, 7),
    limit=st.none() | st.integers(1, 250),
)
@settings(max_examples=60, deadline=None)
def test_validation_takes_every_token_once(tmp_path_factory, n_tokens, context, batch_size, limit):
    shards = make(tmp_path_factory.mktemp("shards"), n_tokens)
    spans = shards.spread(limit)
    batches = list(eval_windows(shards, context=context, batch_size=batch_size, limit=limit))
    targets = np.concatenate([batch.targets.ravel() for batch in batches])
    places = np.concatenate([np.arange(span.start, span.start + span.n_tokens) for span in spans])
    assert targets.tolist() == shards.tokens[:][places].tolist()
    ids = np.concatenate([batch.ids.ravel() for batch in batches])
    assert ids.tolist() == [EOS if place == 0 else shards.tokens[:][place - 1] for place in places]
    assert all(batch.ids.shape[0] <= batch_size and batch.ids.shape[1] <= context for batch in batches)
    assert sum(batch.ids.shape[1] < context for batch in batches) <= len(spans)


def test_bits_per_byte_of_a_uniform_model(tmp_path):
    shards = make(tmp_path, 100)
    (span,) = shards.spread(40)
    nll = sum(batch.targets.size * math.log(1024) for batch in eval_windows(shards, context=16, limit=40))
    assert nll / math.log(2) / span.n_bytes == pytest.approx(10 * span.n_tokens / span.n_bytes)


def test_an_id_outside_the_vocabulary_never_reaches_an_embedding(tmp_path):
    shards = make(tmp_path, 40)
    path = tmp_path / shard_name(0)
    data = bytearray(path.read_bytes())
    data[HEADER_BYTES : HEADER_BYTES + 4] = b"\xff\xff\xff\xff"
    path.write_bytes(data)
    with pytest.raises(FormatError, match="outside its vocabulary"):
        list(eval_windows(TokenShards.open(tmp_path), context=16))
    with pytest.raises(FormatError, match="outside its vocabulary"):
        batch_at(shards, seed=0, step=0, batch_size=64, context=16)
