"""Reading documents: every format, what is passed over, and one clear line for every kind of bad input."""

import gzip
import json
import sys
from collections import Counter
from pathlib import Path

import pyarrow as arrow
import pytest
import zstandard
from pyarrow import parquet

from langwright.core.errors import FormatError, UserError
from langwright.data import formats
from langwright.data.sources import describe_sources, find_files, read_documents

ROWS = [{"id": 1, "text": "one"}, {"id": 2, "text": "zwei\n\nöäü"}, {"id": 3, "text": "三个字 🙂"}]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
TEXTS = [row["text"] for row in ROWS]


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def texts(*paths: Path, **options) -> list[str]:
    return [document.text for document in read_documents(paths, **options)]


def refusal(*paths: Path, **options) -> str:
    with pytest.raises(UserError) as caught:
        texts(*paths, **options)
    message = str(caught.value)
    assert "\n" not in message
    assert str(paths[0]) in message
    return message


@pytest.mark.parametrize("name", ["a.txt", "a.md", "a.py", "Makefile"])
def test_a_file_of_text_is_one_document(tmp_path, name):
    assert texts(write(tmp_path / name, "first\r\n\r\nsecond\n")) == ["first\r\n\r\nsecond\n"]


@pytest.mark.parametrize(
    ("suffix", "pack"),
    [("", bytes), (".gz", gzip.compress), (".zst", zstandard.compress), (".GZ", gzip.compress)],
)
def test_packed_files(tmp_path, suffix, pack):
    assert texts(write(tmp_path / f"a.jsonl{suffix}", pack(LINES))) == TEXTS
    assert texts(write(tmp_path / f"b.txt{suffix}", pack("grün".encode()))) == ["grün"]


@pytest.mark.parametrize(("suffix", "pack"), [(".gz", gzip.compress), (".zst", zstandard.compress)])
def test_several_packed_members_in_a_row(tmp_path, suffix, pack):
    lines = LINES.splitlines(keepends=True)
    assert texts(write(tmp_path / f"a.jsonl{suffix}", b"".join(pack(line) for line in lines))) == TEXTS


def test_large_zstd_window_streams(tmp_path):
    text = "".join(f"{number} " for number in range(60_000))
    assert texts(write(tmp_path / "a.txt.zst", zstandard.compress(text.encode(), 19))) == [text]


def test_parquet_by_row_group(tmp_path):
    parquet.write_table(arrow.table({"id": [1, 2, 3], "body": TEXTS}), tmp_path / "a.parquet", row_group_size=1)
    documents = list(read_documents([tmp_path / "a.parquet"], text_field="body"))
    assert [document.text for document in documents] == TEXTS
    assert documents[2].source == f"{tmp_path / 'a.parquet'}:3"
    dictionary = arrow.table({"body": arrow.array(TEXTS).dictionary_encode()})
    parquet.write_table(dictionary, tmp_path / "b.parquet")
    assert texts(tmp_path / "b.parquet", text_field="body") == TEXTS


def test_byte_order_mark_is_dropped(tmp_path):
    assert texts(write(tmp_path / "a.txt", b"\xef\xbb\xbfhello")) == ["hello"]
    assert texts(write(tmp_path / "a.jsonl", b"\xef\xbb\xbf" + LINES)) == TEXTS


def test_source_and_language_are_kept(tmp_path):
    write(tmp_path / "src" / "a.rs", "fn main() {}")
    write(tmp_path / "b.jsonl", LINES)
    documents = {document.source: document for document in read_documents([tmp_path])}
    assert documents[f"{tmp_path / 'src' / 'a.rs'}"].meta == {"language": "rust"}
    assert documents[f"{tmp_path / 'b.jsonl'}:3"].text == TEXTS[2]


