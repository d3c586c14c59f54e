"""Files of rows -> dictionaries, one row at a time: JSON lines, JSON, CSV, parquet and plain text, packed or not."""

import csv
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from langwright.core.errors import FormatError, UserError
from langwright.core.files import explained
from langwright.core.json_text import parse_json
from langwright.data.formats import (
    LINE_LIMIT,
    PACKINGS,
    SourceFile,
    decode,
    json_rows,
    kind_of,
    names,
    open_parquet,
    read_file,
    readable,
    text_lines,
    unpacked,
)

SEPARATORS = {".csv": ",", ".tsv": "\t"}
TEXTS = (".txt", ".md")
KINDS = (".jsonl", ".ndjson", ".json", *SEPARATORS, ".parquet", *TEXTS)
JSON_LIMIT = 256 << 20
"""Largest .json file, in bytes once unpacked: it is read whole, where .jsonl is read line by line."""
TEXT_FIELD = "text"
"""The field that holds what a plain text file says."""


@dataclass(frozen=True, slots=True)
class TableRow:
    """One row: where it stands (``FILE: line 3``, ``FILE: row 3``, both counted from 1) and its values by name."""

    where: str
    values: dict[str, Any]


class RowError(UserError):
    """A row that cannot be used. ``reason`` is the same words for every row with the same fault, to count them by."""

    def __init__(self, where: str, field: str, reason: str, fix: str):
        super().__init__(f"{where}: {field}: {reason}; {fix}" if field else f"{where}: {reason}; {fix}")
        self.reason = reason


def read_tables(paths: Iterable[str | Path]) -> Iterator[TableRow]:
    """The rows of files, and of the files of these kinds in folders, which are sorted by name.

    Raises `UserError` when a path is missing or not of a kind that is read, and when there is no row at all.
    """
    given = [Path(path) for path in paths]
    empty = True
    for path in find_tables(given):
        for row in read_rows(path):
            empty = False
            yield row
    if empty:
        named = ", ".join(map(str, given[:3])) + (" ..." if len(given) > 3 else "")
        raise UserError(f"{named or 'input'}: holds no rows; give files with one example a row")


def find_tables(paths: Iterable[Path]) -> list[Path]:
    """The files to read, none of them twice; in folders hidden files and links are passed over."""
    found: dict[Path, Path] = {}
    for path in paths:
        with explained(path, "read"):
            if path.is_dir():
                below = sorted(file for file in path.rglob("*") if _is_table(file, path))
                if not below:
                    raise UserError(f"{path}: holds no {', '.join(KINDS)} file; give the files themselves")
                found |= {file.resolve(): file for file in below if file.resolve() not in found}
            elif not path.is_file():
                raise UserError(f"{path}: no such file or folder; check the path")
            elif not _is_known(path):
                raise UserError(
                    f"{path}: not a kind of file that holds rows; give {', '.join(KINDS)} (packed as .gz or .zst)"
                )
            else:
                found.setdefault(path.resolve(), path)
    return list(found.values())


def read_rows(path: Path) -> Iterator[TableRow]:
    """The rows of one file, by its suffix.

    A line of .jsonl; an item of .json, which is a list of objects or an object with exactly one list of objects; a
    record of .csv or .tsv, whose first line names the columns; a row of .parquet; a whole .txt or .md. Values of .csv
    are text. Raises `UserError` or `FormatError` naming the file, the row and what to do.
    """
    kind = kind_of(path)
    if kind in TEXTS:
        for document in read_file(SourceFile(path), TEXT_FIELD, Counter()):
            yield TableRow(document.source, {TEXT_FIELD: document.text})
        return
    with readable(path):
        if kind == ".parquet":
            yield from _read_parquet(path)
            return
        with unpacked(path) as stream:
            if kind == ".json":
                yield from _read_json(stream, path)
            elif kind in SEPARATORS:
                yield from _read_separated(stream, path, SEPARATORS[kind])
            else:
                for number, values in json_rows(stream, path):
                    yield TableRow(f"{path}: line {number}", values)


