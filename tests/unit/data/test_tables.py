"""Rows of every kind of file, and one clear line for every kind of bad file."""

import csv
import gzip
import io
import json
from pathlib import Path
from typing import Any

import pyarrow as arrow
import pytest
import zstandard
from pyarrow import parquet

from langwright.core.errors import UserError
from langwright.data import tables
from langwright.data.tables import TableRow, find_tables, read_rows, read_tables

ROWS = [{"prompt": "one", "completion": "1, or\n一"}, {"prompt": 'two "2"', "completion": "zwei\töä 🙂"}]
PACK = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.compress}


def as_csv(separator: str) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(ROWS[0]), delimiter=separator)
    writer.writeheader()
    writer.writerows(ROWS)
    return text.getvalue().encode()


LINES = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
FILES = {
    ".jsonl": LINES,
    ".ndjson": b"\xef\xbb\xbf" + LINES.replace(b"\n", b"\r\n\r\n"),
    ".json": json.dumps(ROWS, indent=1).encode(),
    ".csv": as_csv(","),
    ".tsv": b"\xef\xbb\xbf" + as_csv("\t"),
}


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def values(path: Path) -> list[dict[str, Any]]:
    return [row.values for row in read_rows(path)]


def refusal(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        list(read_tables([path]))
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(str(path))
    return message


@pytest.mark.parametrize("packing", PACK)
@pytest.mark.parametrize("kind", FILES)
def test_every_kind_holds_the_same_rows(tmp_path: Path, kind: str, packing: str) -> None:
    assert values(write(tmp_path / f"a{kind}{packing}", PACK[packing](FILES[kind]))) == ROWS


def test_parquet_and_its_null_fields(tmp_path: Path) -> None:
    parquet.write_table(arrow.Table.from_pylist(ROWS), tmp_path / "a.parquet")
    assert values(tmp_path / "a.parquet") == ROWS
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": None, "tool_calls": [{"name": "f"}]}]
    parquet.write_table(arrow.Table.from_pylist([{"messages": messages, "system": None}]), tmp_path / "b.parquet")
    assert values(tmp_path / "b.parquet") == [
        {"messages": [messages[0], {"role": "assistant", "tool_calls": [{"name": "f"}]}], "system": None}
    ]


def test_an_object_with_one_list_of_objects(tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", json.dumps({"version": 1, "tags": ["x"], "data": ROWS}))
    assert list(read_rows(path)) == [TableRow(f"{path}: row {n}", row) for n, row in enumerate(ROWS, start=1)]


def test_rows_know_their_lines(tmp_path: Path) -> None:
    lines = write(tmp_path / "a.jsonl", b"\n" + LINES.replace(b"\n", b"\n\n"))
    assert [row.where for row in read_rows(lines)] == [f"{lines}: line 2", f"{lines}: line 4"]
    table = write(tmp_path / "a.csv", 'a,b\n1,"two\nlines"\n\n3,4\n')
    assert [row.where for row in read_rows(table)] == [f"{table}: line 2", f"{table}: line 5"]


def test_text_files_are_one_row(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", "some text\n")
    assert list(read_rows(path)) == [TableRow(str(path), {"text": "some text\n"})]


def test_folders_are_sorted_and_files_read_once(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a.csv", ".hidden.jsonl"):
        write(tmp_path / name, FILES[Path(name).suffix])
    write(tmp_path / "photo.jpg", b"\xff\xd8")
    (tmp_path / "link.jsonl").symlink_to(tmp_path / "b.jsonl")
    assert [path.name for path in find_tables([tmp_path, tmp_path / "b.jsonl"])] == ["a.csv", "b.jsonl"]
    assert len(list(read_tables([tmp_path]))) == 4


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("a.jsonl", LINES + b"{\n", "line 3: not valid JSON"),
        ("a.jsonl", LINES + b"[1]\n", "line 3: should be a JSON object, is a list"),
        ("a.jsonl", b"caf\xe9", "byte 3 is not UTF-8"),
        ("a.jsonl", b"\n", "holds no rows"),
        ("a.json", LINES, "if each line is an object of its own, call the file .jsonl"),
        ("a.json", b'{"a": [{}], "b": [{}]}', "has lists of objects under 'a', 'b'"),
        ("a.json", b'{"a": 1}', "no list of objects (keys: 'a')"),
        ("a.json", b"3", "should hold a list of objects, holds a int"),
        ("a.json", b"[{}, 3]", "row 2: should be a JSON object, is a int"),
        ("a.json", b"[]", "holds no rows"),
        ("a.csv", b"a,b\n1,2\n1,2,3\n", "line 3: has 3 fields where the first line names 2"),
        ("a.csv", b"a,a\n1,2\n", "line 1: names the column 'a' twice"),
        ("a.csv", b"a,\n1,2\n", "line 1: leaves a column without a name"),
        ("a.csv", b"a;b\n1;2\n", "columns are parted by ',', not ';'"),
        ("a.csv", b'a,b\n1,"2\n', "line 2: not sound CSV"),
        ("a.csv", b'a,b\n1,"2"3\n', "line 2: not sound CSV"),
        ("a.csv", b"a,b\n", "holds no rows"),
        ("a.parquet", b"PAR1 and no more", "not a sound parquet file"),
        ("a.jsonl.gz", gzip.compress(LINES, mtime=0)[:-9], "damaged or cut short"),
        ("a.jsonl.zst", zstandard.compress(LINES)[:-2], "cut short"),
        ("a.xlsx", b"", "not a kind of file that holds rows"),
        ("a.parquet.gz", b"", "not a kind of file that holds rows"),
    ],
)
def test_bad_files_are_named(tmp_path: Path, name: str, content: bytes, told: str) -> None:
    assert told in refusal(write(tmp_path / name, content))


def test_missing_files_and_empty_folders(tmp_path: Path) -> None:
    assert "no such file or folder" in refusal(tmp_path / "none.jsonl")
    (tmp_path / "empty").mkdir()
    assert "holds no .jsonl" in refusal(tmp_path / "empty")


def test_a_json_file_that_is_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "JSON_LIMIT", 1 << 20)
    with pytest.raises(UserError, match=r"larger than 1 MiB; .* call it .jsonl"):
        list(read_rows(write(tmp_path / "a.json.gz", gzip.compress(b" " * (2 << 20)))))
