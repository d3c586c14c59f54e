"""Unused control tokens as sentinels of fill-in-the-middle."""

from pathlib import Path

import pytest

from langwright.core.errors import UserError
from langwright.infer.prompts import encode_gap
from langwright.tokenizer.load import load_tokenizer
from langwright.tokenizer.sentinels import SENTINELS, with_sentinels
from langwright.tokenizer.tokenizer import Tokenizer
from tests.unit.infer.small import byte_tokenizer

UNUSED = ("<a>", "<b>", "<c>")


@pytest.fixture
def tokenizer() -> Tokenizer:
    made = byte_tokenizer(bos=False)
    made.backend.add_special_tokens([*UNUSED])
    return Tokenizer(made.backend, roles=made.roles)


def test_ids_stay_what_they_are(tokenizer: Tokenizer, tmp_path: Path):
    found = with_sentinels(tokenizer, UNUSED)
    for name, sentinel in zip(UNUSED, SENTINELS, strict=True):
        assert found.id(sentinel) == tokenizer.id(name)
        assert found.id(name) is None
        assert found.id(sentinel) in found.controls
    assert found.id("<|fim_prefix|>") not in found.encode("<|fim_prefix|>")  # no text can become one
    assert found.vocab_size == tokenizer.vocab_size
    found.save(tmp_path)
    again = load_tokenizer(tmp_path)
    assert [again.id(name) for name in SENTINELS] == [found.id(name) for name in SENTINELS]
    prefix, suffix, middle = (again.id(name) for name in SENTINELS)
    assert encode_gap(again, "so ", "一") == [prefix, *b"so ", suffix, *"一".encode(), middle]


def test_refusals(tokenizer: Tokenizer):
    with pytest.raises(UserError, match="three control tokens"):
        with_sentinels(tokenizer, ("<a>", "<b>", "<b>"))
    for used in ("words", "</s>"):
        with pytest.raises(UserError, match="not a control token"):
            with_sentinels(tokenizer, ("<a>", "<b>", used))
    with pytest.raises(UserError, match="already"):
        with_sentinels(with_sentinels(tokenizer, UNUSED), UNUSED)
    with pytest.raises(UserError, match="cannot fill in"):
        encode_gap(tokenizer, "a", "b")
