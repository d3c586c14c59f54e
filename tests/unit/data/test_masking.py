"""Masking: how many tokens are hidden, which never are, what takes their place, and what a target is."""

import numpy as np
import pytest

from langwright.core.errors import UserError
from langwright.data.loader import IGNORED
from langwright.data.masking import Masking, word_continuations
from langwright.tokenizer.tokenizer import Tokenizer
from langwright.tokenizer.training import SPECIAL_TOKENS, train_bpe, train_char

TEXTS = [f"Understanding {n} unbelievable transformations, 床前明月光疑是地上霜. Don't stop!" for n in range(9)]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_bpe(TEXTS, 330, special_tokens=SPECIAL_TOKENS["bert"])


def masking(tokenizer: Tokenizer, **options: float | bool) -> Masking:
    values = {"rate": 0.15, "random": 0.1, "keep": 0.1, "whole_words": False, "every_document": False} | options
    return Masking.of(tokenizer, **values)  # type: ignore[arg-type]


def window_of(tokenizer: Tokenizer, size: int = 2001) -> np.ndarray:
    sep = tokenizer.id("[SEP]")
    ids = [token for text in TEXTS * 40 for token in (*tokenizer.encode(text), sep)]
    return np.array(ids[3 : size + 3], dtype=np.int64)


def framed(tokenizer: Tokenizer, window: np.ndarray) -> np.ndarray:
    return np.array([tokenizer.id("[CLS]"), *window[:-3], tokenizer.id("[SEP]")])


@pytest.mark.parametrize("rate", [0.15, 0.3])
def test_shares(tokenizer: Tokenizer, rate: float):
    window, change = window_of(tokenizer), masking(tokenizer, rate=rate, random=0.25, keep=0.15)
    whole = framed(tokenizer, window)
    ids, targets = change(window, np.random.default_rng(0))
    assert ids.shape == targets.shape == whole.shape == (2000,)
    assert ids.dtype == targets.dtype == np.int64
    hidden = targets != IGNORED
    assert (targets[hidden] == whole[hidden]).all()
    assert (ids[~hidden] == whole[~hidden]).all()
    assert not np.isin(targets, list(tokenizer.special_ids)).any()
    assert hidden.sum() == round(rate * (~np.isin(whole, list(tokenizer.special_ids))).sum())
    masked, kept = (ids == tokenizer.mask_id)[hidden], (ids == whole)[hidden]
    assert masked.mean() == pytest.approx(0.6, abs=0.09)
    assert kept.mean() == pytest.approx(0.15, abs=0.06)
    strangers = ids[hidden][~masked & ~kept]
    assert len(set(strangers.tolist())) > len(strangers) / 2
    assert not np.isin(strangers, list(tokenizer.special_ids)).any()


def test_every_draw_is_another_and_a_seed_says_which(tokenizer: Tokenizer):
    window, change = window_of(tokenizer, 101), masking(tokenizer)
    one, same, other = (change(window, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert one[0].tolist() == same[0].tolist()
    assert one[1].tolist() == same[1].tolist()
    assert one[1].tolist() != other[1].tolist()


def test_every_token_is_hidden_as_often(tokenizer: Tokenizer):
    window, change = window_of(tokenizer, 41), masking(tokenizer, rate=0.3)
    draws = [change(window, np.random.default_rng(seed))[1] != IGNORED for seed in range(2000)]
    shares = np.mean(draws, axis=0)[~np.isin(framed(tokenizer, window), list(tokenizer.special_ids))]
    assert shares.min() > 0.25
    assert shares.max() < 0.37


def test_documents_begin_with_cls(tokenizer: Tokenizer):
    change = masking(tokenizer, every_document=True)
    ids, _ = change(window_of(tokenizer), np.random.default_rng(0))
    cls, sep = tokenizer.id("[CLS]"), tokenizer.id("[SEP]")
    opened = np.flatnonzero(ids == cls)
    assert ids[0] == cls
    assert ids[-1] == sep
    assert len(opened) > 10
    assert (ids[opened[1:] - 1] == sep).all()


def test_whole_words(tokenizer: Tokenizer):
    table = word_continuations(tokenizer)
    words: list[list[int]] = []
    for index in tokenizer.encode(" unbelievable transformations, 9!"):
        if table[index]:
            words[-1].append(index)
        else:
            words.append([index])
    assert [tokenizer.decode(word) for word in words] == [" unbelievable", " transformations", ",", " 9", "!"]
    window, change = window_of(tokenizer), masking(tokenizer, whole_words=True)
    whole = framed(tokenizer, window)
    _, targets = change(window, np.random.default_rng(0))
    hidden, ordinary = targets != IGNORED, ~np.isin(whole, list(tokenizer.special_ids))
    joined = table[whole] & ordinary & np.roll(ordinary, 1)
    assert joined.sum() > 200
    assert (hidden[joined] == np.roll(hidden, 1)[joined]).all()
    assert hidden.sum() / ordinary.sum() == pytest.approx(0.15, abs=0.02)


def test_words_of_wordpiece_and_ideographs():
    spelled = train_char(["ab 床"], special_tokens=SPECIAL_TOKENS["bert"])
    table = word_continuations(spelled)
    assert {spelled.spelling(index) for index in np.flatnonzero(table)} >= {"a", "b"}
    assert not table[[spelled.encode(" ")[0], spelled.encode("床")[0]]].any()


@pytest.mark.parametrize("size", [2, 3, 4])
def test_tiny_windows(tokenizer: Tokenizer, size: int):
    ids, targets = masking(tokenizer)(window_of(tokenizer, size), np.random.default_rng(0))
    assert ids.shape == targets.shape == (size - 1,)
    assert (targets != IGNORED).sum() == max(0, size - 3)


def test_a_tokenizer_without_mask_is_refused():
    with pytest.raises(UserError, match=r"no \[CLS\], \[SEP\] and \[MASK\].*--special-tokens bert"):
        masking(train_bpe(TEXTS, 300))
