"""Texts as ids for a model to continue."""

import pytest
from tokenizers.processors import TemplateProcessing

from langwright.core.errors import UserError
from langwright.infer.prompts import encode_pair, encode_prompt, frame
from langwright.tokenizer.tokenizer import Tokenizer
from langwright.tokenizer.training import train_bpe
from tests.unit.infer.small import BOS, EOS, byte_tokenizer


def framing_tokenizer() -> Tokenizer:
    """Puts a beginning and an end token around every text, as some exported tokenizers do."""
    tokenizer = byte_tokenizer()
    tokenizer.backend.post_processor = TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A $B </s>", special_tokens=[("<s>", BOS), ("</s>", EOS)]
    )
    return tokenizer


def test_a_prompt_has_one_beginning_and_no_end():
    tokenizer = framing_tokenizer()
    assert tokenizer.encode("ab", add_special_tokens=True) == [BOS, *b"ab", EOS]
    assert encode_prompt(tokenizer, "ab") == [BOS, *b"ab"]
    assert encode_prompt(tokenizer, "<s>ab", allow_special=True) == [BOS, *b"ab"]
    assert encode_prompt(byte_tokenizer(), "ab") == [*b"ab"]
    assert frame(tokenizer, "ab") == ([BOS], [*b"ab"], [EOS])


def test_a_pair_of_a_framing_tokenizer_has_one_beginning_and_no_end():
    assert encode_pair(framing_tokenizer(), "ab", "cd") == ([BOS, *b"ab"], [*b"cd"])
    assert encode_pair(framing_tokenizer(), "", "cd") == ([BOS], [*b"cd"])


def test_a_pair_is_parted_at_the_context():
    tokenizer = byte_tokenizer()
    assert encode_pair(tokenizer, "ab", " cd") == ([*b"ab"], [*b" cd"])
    assert encode_pair(tokenizer, "ab  ", "cd") == ([*b"ab"], [*b"  cd"])


def test_tokens_are_those_of_the_whole_text():
    tokenizer = train_bpe(["the cat sat on the mat, the end"] * 5, 290, pre_tokenizer="gpt2")
    before, after = encode_pair(tokenizer, "on the", " mat")
    assert before + after == tokenizer.encode("on the mat")
    assert before == tokenizer.encode("on the")


def test_an_empty_context_is_the_beginning_or_an_end():
    assert encode_pair(byte_tokenizer(), "", "x") == ([BOS], [*b"x"])
    assert encode_pair(byte_tokenizer(bos=False), " ", "x") == ([EOS], [*b" x"])


def test_an_empty_continuation_is_refused():
    with pytest.raises(UserError, match="continuation of 'ab' is empty"):
        encode_pair(byte_tokenizer(), "ab", "")