def test_folders_are_sorted_and_junk_is_counted(tmp_path):
    for name in ("b.txt", "a.txt", "sub/c.md", "sub/a.py"):
        write(tmp_path / name, name)
    write(tmp_path / ".git" / "config.txt", "x")
    write(tmp_path / ".hidden.txt", "x")
    write(tmp_path / "node_modules" / "x.js", "x")
    write(tmp_path / "env" / "pyvenv.cfg", "x")
    write(tmp_path / "photo.jpg", b"\xff\xd8")
    write(tmp_path / "odd.c", b"\x00\x01\x02")
    write(tmp_path / "latin.c", b"// caf\xe9 cr\xe8me")
    write(tmp_path / "blank.txt", " \n")
    (tmp_path / "link.txt").symlink_to(tmp_path / "a.txt")
    (tmp_path / "loop").symlink_to(tmp_path)
    skipped: Counter[str] = Counter()
    assert texts(tmp_path, skipped=skipped) == ["a.txt", "b.txt", "sub/a.py", "sub/c.md"]
    assert skipped == {
        "hidden": 2, "junk folder": 2, "unknown kind": 1, "binary": 1, "not UTF-8": 1, "no text": 1, "symbolic link": 2,
    }  # fmt: skip


def test_links_are_followed_once_when_asked(tmp_path):
    write(tmp_path / "here" / "a.txt", "a")
    write(tmp_path / "there" / "b.txt", "b")
    (tmp_path / "here" / "link").symlink_to(tmp_path / "there")
    (tmp_path / "here" / "loop").symlink_to(tmp_path / "here")
    (tmp_path / "here" / "again.txt").symlink_to(tmp_path / "here" / "a.txt")
    assert sorted(texts(tmp_path / "here", follow_links=True)) == ["a", "b"]


def test_a_file_named_twice_is_read_once_and_a_folder_can_be_left_out(tmp_path):
    file = write(tmp_path / "a.txt", "a")
    write(tmp_path / "out" / "b.txt", "b")
    assert texts(file, tmp_path, exclude=tmp_path / "out") == ["a"]


def test_long_text_is_cut_at_line_ends(tmp_path, monkeypatch):
    monkeypatch.setattr(formats, "TEXT_BLOCK", 64)
    text = "".join(f"línea número {number}\n" for number in range(40))
    path = write(tmp_path / "a.txt", text)
    documents = list(read_documents([path]))
    assert "".join(document.text for document in documents) == text
    assert all(document.text.endswith("\n") and len(document.text.encode()) <= 64 for document in documents)
    assert documents[1].source == f"{path}#2"
    for n_chars in (*range(60, 70), 128):
        endless = "三" * n_chars
        assert "".join(texts(write(tmp_path / "b.txt", endless))) == endless


def test_sources_are_described(tmp_path):
    write(tmp_path / "in" / "a.txt", "a")
    write(tmp_path / "in" / "b.txt", "bb")
    first = describe_sources(find_files([tmp_path / "in"]), "input")
    assert (first[0].files, first[0].bytes) == (2, 3)
    write(tmp_path / "in" / "b.txt", "bc")
    assert describe_sources(find_files([tmp_path / "in"]), "input") != first


# Bad input ------------------------------------------------------------------------------------------------------------


def test_missing_and_unknown(tmp_path):
    assert "no such file" in refusal(tmp_path / "absent.txt")
    assert "not a kind of file" in refusal(write(tmp_path / "a.json", "[]"))
    assert "not a kind of file" in refusal(write(tmp_path / "a.parquet.gz", b""))


def test_nothing_to_read(tmp_path):
    assert "holds no text" in refusal(tmp_path)
    assert "1 no text" in refusal(write(tmp_path / "a.txt", b"\xef\xbb\xbf  \n"))
    assert "holds no text" in refusal(write(tmp_path / "a.jsonl", '{"text": null}\n{"text": ""}\n'))


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("abc".encode("utf-16"), ["byte 0", "UTF-16"]),
        (b"plain \xe9t\xe9", ["byte 6", "iconv -f WINDOWS-1252 -t UTF-8"]),
        ("滚滚长江东逝水，浪花淘尽英雄。".encode("gb18030"), ["byte 0", "Chinese", "iconv -f GB18030"]),
        (b"good \xe4\xbd", ["byte 5"]),
    ],
)
def test_other_encodings_are_named_with_the_remedy(tmp_path, content, told):
    message = refusal(write(tmp_path / "it's.txt", content))
    assert all(part in message for part in told)
    assert "zstd -dc" in refusal(write(tmp_path / "b.txt.zst", zstandard.compress(content)))


