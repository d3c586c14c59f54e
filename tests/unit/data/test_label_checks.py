"""What stops a run before it learns the wrong thing; the named complaints are those of users of other libraries."""

import pytest

from langwright.core.errors import UserError
from langwright.data.examples import Chat, Completion, Labelled, Text
from langwright.data.label_checks import check_apart, check_pairs, check_rendered, duplicates, overlap
from langwright.data.rendering import Rendered, Renderer
from langwright.tokenizer.template_choice import with_template
from tests.unit.data.talking import IM_END, IM_START, chatty, plain, talk, template_of

TOKENIZER = chatty()


def row(*contents: str, where: str = "rows.jsonl: line 4") -> Rendered:
    return Renderer(TOKENIZER, template_of(TOKENIZER)).render(Chat(talk(*contents), (), where))


def refusal(*rows: Rendered, max_tokens: int = 1000, **options) -> str:
    with pytest.raises(UserError) as caught:
        check_rendered(rows, TOKENIZER, max_tokens, **options)
    assert str(caught.value).startswith("rows.jsonl: line 4: ")
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_sound_rows_pass() -> None:
    rows = [row("Hello", "Fox"), row("a", "b", "c", "d")]
    assert check_rendered(rows, TOKENIZER, 1000) == (rows, {})


def test_eos_is_trained_though_pad_is_eos() -> None:
    """EOS masked because pad = EOS, so the model never stops (trl 1623 and 6357, transformers 48016)."""
    assert TOKENIZER.pad_id == TOKENIZER.eos_id
    sound = row("Hello", "Fox")
    ends = [place for place, index in enumerate(sound.ids) if index == TOKENIZER.eos_id and sound.trained[place]]
    assert len(ends) == 1
    masked = [flag and index != TOKENIZER.pad_id for index, flag in zip(sound.ids, sound.trained, strict=True)]
    assert "its end is never trained" in refusal(Rendered(sound.ids, masked, sound.where, sound.text))
    first_only = row("a", "b", "c", "d")
    last = max(place for place, flag in enumerate(first_only.trained) if flag)
    flags = [flag and place != last for place, flag in enumerate(first_only.trained)]
    assert "its end is never trained" in refusal(Rendered(first_only.ids, flags, first_only.where, first_only.text))


def test_a_template_without_ends_is_refused() -> None:
    endless = with_template(plain(), "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
                            "{% if add_generation_prompt %}assistant: {% endif %}")  # fmt: skip
    found = Renderer(endless, template_of(endless)).render(Chat(talk("a", "b")))
    with pytest.raises(UserError, match=r"its end is never trained.*end token of the tokenizer \(<\|endoftext\|>\)"):
        check_rendered([found], endless, 100)


def test_truncation_that_removes_every_label_fails() -> None:
    """Truncation removes every label while the loss shows 0.0 (trl 3927)."""
    long = row("Hello " * 50, "Fox")
    start = long.trained.index(True)
    said = refusal(long, max_tokens=start, too_long="cut")
    assert f"no trained token is left after the cut to {start}" in said
    (kept,), dropped = check_rendered([long], TOKENIZER, start + 1, "cut")
    assert kept.trained == [False] * start + [True]
    assert dropped == {f"cut to {start + 1} tokens": 1}
    assert f"{len(long.ids)} tokens where 10 are allowed; allow longer rows" in refusal(long, max_tokens=10)
    rows, dropped = check_rendered([long, row("a", "b")], TOKENIZER, 50, "drop")
    assert (len(rows), dropped) == (1, {"longer than 50 tokens": 1})
    with pytest.raises(UserError, match=r"no row is left to learn from \(1 longer than 50 tokens\)"):
        check_rendered([long], TOKENIZER, 50, "drop")


def test_double_bos_is_refused() -> None:
    """Two BOS at the beginning (vllm 16976)."""
    sound = row("a", "b")
    doubled = Rendered([sound.ids[0], *sound.ids], [False, *sound.trained], sound.where, IM_START + sound.text)
    assert f"begins with {IM_START} twice" in refusal(doubled)


def test_user_text_that_became_a_control_token_is_found() -> None:
    """<|im_end|> in a message, encoded by whoever did not look (transformers 29279)."""
    sound = row(f"a{IM_END}b", f"{IM_START}c")
    check_rendered([sound], TOKENIZER, 100)
    forged = TOKENIZER.encode(sound.text, allow_special=True)
    flags = [False] * (len(forged) - 2) + [True] * 2
    said = refusal(Rendered(forged, flags, sound.where, sound.text, sound.spelled))
    assert "a control token that the content spells became that token" in said


def test_a_row_without_a_trained_token() -> None:
    sound = row("a", "b")
    assert "no token is trained" in refusal(Rendered(sound.ids, [False] * len(sound.ids), sound.where, sound.text))
    alone = Rendered([TOKENIZER.eos_id or 0], [True], sound.where, IM_END)
    assert "no token is trained" in refusal(alone)  # nothing stands before it


def test_api_misuse_is_a_value_error() -> None:
    with pytest.raises(ValueError, match="2 ids and 1 flags"):
        check_rendered([Rendered([1, 2], [True], "w", "x")], TOKENIZER, 10)
    with pytest.raises(ValueError, match="max_tokens is 1"):
        check_rendered([row("a", "b")], TOKENIZER, 1)


def test_pairs_are_dropped_together() -> None:
    short, long = row("a", "b"), row("a", "b" * 100)
    kept, dropped = check_pairs([(short, long), (short, short)], TOKENIZER, 50, "drop")
    assert (kept, dropped) == ([(short, short)], {"longer than 50 tokens": 1})
    kept, _ = check_pairs([(short, long)], TOKENIZER, 50, "cut")
    assert [len(side.ids) for side in kept[0]] == [len(short.ids), 50]


def test_overlap_of_train_and_test() -> None:
    train = [Text("One  two", "a: 1"), Text("three", "a: 2"), Text("ONE two", "a: 3")]
    test = [Text("four", "b: 1"), Text("one\ntwo ", "b: 2"), Text("Three", "b: 3")]
    assert overlap(train, test) == (2, ("a: 1", "b: 2"))
    assert overlap(train, test[:1]) == (0, None)
    with pytest.raises(UserError, match=r"2 test rows stand in the training rows too \(the first: b: 2 is a: 1\)"):
        check_apart(train, test)
    check_apart(train, test[:1])
    assert overlap([Labelled("x", None, ("a",))], [Labelled("X", None, ("b",))]).rows == 1
    assert overlap([Completion("x", "y")], [Completion("x", "z")]).rows == 0


def test_duplicates() -> None:
    items = [Text("a b", "1"), Text("c", "2"), Text("A  B", "3"), Text("a b", "4")]
    assert duplicates(items) == (2, ("1", "3"))
    assert duplicates(items[:2]) == (0, None)
    assert duplicates([row("a", "b"), row("a", "b")]).rows == 1
