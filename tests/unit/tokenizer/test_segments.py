"""Pairs of texts and words one by one, against the library that made the tokenizers."""

import itertools

import pytest
import tokenizers
from tokenizers import models

from langwright.core.errors import UserError
from langwright.tokenizer.segments import PairFrame, encode_words, fit_pair, place_words, split_words
from langwright.tokenizer.tokenizer import Tokenizer
from tests.unit.infer.small import byte_tokenizer
from tests.unit.train.tuning.encoder import piece_tokenizer


@pytest.mark.parametrize("limit", [None, 40, 12, 9, 8, 5])
def test_pairs_are_framed_and_cut_as_the_library_does(limit: int | None):
    tokenizer, (first, second) = piece_tokenizer(), ("one two", "a bcdef")
    frame = PairFrame.of(tokenizer)
    if limit is not None:
        tokenizer.backend.enable_truncation(limit, strategy="longest_first")
    expected = tokenizer.backend.encode(first, second)
    found = frame.join(tokenizer.encode(first), tokenizer.encode(second), limit)
    assert (found.ids, found.types) == (expected.ids, expected.type_ids)


def test_a_pair_fits_its_room():
    for first, second, room in itertools.product(range(7), range(7), range(9)):
        one, other = fit_pair(first, second, room)
        assert one <= first
        assert other <= second
        assert one + other == min(room, first + second)


def test_texts_that_nothing_parts_are_refused():
    with pytest.raises(UserError, match="nothing between two texts"):
        PairFrame.of(byte_tokenizer())


def test_words_are_encoded_as_in_a_text():
    pieces, letters, words = piece_tokenizer(), byte_tokenizer(), ["the", "cat", "."]
    assert encode_words(pieces, [words, ["a"]]) == [[pieces.encode(word) for word in words], [pieces.encode("a")]]
    (found,) = encode_words(letters, [words])
    assert [*itertools.chain(*found)] == letters.encode("the cat .")
    assert found[1] == letters.encode(" cat")


def test_tokens_that_go_across_words_are_refused():
    vocab = {token: number for number, token in enumerate(("a", " ", "b", "a ", "a b"))}
    backend = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=[("a", " "), ("a ", "b")]))
    with pytest.raises(UserError, match="go across words"):
        encode_words(Tokenizer(backend), [["a"]])


def test_words_and_marks_are_found():
    text = "Don't go to 北京, O2!"
    words = split_words(text)
    assert [word.text for word in words] == ["Don", "'", "t", "go", "to", "北", "京", ",", "O2", "!"]
    assert all(text[word.start : word.stop] == word.text for word in words)
    assert [(word.start, word.stop) for word in place_words(["ab", "c"])] == [(0, 2), (3, 4)]