def _is_known(path: Path) -> bool:
    kind = kind_of(path)
    return kind in KINDS and (kind != ".parquet" or path.suffix.lower() not in PACKINGS)


def _is_table(file: Path, folder: Path) -> bool:
    hidden = any(part.startswith(".") for part in file.relative_to(folder).parts)
    return _is_known(file) and not hidden and not file.is_symlink() and file.is_file()


def _read_json(stream: BinaryIO, path: Path) -> Iterator[TableRow]:
    data = stream.read(JSON_LIMIT + 1)
    if len(data) > JSON_LIMIT:
        raise UserError(f"{path}: larger than {JSON_LIMIT >> 20} MiB; write one object a line and call it .jsonl")
    try:
        value = parse_json(decode(data, path, 0).removeprefix("\ufeff"), str(path))
    except FormatError as error:
        if "Extra data" not in str(error):
            raise
        raise FormatError(f"{error}; if each line is an object of its own, call the file .jsonl") from None
    for number, item in enumerate(_rows_of(value, path), start=1):
        if not isinstance(item, dict):
            raise FormatError(f"{path}: row {number}: should be a JSON object, is a {type(item).__name__}")
        yield TableRow(f"{path}: row {number}", item)


def _rows_of(value: Any, path: Path) -> list[Any]:
    """The list of rows in a .json file, at its top or under the one key that holds a list of objects."""
    if isinstance(value, list):
        return value
    if not isinstance(value, dict):
        raise FormatError(f"{path}: should hold a list of objects, holds a {type(value).__name__}")
    lists = {key: item for key, item in value.items() if isinstance(item, list) and item and isinstance(item[0], dict)}
    if len(lists) != 1:
        told = f"lists of objects under {names(lists)}" if lists else f"no list of objects (keys: {names(value)})"
        raise UserError(f"{path}: has {told}; write the rows as one list, or one object a line in a .jsonl file")
    return next(iter(lists.values()))


def _read_separated(stream: BinaryIO, path: Path, separator: str) -> Iterator[TableRow]:
    csv.field_size_limit(LINE_LIMIT)
    lines = csv.reader((line for _, line in text_lines(stream, path)), delimiter=separator, strict=True)
    header: list[str] = []
    start = 1
    try:
        for record in lines:
            where, start = f"{path}: line {start}", lines.line_num + 1
            if not header:
                header = _checked_header(record, where, separator) if record else []
            elif len(record) != len(header) and record:
                raise FormatError(
                    f"{where}: has {len(record)} fields where the first line names {len(header)}; put quotation marks"
                    " around text that holds the separator, quotation marks or line ends"
                )
            elif record:
                yield TableRow(where, dict(zip(header, record, strict=True)))
    except csv.Error as error:
        raise FormatError(f"{path}: line {start}: not sound CSV: {error}; write it again with a CSV library") from None


def _checked_header(header: list[str], where: str, separator: str) -> list[str]:
    columns = [name.strip() for name in header]
    if wrong := [name for name in columns if not name or columns.count(name) > 1]:
        what = f"names the column {wrong[0]!r:.60} twice" if wrong[0] else "leaves a column without a name"
        raise UserError(f"{where}: {what}; the first line has to name every column once")
    other = next((mark for mark in (";", "\t", ",") if mark != separator and mark in columns[0]), None)
    if len(columns) == 1 and other:
        raise UserError(
            f"{where}: has one column, {columns[0]!r:.60}; columns are parted by {separator!r}, not {other!r}"
        )
    return columns


def _read_parquet(path: Path) -> Iterator[TableRow]:
    with open_parquet(path) as table:
        number = 0
        for batch in table.iter_batches(batch_size=64):
            for values in batch.to_pylist():
                number += 1
                yield TableRow(f"{path}: row {number}", {name: _bare(value) for name, value in values.items()})


def _bare(value: Any) -> Any:
    """``value`` without null fields: parquet gives every object of a column the fields of all of them."""
    if isinstance(value, dict):
        return {key: _bare(item) for key, item in value.items() if item is not None}
    return [_bare(item) for item in value] if isinstance(value, list) else value
