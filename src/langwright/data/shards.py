"""Token ids on disk: little-endian uint16 or uint32 files that are memory-mapped, and an index of documents and bytes.

A folder holds ``tokens-00000.bin`` ... with ``shard_tokens`` tokens each (the last one fewer) and ``documents.idx``.
Every file begins with 64 bytes: a magic, the version, counts, and a CRC-32 of these. The index has one row a piece of
text (a short document is one piece) with three running totals: tokens, UTF-8 bytes of the text, finished documents. So
the bytes that stand behind any whole number of pieces are exact, and bits per byte over a part is honest.
"""

import hashlib
import struct
import zlib
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, NamedTuple, Self

import numpy as np

from langwright.core.errors import FormatError, UserError

SHARD_TOKENS = 64 << 20
VERSION = 1
INDEX = "documents.idx"
HEADER_BYTES = 64
_CRC = struct.Struct("<I")
_ROW = struct.Struct("<QQQ")


class _TokenHeader(NamedTuple):
    version: int
    item_bytes: int
    vocab_size: int
    number: int
    n_tokens: int


class _IndexHeader(NamedTuple):
    version: int
    item_bytes: int
    vocab_size: int
    eos_id: int
    shard_tokens: int
    n_rows: int
    rows_crc: int


_TOKENS = (b"LWTOKENS", struct.Struct("<IIQQQ"))
_INDEX = (b"LWINDEX\0", struct.Struct("<IIQQQQI"))


MOST_SPANS, SPAN_TOKENS = 16, 2048
"""A sample of the stream is taken from so many places, but from no more than give spans of this length."""


class Span(NamedTuple):
    """Whole pieces of text that follow each other in the stream, from token ``start`` on."""

    n_tokens: int
    n_bytes: int
    start: int = 0


def shard_name(number: int) -> str:
    """The file name of one shard."""
    return f"tokens-{number:05d}.bin"


