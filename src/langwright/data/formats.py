"""One file of text -> its documents, in bounded memory: plain text, JSON lines, parquet; gzip and zstd by suffix."""

import codecs
import gzip
import io
import shlex
import zlib
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from langwright.core.errors import FormatError, UserError
from langwright.core.files import explained
from langwright.core.json_text import parse_json

TEXT_BLOCK = 32 << 20
"""Bytes of a plain text file that make at most one document; a longer file is cut at a line end into several."""
LINE_LIMIT = 64 << 20
"""Longest line of a JSON-lines file, in bytes."""

PACKINGS = (".gz", ".zst")
UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


@dataclass(frozen=True, slots=True)
class Document:
    """A text that stands on its own, where it came from (``file`` or ``file:line``), and what is known of it."""

    text: str
    source: str
    meta: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A file to read. ``found``: it was met in a folder, so it may be skipped where a named one is an error."""

    path: Path
    language: str | None = None
    found: bool = False


def kind_of(path: Path) -> str:
    """The suffix that says how a file is written, without the one that says how it is packed: ``.jsonl``, ``.txt``."""
    inner = path.with_suffix("") if path.suffix.lower() in PACKINGS else path
    return inner.suffix.lower()


def read_file(file: SourceFile, text_field: str, skipped: Counter[str]) -> Iterator[Document]:
    """The documents of one file; what has no text is counted in ``skipped``. Raises `UserError` or `FormatError`."""
    with readable(file.path):
        if kind_of(file.path) == ".parquet":
            yield from _read_parquet(file.path, text_field, skipped)
            return
        with unpacked(file.path) as stream:
            if kind_of(file.path) == ".jsonl":
                yield from _read_json_lines(stream, file.path, text_field, skipped)
            else:
                yield from _read_text(stream, file, skipped)


# Bytes ----------------------------------------------------------------------------------------------------------------


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Turn what goes wrong while the bytes of ``path`` are read inside into one line for the user."""
    with explained(path, "read"):
        try:
            yield
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise FormatError(f"{path}: the gzip data is damaged or cut short ({error}); fetch it again") from None


@contextmanager
def unpacked(path: Path) -> Iterator[BinaryIO]:
    """The bytes of a file, unpacked where its suffix says that it is packed; to be used inside `readable`."""
    with path.open("rb") as raw:
        if path.suffix.lower() == ".gz":
            with gzip.GzipFile(fileobj=raw) as inner:
                yield inner  # pyright: ignore[reportReturnType]
        elif path.suffix.lower() == ".zst":
            yield io.BufferedReader(_ZstdStream(raw, path), 1 << 20)  # pyright: ignore[reportReturnType]
        else:
            yield raw


class _ZstdStream(io.RawIOBase):
    """Zstandard frames as a stream. The library's own reader takes a file that is cut short for a complete one."""

    def __init__(self, packed: BinaryIO, path: Path) -> None:
        try:
            import zstandard
        except ImportError:
            raise UserError(f"{path}: reading .zst needs zstandard; pip install 'langwright[data]'") from None
        self._new_frame = zstandard.ZstdDecompressor(max_window_size=1 << 27).decompressobj
        self._error = zstandard.ZstdError
        self._packed, self._path = packed, path
        self._frame: Any = None
        self._ready = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._ready:
            # Small steps: a few bytes may unpack to a great many.
            step = (self._frame.unused_data if self._frame and self._frame.eof else b"") or self._packed.read(1 << 10)
            if not step:
                if self._frame and not self._frame.eof:
                    raise FormatError(f"{self._path}: the zstd data is cut short; fetch it again")
                return 0
            if not self._frame or self._frame.eof:
                self._frame = self._new_frame()
            try:
                self._ready = self._frame.decompress(step)
            except self._error as error:
                raise FormatError(f"{self._path}: the zstd data is damaged ({error}); fetch it again") from None
        count = min(len(buffer), len(self._ready))
        buffer[:count], self._ready = self._ready[:count], self._ready[count:]
        return count