def test_bytes_that_are_not_utf8_are_counted_from_the_start_of_the_file(tmp_path):
    path = write(tmp_path / "a.jsonl", LINES + b'{"text": "caf\xe9"}\n')
    assert f"byte {len(LINES) + 13} " in refusal(path)


def test_binary_named_as_text(tmp_path):
    assert "NUL" in refusal(write(tmp_path / "a.txt", "ab".encode("utf-16-le")))


@pytest.mark.parametrize(
    ("line", "told"),
    [
        (b"{not json}", "not valid JSON"),
        (b"[1]", "should be a JSON object"),
        (b'{"body": "x", "title": "y"}', "no field 'text'; it has 'body', 'title'"),
        (b"{}", "it has none"),
        (b'{"text": 3}', "holds a int"),
        (rb'{"text": "a\ud800b"}', "surrogates"),
        (b'{"text": NaN}', "NaN"),
        (b'{"text": "a", "text": "b"}', "stands twice"),
        (b"[" * 100_000, "nested"),
    ],
)
def test_bad_lines_are_named(tmp_path, line, told):
    path = write(tmp_path / "a.jsonl", LINES + b"\n" + line + b"\n")
    assert "line 5" in refusal(path)
    assert told in refusal(path)


def test_endless_line(tmp_path, monkeypatch):
    monkeypatch.setattr(formats, "LINE_LIMIT", 1 << 20)
    path = write(tmp_path / "a.jsonl.zst", zstandard.compress(LINES + b'{"text": "' + bytes(50 << 20)))
    assert "line 4: longer than 1 MiB" in refusal(path)


@pytest.mark.parametrize(("suffix", "pack"), [(".gz", gzip.compress), (".zst", zstandard.compress)])
def test_packed_files_cut_short_anywhere(tmp_path, suffix, pack):
    lines = b"".join(json.dumps({"text": f"line {n * n}"}).encode() + b"\n" for n in range(50))
    whole = pack(lines)
    for length in range(1, len(whole), 3):
        path = write(tmp_path / f"a.jsonl{suffix}", whole[:length])
        with pytest.raises(UserError, match=r"cut short|damaged"):
            texts(path)


@pytest.mark.parametrize(
    ("suffix", "pack"), [(".gz", gzip.compress), (".zst", zstandard.ZstdCompressor(write_checksum=True).compress)]
)
def test_packed_files_with_flipped_bits(tmp_path, suffix, pack):
    whole = pack(LINES * 5)
    for place in range(0, len(whole), 2):
        damaged = bytearray(whole)
        damaged[place] ^= 0x10
        try:
            read = texts(write(tmp_path / f"a.jsonl{suffix}", bytes(damaged)))
        except UserError:
            continue
        assert read == TEXTS * 5  # a bit that means nothing, such as the time stamp of gzip


def test_bad_parquet(tmp_path):
    parquet.write_table(arrow.table({"text": TEXTS, "number": [1, 2, 3]}), tmp_path / "a.parquet")
    whole = (tmp_path / "a.parquet").read_bytes()
    assert "no column 'body'; it has 'text', 'number'" in refusal(tmp_path / "a.parquet", text_field="body")
    assert "row 1" in refusal(tmp_path / "a.parquet", text_field="number")
    for length in range(0, len(whole), 97):
        with pytest.raises(FormatError):
            texts(write(tmp_path / "b.parquet", whole[:length]))


def test_missing_library_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "zstandard", None)
    for name in ("a.parquet", "a.txt.zst"):
        assert "pip install 'langwright[data]'" in refusal(write(tmp_path / name, b""))


def test_unreadable_folder_is_named(tmp_path, monkeypatch):
    def refuse(place):
        raise PermissionError(13, "Permission denied", str(place))

    monkeypatch.setattr("os.scandir", refuse)
    assert "Permission denied" in refusal(tmp_path)
