"""The X-ray shows every token once, and nothing of the data runs in its page."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from langwright.apps.data_survey import Survey, survey
from langwright.apps.xray import KINDS, legend, to_page, to_plain, to_terminal, xray
from langwright.core.errors import UserError
from langwright.data.examples import Chat, Text
from langwright.data.rendering import Renderer
from tests.unit.data.talking import IM_END, chatty, plain, talk, template_of

SCRIPT = "<script>alert('公园')</script>"


def renderer() -> Renderer:
    return Renderer(chatty(), template_of(chatty()))


def look(folder: Path, lines: str, **options) -> Survey:
    path = folder / "rows.jsonl"
    path.write_text(lines, encoding="utf-8")
    return survey([path], **options)


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20), st.integers(0, 30))
@settings(deadline=None, max_examples=60)
def test_pieces_are_the_text_and_hold_every_token(said: str, limit: int) -> None:
    row = renderer().render(Chat(talk("你好 🙂", said)))
    ray = xray(row, chatty(), limit)
    assert "".join(piece.text for piece in ray.pieces) == chatty().decode(row.ids)
    assert [index for piece in ray.pieces for index in piece.ids] == row.ids
    assert sum(ray.counts.values()) == len(row.ids)
    assert ray.counts["cut"] == max(0, len(row.ids) - limit)


def test_kinds_of_tokens() -> None:
    row = renderer().render(Chat(talk("Hello", "Fox", "a", "b")))
    ray = xray(row, chatty())
    said = {kind: "".join(piece.text for piece in ray.pieces if piece.kind == kind) for kind in KINDS}
    assert (said["trained"], said["end"], said["cut"]) == ("Foxb", IM_END * 2, "")
    assert ray.counts["end"] == 2
    cut = xray(row, chatty(), row.trained.index(True) + 1)
    assert cut.counts["trained"] == 1
    assert cut.counts["end"] == 0


def test_half_a_character_at_the_end_is_shown() -> None:
    row = Renderer(plain(), None).render(Text("🙂"))
    half = type(row)(row.ids[:1], row.trained[:1], row.where, row.text)
    (piece,) = xray(half, plain()).pieces
    assert (piece.text, piece.ids) == ("\ufffd", tuple(row.ids[:1]))


def test_the_terminal_shows_colours_or_brackets() -> None:
    row = renderer().render(Chat(talk("Hello\n", "Fox", "a", "b" * 400)))
    ray = xray(row, chatty(), len(row.ids) - 100)
    text = to_terminal(ray)
    assert "Hello⏎\n" in text.plain
    styles = {text.plain[span.start : span.end]: span.style for span in text.spans}
    assert styles[IM_END] == KINDS["context"][2]
    assert KINDS["end"][2] in {span.style for span in text.spans}
    shown = to_plain(ray)
    assert f"⟦Fox{IM_END}⟧⏎\n" in shown
    assert shown.count("✂") == 1
    assert len(shown) < len(row.text)
    assert "trained" in legend().plain


def test_the_page_escapes_and_forbids_scripts(tmp_path: Path) -> None:
    lines = f'{{"prompt": "{SCRIPT}", "completion": "Fox"}}\n' * 2 + '{"prompt": "a", "completion": ""}\n'
    found = look(tmp_path, lines, renderer=renderer(), max_tokens=20)
    page = to_page(found, [xray(row, chatty(), 20) for row in found.rendered])
    assert "<script" not in page
    assert "&lt;" in page
    assert "公" in page
    assert "default-src 'none'" in page
    for part in (
        "trained end of a turn",
        "学习的结束符",
        "an empty answer",
        "prefers-color-scheme: dark",
        'name="viewport"',
    ):
        assert part in page
    for address in ("http://", "https://", "url(", "<img", "<link", "@import"):
        assert address not in page


def test_the_page_without_a_model_shows_the_rows(tmp_path: Path) -> None:
    found = look(tmp_path, '{"text": "<b>fine</b>", "label": "pos"}\n')
    page = to_page(found, [])
    assert "&lt;b&gt;fine&lt;/b&gt;" in page
    assert "pos 1" in page


def test_a_survey_counts(tmp_path: Path) -> None:
    rows = [("one", "a"), ("One ", "b"), ("x" * 40, "a"), (" ", "a")]
    lines = [json.dumps({"text": text, "label": label}) + "\n" for text, label in rows]
    found = look(tmp_path, "".join(lines), show=1)
    assert (found.rows, found.dropped, found.labels) == (4, {"no text": 1}, {"a": 2, "b": 1})
    assert found.repeats.rows == 1
    assert found.lengths == [3, 4, 40]
    assert found.histogram == [(2, 3, 1), (4, 7, 1), (8, 15, 0), (16, 31, 0), (32, 63, 1)]
    assert [found.quantile(share) for share in (0.01, 0.5, 0.9, 1.0)] == [3, 4, 40, 40]
    assert len(found.samples) == 1
    assert found.summary()["lengths"]["unit"] == "characters"


def test_a_survey_renders_and_checks(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    rows = '{"prompt": "a", "completion": "b"}\n{"prompt": "a", "completion": "b\\ud800"}\n'
    with pytest.raises(UserError, match="surrogate"):
        look(tmp_path, rows, renderer=renderer())
    rows = '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}\n' * 3
    found = look(
        tmp_path, rows, renderer=renderer(), max_tokens=4, progress=lambda done, total: told.append((done, total))
    )
    assert told == [(1, 3), (2, 3), (3, 3)]
    assert (found.unit, found.over, found.trained) == ("tokens", 3, 0)
    with pytest.raises(UserError, match="no row can be used: .*--chat-template chatml"):
        look(tmp_path, rows, renderer=Renderer(plain(), None))