def decode(data: bytes, path: Path, offset: int) -> str:
    """UTF-8 text, or a `UserError` naming the byte (``offset``: where ``data`` begins in the file) and the remedy."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        encoding, why = _guess_encoding(data)
        shown = shlex.quote(str(path))
        unpack = {".gz": f"gzip -dc {shown} | ", ".zst": f"zstd -dc {shown} | "}.get(path.suffix.lower(), "")
        command = f"{unpack}iconv -f {encoding} -t UTF-8 {'' if unpack else shown + ' '}> NEW"
        raise UserError(f"{path}: byte {offset + error.start} is not UTF-8{why}; convert it: {command}") from None


def _guess_encoding(data: bytes) -> tuple[str, str]:
    """What text that is not UTF-8 may be, as iconv calls it, and the same as a remark for the message."""
    if data.startswith(UTF16):
        return "UTF-16", " (it looks like UTF-16)"
    sample = data[: 1 << 20]
    try:
        codecs.getincrementaldecoder("gb18030")().decode(sample)  # the sample may end inside a character
    except UnicodeDecodeError:
        return "WINDOWS-1252", ""
    # Many bytes are valid in both; but a Western text has few above 0x7F.
    if sum(byte > 0x7F for byte in sample) > 0.3 * len(sample):
        return "GB18030", " (it looks like Chinese in GB18030 or GBK)"
    return "WINDOWS-1252", ""


# Documents ------------------------------------------------------------------------------------------------------------


def _read_text(stream: BinaryIO, file: SourceFile, skipped: Counter[str]) -> Iterator[Document]:
    meta = {"language": file.language} if file.language else {}
    for part, (offset, block) in enumerate(_blocks(stream), start=1):
        if file.found and part == 1 and b"\0" in block and not block.startswith(UTF16):
            skipped["binary"] += 1
            return
        try:
            text = decode(block, file.path, offset)
        except UserError:
            # Code often has odd bytes in its test files; prose in another encoding must not vanish unseen.
            if file.found and file.language and part == 1:
                skipped["not UTF-8"] += 1
                return
            raise
        if "\0" in text:
            raise UserError(f"{file.path}: holds NUL bytes: a binary file, or text in UTF-16; convert it to UTF-8")
        if part == 1:
            text = text.removeprefix("\ufeff")
        if text.strip():
            yield Document(text, str(file.path) if part == 1 else f"{file.path}#{part}", meta)
        else:
            skipped["no text"] += 1


def _blocks(stream: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """The stream in blocks of at most `TEXT_BLOCK` bytes, cut at a line end, each with its offset."""
    offset, rest = 0, b""
    while block := rest + stream.read(TEXT_BLOCK - len(rest)):
        cut = len(block) if len(block) < TEXT_BLOCK else _last_line_end(block)
        yield offset, block[:cut]
        offset, rest = offset + cut, block[cut:]


def _last_line_end(block: bytes) -> int:
    cut = block.rfind(b"\n") + 1 or len(block) - 3
    while cut < len(block) and block[cut] & 0xC0 == 0x80:  # never inside a UTF-8 character
        cut += 1
    return cut


def json_rows(stream: BinaryIO, path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects of a JSON-lines file and the numbers of their lines; raises `UserError` or `FormatError`."""
    for number, text in text_lines(stream, path):
        if not text.strip():
            continue
        row = parse_json(text, f"{path}: line {number}")
        if not isinstance(row, dict):
            raise FormatError(f"{path}: line {number}: should be a JSON object, is a {type(row).__name__}")
        yield number, row


def text_lines(stream: BinaryIO, path: Path) -> Iterator[tuple[int, str]]:
    """The lines of a file, ends kept, and their numbers from 1; raises `UserError` for one that is too long."""
    number, offset = 0, 0
    while line := stream.readline(LINE_LIMIT + 1):
        number += 1
        if len(line) > LINE_LIMIT:
            raise UserError(
                f"{path}: line {number}: longer than {LINE_LIMIT >> 20} MiB; write smaller documents, one JSON object a"
                " line"
            )
        yield number, decode(line, path, offset).removeprefix("\ufeff" if number == 1 else "")
        offset += len(line)


def _read_json_lines(stream: BinaryIO, path: Path, text_field: str, skipped: Counter[str]) -> Iterator[Document]:
    for number, row in json_rows(stream, path):
        where = f"{path}: line {number}"
        if text_field not in row:
            raise UserError(f"{where}: no field {text_field!r}; it has {names(row)}: name one with --text-field")
        yield from _document(row[text_field], where, text_field, f"{path}:{number}", skipped)


@contextmanager
def open_parquet(path: Path) -> Iterator[Any]:
    """A `pyarrow.parquet.ParquetFile`; raises `UserError` without pyarrow and `FormatError` for a damaged file."""
    try:
        import pyarrow as arrow
        from pyarrow import parquet
    except ImportError:
        raise UserError(f"{path}: reading .parquet needs pyarrow; pip install 'langwright[data]'") from None
    try:
        with parquet.ParquetFile(path) as table:
            yield table
    except (arrow.ArrowException, UnicodeDecodeError) as error:
        raise FormatError(f"{path}: not a sound parquet file: {str(error).splitlines()[0]}") from None


def _read_parquet(path: Path, text_field: str, skipped: Counter[str]) -> Iterator[Document]:
    with open_parquet(path) as table:
        columns = table.schema_arrow.names
        if text_field not in columns:
            raise UserError(f"{path}: no column {text_field!r}; it has {names(columns)}: name one with --text-field")
        number = 0
        for batch in table.iter_batches(batch_size=64, columns=[text_field]):
            for text in batch.column(0).to_pylist():
                number += 1
                yield from _document(text, f"{path}: row {number}", text_field, f"{path}:{number}", skipped)


def _document(text: Any, where: str, text_field: str, source: str, skipped: Counter[str]) -> Iterator[Document]:
    """The document of one row, or none when its text is null or blank."""
    if text is not None and not isinstance(text, str):
        raise UserError(f"{where}: field {text_field!r} should hold text, holds a {type(text).__name__}")
    if not text or text.isspace():
        skipped["no text"] += 1
        return
    yield Document(text, source)


def names(columns: Collection[str]) -> str:
    """Names of fields as a message shows them: quoted, and not too many."""
    shown = [f"{name!r:.60}" for name in list(columns)[:12]]
    return ", ".join(shown) + (" ..." if len(columns) > 12 else "") if shown else "none"
