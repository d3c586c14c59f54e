"""Cutting long documents: the pieces are the text, and give its tokens with every pre-tokenizer that we train."""

import json
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from langwright.data.corpus import CORPORA, corpus_path
from langwright.data.pieces import cut, cuts_cleanly
from langwright.tokenizer.pre_tokenizers import PreTokenizerName
from langwright.tokenizer.training import train_bpe, train_char

CODE = json.dumps(
    {"code": [{"name": f"value_{n}", "x": n * n, "text": "it's – ½ of  'that'"} for n in range(99)]}, indent=2
)
SAMPLES = [corpus_path(name).read_text(encoding="utf-8")[:60_000] for name in CORPORA] + [CODE]


@given(text=st.text(alphabet="ab1 \n,.，。'三🙂\u0301", max_size=300), size=st.integers(1, 50))
def test_pieces_are_the_text(text, size):
    pieces = cut(text, size)
    assert "".join(pieces) == text
    assert all(len(piece) >= size for piece in pieces[:-1])


def test_pieces_are_about_as_long_as_asked():
    text = corpus_path("shakespeare").read_text(encoding="utf-8")
    assert max(map(len, cut(text, 1000))) < 1100
    assert cut("x" * 100_000) == ["x" * 100_000]  # no safe place


@pytest.mark.parametrize("pre_tokenizer", get_args(PreTokenizerName))
def test_pieces_give_the_tokens_of_the_whole(pre_tokenizer):
    tokenizer = train_bpe(SAMPLES, 1000, pre_tokenizer=pre_tokenizer)
    for text in SAMPLES:
        assert len(cut(text, 64)) > 10
        whole = tokenizer.encode(text)
        assert [token for piece in cut(text, 64) for token in tokenizer.encode(piece)] == whole
        assert cuts_cleanly(tokenizer.encode, text)


def test_characters_can_be_cut_anywhere():
    assert cuts_cleanly(train_char(SAMPLES).encode, SAMPLES[1])


def test_a_tokenizer_that_adds_a_space_in_front_is_found_out():
    """As Llama 2's does: cut text would come back with spaces that were not there."""
    assert not cuts_cleanly(lambda text: list(f"▁{text}".encode()), SAMPLES[0])
    assert cuts_cleanly(lambda text: list(f"▁{text}".encode()), "short")
