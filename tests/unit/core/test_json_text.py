"""Strict JSON: one reading of a file, or none."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from langwright.core.errors import FormatError, UserError
from langwright.core.json_text import parse_json, read_json, read_json_object, write_json

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(VALUES)
def test_round_trip(value: object) -> None:
    text = write_json(value)
    assert parse_json(text, "text") == value
    assert parse_json(text.encode(), "text") == value


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ('{"a": 1, "a": 2}', "key 'a' stands twice"),
        ('{"a": {"b": 1, "\\u0062": 2}}', "key 'b' stands twice"),
        ("[NaN]", "NaN is not JSON"),
        ("[-Infinity]", "-Infinity is not JSON"),
        ("[1e999]", "1e999 is too large"),
        ("[-1e999]", "too large"),
        ("9" * 5000, "not valid JSON"),
        ('"\\ud800"', "surrogates not allowed"),
        ('{"\\udc00": 1}', "surrogates not allowed"),
        (b'"\xff"', "not valid JSON"),
        (b'"\xed\xa0\x80"', "not valid JSON"),
        (b"\xef\xbb\xbf{}", "BOM"),
        ("", "not valid JSON"),
        ("{'a': 1}", "not valid JSON"),
        ("[1,]", "not valid JSON"),
        ("[1] 2", "Extra data"),
        ("// a comment\n1", "not valid JSON"),
        ("[" * 200_000, "nested too deeply"),
        ('{"a":' * 200_000, "nested too deeply"),
    ],
)
def test_what_is_not_json_is_refused_in_one_line(text: str | bytes, what: str) -> None:
    with pytest.raises(FormatError, match=what) as caught:
        parse_json(text, "some file")
    assert str(caught.value).startswith("some file: ")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_a_whole_surrogate_pair_is_a_character() -> None:
    assert parse_json('"\\ud83d\\ude42"', "text") == "🙂"


def test_files_are_read_within_a_bound(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('{"a": 1}')
    assert read_json(path, limit=8) == {"a": 1}
    with pytest.raises(FormatError, match="larger than"):
        read_json(path, limit=7)
    with pytest.raises(FormatError, match="larger than"):
        read_json(Path("/dev/zero"), limit=1 << 16)


def test_missing_files_and_folders(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        read_json(tmp_path / "absent.json")
    with pytest.raises(UserError, match="cannot be read: Is a directory"):
        read_json(tmp_path)


def test_an_object_is_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text("[]")
    with pytest.raises(FormatError, match="should hold a JSON object, holds a list"):
        read_json_object(path)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), [float("-inf")]])
def test_what_is_not_json_is_not_written(value: object) -> None:
    with pytest.raises(ValueError):
        write_json(value)
