"""The split: equal texts on one side, the same on every machine and in any order, and a fair share."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from langwright.core.errors import UserError
from langwright.data.corpus import CORPORA, corpus_path
from langwright.data.split import SplitName, SplitRule, choose_rule, divide, is_held_out, text_hash


def rule(name: str, fraction: float = 0.05, seed: int = 0) -> SplitRule:
    return SplitRule.parse({"rule": name, "val_fraction": fraction, "seed": seed}, "test")


def choose(texts: list[str], name: SplitName = "auto", fraction: float = 0.05) -> str:
    held = [text for text in texts if is_held_out(text, fraction)]
    chosen = choose_rule(
        name,
        val_fraction=fraction,
        seed=0,
        n_documents=len(texts),
        n_bytes=sum(map(len, texts)),
        held_out=len(held),
        held_out_bytes=sum(map(len, held)),
    )
    return chosen.rule


def test_the_hash_is_the_same_on_every_machine():
    assert text_hash("To be, or not to be", 0) == 5282803554243547572
    assert text_hash("三", 1) == 5638440381599559348


@given(texts=st.lists(st.text(), min_size=1), seed=st.integers(0, 9))
def test_a_document_is_whole_on_one_side_whatever_the_order(texts, seed):
    sides = {text: divide(text, rule("documents", 0.5, seed)) for text in texts}
    random.Random(0).shuffle(texts)
    for text in texts:
        assert divide(text, rule("documents", 0.5, seed)) == sides[text]
        assert sides[text] in ((text, ""), ("", text))


def test_the_share_is_about_what_was_asked_for():
    texts = [f"document {number}" for number in range(20_000)]
    for fraction in (0.01, 0.05, 0.5, 0.9):
        share = sum(is_held_out(text, fraction) for text in texts) / len(texts)
        assert share == pytest.approx(fraction, abs=4 * (fraction * (1 - fraction) / len(texts)) ** 0.5)
    assert {text for text in texts if is_held_out(text, 0.1)} != {text for text in texts if is_held_out(text, 0.1, 1)}
    assert all(is_held_out(text, 0.2) for text in texts if is_held_out(text, 0.1))  # a larger share holds the smaller


@given(text=st.text(), fraction=st.floats(0.001, 0.999))
def test_the_tail_of_every_document(text, fraction):
    train, val = divide(text, rule("tail", fraction))
    assert train + val == text
    assert len(train) == int(len(text) * (1 - fraction))


def test_nanogpts_split_of_tiny_shakespeare():
    text = corpus_path("shakespeare").read_text(encoding="utf-8")
    train, val = divide(text, rule("tail", 0.1))
    assert (train, val) == (text[: int(len(text) * 0.9)], text[int(len(text) * 0.9) :])
    assert (len(train), len(val)) == (1_003_854, 111_540)


def test_auto_takes_whole_documents_where_there_are_enough():
    many = [f"document {number}" for number in range(400)]
    assert choose(many) == "documents"
    assert choose(many[:28]) == "tail"
    assert choose(many[:1]) == "tail"
    assert choose(many[:28], fraction=0.2) == "documents"
    huge = [f"{number} " * 100_000 for number in range(40)]
    held = next(text for text in huge if is_held_out(text, 0.3))
    kept = next(text for text in huge if not is_held_out(text, 0.3))
    assert choose([*many, held], fraction=0.3) == choose([*many, kept], fraction=0.3) == "tail"  # no fair share
    assert choose(many, "tail") == "tail"


def test_an_empty_side_is_refused():
    texts = [f"document {number}" for number in range(400)]
    held = [text for text in texts if is_held_out(text, 0.05)]
    kept = [text for text in texts if not is_held_out(text, 0.05)]
    with pytest.raises(UserError, match=r"leaves validation empty: .* --split tail"):
        choose(kept[:3], "documents")
    with pytest.raises(UserError, match="leaves training empty"):
        choose(held[:3], "documents")
    assert choose(texts, "documents") == "documents"


def test_every_rule_is_told_in_words():
    assert "5 %" in rule("documents").describe()
    assert "end" in rule("tail").describe() or "last" in rule("tail").describe()
    assert "given" in rule("files", 0.0).describe()


def test_corpora_ship():
    for name in CORPORA:
        text = corpus_path(name).read_text(encoding="utf-8")
        assert len(text.encode()) > 700_000
        assert name in corpus_path(name).with_name("LICENSE.md").read_text(encoding="utf-8")
    with pytest.raises(UserError, match="shakespeare, tang_poems"):
        corpus_path("bible")