class ShardWriter:
    """Write one token stream into ``folder``; memory stays bounded. Used as a context manager.

    The files become valid when the context ends without an error; commit the folder with
    `langwright.core.files.committed_folder`.
    """

    def __init__(self, folder: Path, *, vocab_size: int, eos_id: int, shard_tokens: int = SHARD_TOKENS) -> None:
        if not 0 <= eos_id < vocab_size <= 1 << 32:
            raise UserError(f"end-of-text id {eos_id} does not fit a vocabulary of {vocab_size}")
        assert shard_tokens > 0
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._vocab_size, self._eos_id, self._shard_tokens = vocab_size, eos_id, shard_tokens
        self._dtype = np.dtype("<u2" if vocab_size <= 1 << 16 else "<u4")
        self._file: BinaryIO | None = None
        self._index = (folder / INDEX).open("wb")
        self._hash = hashlib.sha256(f"{self._dtype.str} {vocab_size} {eos_id}\n".encode())
        self._rows, self._rows_crc = 0, 0
        self.n_tokens, self.n_bytes, self.n_documents = 0, 0, 0
        self._index.write(bytes(HEADER_BYTES))
        self._add_row()

    def add(self, ids: Sequence[int] | np.ndarray, n_bytes: int, *, ends_document: bool = True) -> None:
        """Append one piece: its ids, its text's length in UTF-8 bytes, and at a document's end the end-of-text id.

        Raises `UserError` for an id outside the vocabulary.
        """
        tokens = np.asarray(ids, dtype=np.int64)
        if ends_document:
            tokens = np.append(tokens, self._eos_id)
        if tokens.size and not 0 <= int(tokens.min()) <= int(tokens.max()) < self._vocab_size:
            wrong = int(tokens.min()) if tokens.min() < 0 else int(tokens.max())
            raise UserError(
                f"token id {wrong} is outside the vocabulary of {self._vocab_size}; the tokenizer is broken"
            )
        stored = tokens.astype(self._dtype)
        self._hash.update(stored.data)
        while stored.size:
            room = self._shard_tokens - self.n_tokens % self._shard_tokens
            if room == self._shard_tokens:
                self._finish_file()
                self._file = (self._folder / shard_name(self.n_tokens // self._shard_tokens)).open("wb")
                self._file.write(bytes(HEADER_BYTES))
            assert self._file is not None
            self._file.write(stored[:room].data)
            self.n_tokens += len(stored[:room])
            stored = stored[room:]
        self.n_bytes += n_bytes
        self.n_documents += ends_document
        self._add_row()

    @property
    def sha256(self) -> str:
        """Of the tokens and the index, however they are cut into files."""
        return self._hash.hexdigest()

    def _add_row(self) -> None:
        row = _ROW.pack(self.n_tokens, self.n_bytes, self.n_documents)
        self._index.write(row)
        self._rows_crc = zlib.crc32(row, self._rows_crc)
        self._hash.update(row)
        self._rows += 1

    def _finish_file(self) -> None:
        if self._file is None:
            return
        number = (self.n_tokens - 1) // self._shard_tokens
        header = _TokenHeader(
            VERSION, self._dtype.itemsize, self._vocab_size, number, self.n_tokens - number * self._shard_tokens
        )
        _write_header(self._file, _TOKENS, header)
        self._file.close()
        self._file = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if kind is None:
            self._finish_file()
            header = _IndexHeader(
                VERSION,
                self._dtype.itemsize,
                self._vocab_size,
                self._eos_id,
                self._shard_tokens,
                self._rows,
                self._rows_crc,
            )
            _write_header(self._index, _INDEX, header)
        if self._file is not None:
            self._file.close()
        self._index.close()


class TokenStream:
    """The shards as one sequence: ``stream[a:b]`` is an array of ids, cut off at the end as a list would be."""

    def __init__(self, files: Sequence[np.ndarray], shard_tokens: int) -> None:
        self._files, self._shard_tokens = files, shard_tokens
        self._length = sum(len(file) for file in files)

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, where: slice) -> np.ndarray:
        start, stop, step = where.indices(self._length)
        assert step == 1
        first, last = start // self._shard_tokens, max(start, stop - 1) // self._shard_tokens
        if first == last:  # the usual case: a view, nothing is copied
            base = first * self._shard_tokens
            return self._files[min(first, len(self._files) - 1)][start - base : max(start, stop) - base]
        parts = []
        for number in range(first, last + 1):
            base = number * self._shard_tokens
            parts.append(self._files[number][max(start - base, 0) : stop - base])
        return np.concatenate(parts)


class TokenShards:
    """A folder of shards, opened for reading by `open`, which checks every header, size and total."""

    def __init__(self, folder: Path, header: _IndexHeader, rows: np.ndarray, tokens: TokenStream) -> None:
        self.folder = folder
        self.vocab_size, self.eos_id = header.vocab_size, header.eos_id
        self.tokens = tokens
        """All ids in order, as a memory-mapped sequence: ``tokens[a:b]`` is a uint16 or uint32 array."""
        self._rows = rows  # (pieces + 1, 3): tokens, bytes, documents so far
        self.n_tokens, self.n_bytes, self.n_documents = (int(total) for total in rows[-1])

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Map the shards of ``folder``; raises `FormatError` when a file is missing, damaged or belies its header."""
        header, rows = _open_index(folder / INDEX)
        n_files = -(-int(rows[-1, 0]) // header.shard_tokens)
        there = sum(1 for _ in folder.glob("tokens-*.bin"))
        if there != n_files:
            raise FormatError(
                f"{folder}: holds {there} token files, its index speaks of {n_files}; prepare the data again"
            )
        files = []
        for number in range(n_files):
            left = int(rows[-1, 0]) - number * header.shard_tokens
            expected = _TokenHeader(
                VERSION, header.item_bytes, header.vocab_size, number, min(left, header.shard_tokens)
            )
            files.append(_open_tokens(folder / shard_name(number), expected))
        return cls(folder, header, rows, TokenStream(files, header.shard_tokens))

    @cached_property
    def documents(self) -> np.ndarray:
        """(n_documents + 1,) uint64: ``tokens[documents[i] : documents[i + 1]]`` is one, with its end-of-text id."""
        finished = np.flatnonzero(self._rows[1:, 2] > self._rows[:-1, 2]) + 1
        return np.concatenate([self._rows[:1, 0], self._rows[finished, 0]])

    def spread(self, limit: int | None = None) -> list[Span]:
        """A sample of about ``limit`` tokens (None: everything) as spans at even distances, in order.

        The beginning alone would not do: a stream of several sources holds them one after the other. Each span is the
        shortest run of whole pieces with its share of the limit.
        """
        if limit is None or limit >= self.n_tokens:
            return [self._span(0, self.n_tokens)]
        count = max(1, min(MOST_SPANS, limit // SPAN_TOKENS))
        spans, end = [], 0
        for number in range(count):
            start = max(end, self.n_tokens * number // count)
            row = int(np.searchsorted(self._rows[:, 0], start))
            if row < len(self._rows) - 1:
                spans.append(self._span(row, -(-limit // count)))
                end = spans[-1].start + spans[-1].n_tokens
        return spans

    def _span(self, row: int, limit: int) -> Span:
        """The shortest run of whole pieces after ``row`` rows of the index that has at least ``limit`` tokens."""
        start, first_byte, _ = (int(total) for total in self._rows[row])
        last = int(np.searchsorted(self._rows[:, 0], start + max(limit, 1)))
        stop, last_byte, _ = (int(total) for total in self._rows[min(last, len(self._rows) - 1)])
        return Span(stop - start, last_byte - first_byte, start)


def _write_header(file: BinaryIO, kind: tuple[bytes, struct.Struct], fields: tuple[int, ...]) -> None:
    magic, layout = kind
    body = (magic + layout.pack(*fields)).ljust(HEADER_BYTES - _CRC.size, b"\0")
    file.seek(0)
    file.write(body + _CRC.pack(zlib.crc32(body)))


def _read_header(path: Path, kind: tuple[bytes, struct.Struct]) -> tuple[int, ...]:
    magic, layout = kind
    try:
        with path.open("rb") as file:
            data = file.read(HEADER_BYTES)
    except OSError as error:
        raise FormatError(f"{path}: cannot be read ({error.strerror}); prepare the data again") from None
    body, crc = data[: -_CRC.size], data[-_CRC.size :]
    if len(data) < HEADER_BYTES or body[: len(magic)] != magic or _CRC.pack(zlib.crc32(body)) != crc:
        raise FormatError(f"{path}: its header is damaged or cut short; prepare the data again")
    fields = layout.unpack_from(body, len(magic))
    if fields[0] != VERSION:
        raise FormatError(f"{path}: written in version {fields[0]} of the format, this program reads {VERSION}")
    return fields


def _check_size(path: Path, expected: int) -> None:
    size = path.stat().st_size
    if size != expected:
        raise FormatError(f"{path}: {size} bytes long, its header says {expected}; prepare the data again")


def _open_index(path: Path) -> tuple[_IndexHeader, np.ndarray]:
    header = _IndexHeader(*_read_header(path, _INDEX))
    wrong = FormatError(f"{path}: its counts contradict each other; prepare the data again")
    if (
        header.item_bytes != (2 if header.vocab_size <= 1 << 16 else 4)
        or not header.eos_id < header.vocab_size <= 1 << 32
        or header.shard_tokens < 1
        or header.n_rows < 2
    ):
        raise wrong
    _check_size(path, HEADER_BYTES + header.n_rows * _ROW.size)
    rows = np.memmap(path, dtype="<u8", mode="r", offset=HEADER_BYTES, shape=(header.n_rows, 3))
    if zlib.crc32(rows.data) != header.rows_crc:
        raise FormatError(f"{path}: its rows are damaged; prepare the data again")
    # A checksum proves no honesty: totals must start at nothing, never fall, and count documents one by one.
    rising = bool((rows[1:] >= rows[:-1]).all()) and bool((rows[1:, 2] - rows[:-1, 2] <= 1).all())
    if not rising or rows[0].any() or not 0 < int(rows[-1, 2]) <= int(rows[-1, 0]):
        raise wrong
    return header, rows


def _open_tokens(path: Path, expected: _TokenHeader) -> np.ndarray:
    header = _TokenHeader(*_read_header(path, _TOKENS))
    if header != expected:
        raise FormatError(f"{path}: does not belong to the index beside it; prepare the data again")
    _check_size(path, HEADER_BYTES + header.n_tokens * header.item_bytes)
    dtype = f"<u{header.item_bytes}"
    return np.memmap(path, dtype=dtype, mode="r", offset=HEADER_BYTES, shape=(header.n_tokens,))
