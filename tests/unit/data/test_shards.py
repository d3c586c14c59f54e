"""Shards: what goes in comes out, whatever the cut into files; and no damage goes unseen or crashes."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from langwright.core.errors import FormatError, UserError
from langwright.data.shards import HEADER_BYTES, INDEX, ShardWriter, TokenShards, shard_name

EOS = 0
documents_of = st.lists(st.lists(st.integers(0, 299), max_size=20), min_size=1, max_size=12)


def write(folder: Path, documents, *, vocab_size=300, shard_tokens=1 << 20) -> str:
    with ShardWriter(folder, vocab_size=vocab_size, eos_id=EOS, shard_tokens=shard_tokens) as writer:
        for ids in documents:
            writer.add(ids, 3 * len(ids))
    return writer.sha256


@given(documents=documents_of, shard_tokens=st.integers(1, 40), wide=st.booleans())
@settings(max_examples=60, deadline=None)
def test_round_trip(tmp_path_factory, documents, shard_tokens, wide):
    folder = tmp_path_factory.mktemp("shards")
    write(folder, documents, shard_tokens=shard_tokens, vocab_size=70_000 if wide else 300)
    shards = TokenShards.open(folder)
    stream = [token for ids in documents for token in [*ids, EOS]]
    assert shards.tokens[:].tolist() == stream
    assert shards.tokens[:].dtype == (np.uint32 if wide else np.uint16)
    assert (shards.n_tokens, shards.n_documents) == (len(stream), len(documents))
    assert shards.n_bytes == 3 * sum(map(len, documents))
    for number, ids in enumerate(documents):
        start, stop = shards.documents[number : number + 2]
        assert shards.tokens[start:stop].tolist() == [*ids, EOS]
    for start in range(0, len(stream) + 2, 3):
        for stop in (start - 1, start, start + 1, start + 7, len(stream), len(stream) + 5):
            assert shards.tokens[start:stop].tolist() == stream[start:stop]


def test_the_hash_does_not_depend_on_the_cut_into_files(tmp_path):
    documents = [[1, 2, 3], [4], []]
    hashes = {write(tmp_path / str(size), documents, shard_tokens=size) for size in (1, 3, 100)}
    assert len(hashes) == 1
    assert write(tmp_path / "other", [[1, 2, 3, 4], []]) not in hashes


def test_pieces_make_one_document_and_exact_spans(tmp_path):
    with ShardWriter(tmp_path, vocab_size=10, eos_id=EOS) as writer:
        writer.add([1, 2, 3], 30, ends_document=False)
        writer.add([4, 5], 7)
        writer.add(np.array([6]), 1)
    shards = TokenShards.open(tmp_path)
    assert shards.documents.tolist() == [0, 6, 8]
    assert [shards.spread(limit) for limit in (1, 3, 4, 6, 7, 8, 99, None)] == [
        [(3, 30, 0)], [(3, 30, 0)], [(6, 37, 0)], [(6, 37, 0)], [(8, 38, 0)], [(8, 38, 0)], [(8, 38, 0)], [(8, 38, 0)],
    ]  # fmt: skip


@given(
    lengths=st.lists(st.integers(0, 60), min_size=1, max_size=60),
    limit=st.integers(1, 1000),
    most=st.integers(1, 9),
    least=st.integers(1, 50),
)
@settings(max_examples=60, deadline=None)
def test_a_sample_is_spread_over_the_stream(tmp_path_factory, lengths, limit, most, least):
    folder = tmp_path_factory.mktemp("shards")
    write(folder, [[1] * length for length in lengths])
    shards = TokenShards.open(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("langwright.data.shards.MOST_SPANS", most)
        patch.setattr("langwright.data.shards.SPAN_TOKENS", least)
        spans = shards.spread(limit)
    assert 1 <= len(spans) <= most
    ends = [0, *(span.start + span.n_tokens for span in spans)]
    assert all(span.start >= end for span, end in zip(spans, ends, strict=False))  # in order, nothing twice
    assert ends[-1] <= shards.n_tokens
    edges = set(shards.documents.tolist())
    assert all({span.start, span.start + span.n_tokens} <= edges for span in spans)
    assert spans[0].start == 0
    if limit >= shards.n_tokens:
        assert [span.n_tokens for span in spans] == [shards.n_tokens]
    share = -(-limit // max(1, min(most, limit // least)))
    assert all(span.n_tokens >= share for span in spans[:-1])


def test_a_sample_sees_every_source(tmp_path):
    """Two sources, one after the other: the beginning alone would be the first of them."""
    write(tmp_path, [[1] * 99] * 200 + [[2] * 99] * 200)
    shards = TokenShards.open(tmp_path)
    seen = [int(shards.tokens[span.start : span.start + 1][0]) for span in shards.spread(8 * 2048)]
    assert seen == [1] * 4 + [2] * 4


@pytest.mark.parametrize("wrong", [-1, 300, 65536, 1 << 40])
def test_an_id_outside_the_vocabulary_is_refused(tmp_path, wrong):
    with pytest.raises(UserError, match=f"token id {wrong} is outside the vocabulary of 300"):
        write(tmp_path, [[1, wrong, 2]])
    with pytest.raises(FormatError):
        TokenShards.open(tmp_path)  # what an error left behind is no valid folder


def test_truncation_at_every_length(tmp_path):
    write(tmp_path, [[1, 2, 3], [4, 5]], shard_tokens=4)
    for name in (INDEX, shard_name(0), shard_name(1)):
        path = tmp_path / name
        whole = path.read_bytes()
        for length in [*range(len(whole)), len(whole) + 1]:
            path.write_bytes(whole[:length].ljust(length, b"\0"))
            with pytest.raises(FormatError, match=name):
                TokenShards.open(tmp_path)
        path.write_bytes(whole)
    TokenShards.open(tmp_path)


def test_flipped_bits_of_headers_and_index(tmp_path):
    write(tmp_path, [[1, 2, 3], [4, 5]], shard_tokens=4)
    for name in (INDEX, shard_name(0)):
        path = tmp_path / name
        whole = path.read_bytes()
        for bit in range(0, 8 * (len(whole) if name == INDEX else HEADER_BYTES), 3):  # every byte, every place in one
            damaged = bytearray(whole)
            damaged[bit // 8] ^= 1 << bit % 8
            path.write_bytes(damaged)
            with pytest.raises(FormatError, match=name):
                TokenShards.open(tmp_path)
        path.write_bytes(whole)


def forge(path: Path, layout: str, place: int, value: int, rows: bytes = b"") -> None:
    """Change one number of a header and make its checksums right again, as a liar would."""
    data = bytearray(path.read_bytes())
    data[HEADER_BYTES:] = rows or data[HEADER_BYTES:]
    if path.name == INDEX:
        struct.pack_into("<I", data, 8 + struct.calcsize("<IIQQQQ"), zlib.crc32(data[HEADER_BYTES:]))
    struct.pack_into(layout, data, place, value)
    struct.pack_into("<I", data, HEADER_BYTES - 4, zlib.crc32(data[: HEADER_BYTES - 4]))
    path.write_bytes(data)


VERSION, ITEM_BYTES, VOCAB, EOS_OR_NUMBER, SHARD_TOKENS_OR_COUNT, ROWS = 8, 12, 16, 24, 32, 40


@pytest.mark.parametrize("value", [0, 3, 1 << 31, (1 << 32) - 1])
@pytest.mark.parametrize("place", [VERSION, ITEM_BYTES])
@pytest.mark.parametrize("name", [INDEX, shard_name(0)])
def test_lying_words(tmp_path, name, place, value):
    write(tmp_path, [[1, 2, 3]])
    forge(tmp_path / name, "<I", place, value)
    with pytest.raises(FormatError):
        TokenShards.open(tmp_path)


@pytest.mark.parametrize("value", [0, 3, 301, 1 << 31, (1 << 62) + 3, (1 << 64) - 1])
@pytest.mark.parametrize(
    ("name", "place"),
    [
        (INDEX, VOCAB),
        (INDEX, SHARD_TOKENS_OR_COUNT),
        (INDEX, ROWS),
        (shard_name(0), VOCAB),
        (shard_name(0), SHARD_TOKENS_OR_COUNT),
    ],
)
def test_lying_counts(tmp_path, name, place, value):
    """Vocabulary, tokens, rows: whatever they say, there is no crash and no huge allocation."""
    write(tmp_path, [[1, 2, 3], [200]], shard_tokens=100)
    forge(tmp_path / name, "<Q", place, value)
    if (name, place, value) in {(INDEX, ROWS, 3)}:
        TokenShards.open(tmp_path)  # three rows is the truth
    elif (name, place) == (INDEX, SHARD_TOKENS_OR_COUNT) and value > 6:
        TokenShards.open(tmp_path)  # one file may hold more than there is
    else:
        with pytest.raises(FormatError):
            TokenShards.open(tmp_path)


@pytest.mark.parametrize(("name", "value"), [(INDEX, 300), (INDEX, 1 << 63), (shard_name(0), 1)])
def test_lying_end_of_text_and_number(tmp_path, name, value):
    write(tmp_path, [[1, 2, 3]])
    forge(tmp_path / name, "<Q", EOS_OR_NUMBER, value)
    with pytest.raises(FormatError):
        TokenShards.open(tmp_path)


@pytest.mark.parametrize(
    "rows",
    [
        [(0, 0, 0), (4, 9, 2), (3, 12, 2)],
        [(0, 0, 0), (1 << 63, 9, 1), (6, 12, 2)],
        [(1, 0, 0), (4, 9, 1), (6, 12, 2)],
        [(0, 0, 0), (4, 9, 0), (6, 12, 2)],
        [(0, 0, 0), (4, 9, 0), (6, 12, 0)],
        [(0, 0, 0), (4, 9, 1), (1 << 60, 12, 2)],
        [(0, 0, 0), (0, 9, 1), (0, 12, 2)],
        [(0, 9, 0), (4, 3, 1), (6, 12, 2)],
    ],
)
def test_lying_rows(tmp_path, rows):
    write(tmp_path, [[1, 2, 3], [4]])
    forge(tmp_path / INDEX, "<I", 8, 1, b"".join(struct.pack("<QQQ", *row) for row in rows))
    with pytest.raises(FormatError):
        TokenShards.open(tmp_path)


def test_missing_foreign_and_spare_files(tmp_path):
    write(tmp_path / "a", [[1, 2, 3], [4, 5]], shard_tokens=3)
    write(tmp_path / "b", [[1, 2, 3], [4, 5]], shard_tokens=4)
    (tmp_path / "a" / shard_name(2)).rename(tmp_path / "a" / shard_name(7))
    with pytest.raises(FormatError, match=shard_name(2)):
        TokenShards.open(tmp_path / "a")
    (tmp_path / "b" / shard_name(0)).write_bytes((tmp_path / "b" / shard_name(1)).read_bytes())
    with pytest.raises(FormatError, match="does not belong"):
        TokenShards.open(tmp_path / "b")
    (tmp_path / "b" / shard_name(5)).write_bytes(b"")
    with pytest.raises(FormatError, match="3 token files"):
        TokenShards.open(tmp_path / "b")
    with pytest.raises(FormatError):
        TokenShards.open(tmp_path / "absent")


def test_a_vocabulary_that_cannot_be(tmp_path):
    for vocab_size, eos_id in ((10, 10), (10, -1), ((1 << 32) + 1, 0)):
        with pytest.raises(UserError):
            ShardWriter(tmp_path, vocab_size=vocab_size, eos_id=eos_id)
