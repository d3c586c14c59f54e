"""Masked language modelling: some tokens are hidden, and the model tells them from both sides (Devlin et al. 2018)."""

from dataclasses import dataclass
from typing import Self

import numpy as np

from langwright.core.errors import UserError
from langwright.data.loader import IGNORED
from langwright.tokenizer.tokenizer import Tokenizer

_FIRST_IDEOGRAPH = 0x2E80


@dataclass(frozen=True, eq=False)
class Masking:
    """Hides a share ``rate`` of the tokens of a window, drawn anew every time (RoBERTa, arXiv:1907.11692).

    Of the hidden ones a share ``random`` become another token and a share ``keep`` stay, so that the model cannot
    trust what it sees; the others become [MASK]. Special tokens are never hidden, nor drawn. With ``continues`` (V,),
    True for tokens that go on with the word before them, whole words are hidden. A window is framed by [CLS] and [SEP];
    with ``every_document`` each document in it begins with a [CLS].
    """

    cls_id: int
    sep_id: int
    mask_id: int
    ordinary: np.ndarray
    """(V,) bool: tokens that may be hidden."""
    continues: np.ndarray | None
    rate: float
    random: float
    keep: float
    every_document: bool

    @classmethod
    def of(
        cls, tokenizer: Tokenizer, *, rate: float, random: float, keep: float, whole_words: bool, every_document: bool
    ) -> Self:
        """With the special tokens of ``tokenizer``; raises `UserError` where it has none."""
        ids = [tokenizer.id(tokenizer.roles.get(role, "")) for role in ("cls", "sep", "mask")]
        if None in ids:
            raise UserError(
                "model.causal is false: the tokenizer has no [CLS], [SEP] and [MASK], which masking needs; prepare the "
                "data again with --special-tokens bert"
            )
        size = tokenizer.vocab_size
        special = tokenizer.special_ids | tokenizer.controls
        ordinary = np.array([v not in special and tokenizer.spelling(v) is not None for v in range(size)])
        continues = word_continuations(tokenizer) if whole_words else None
        cls_id, sep_id, mask_id = (int(index or 0) for index in ids)
        return cls(cls_id, sep_id, mask_id, ordinary, continues, rate, random, keep, every_document)

    def __call__(self, window: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """A window (T + 1,) of the stream as ids and targets (T,): targets are what was hidden, elsewhere `IGNORED`."""
        T = len(window) - 1
        opens = np.zeros(T + 1, dtype=bool)
        opens[1:] = self.every_document & (window[:-1] == self.sep_id)
        opens[0] = True
        ids = np.insert(window, np.flatnonzero(opens), self.cls_id)[:T]
        ids[-1] = self.sep_id
        places = self.choose(ids, rng)
        targets = np.full(T, IGNORED, dtype=ids.dtype)
        targets[places] = ids[places]
        fate = rng.random(len(places))
        strangers = rng.choice(np.flatnonzero(self.ordinary), len(places))
        shown = np.where(fate < self.random, strangers, ids[places])
        ids[places] = np.where(fate < self.random + self.keep, shown, self.mask_id)
        return ids, targets

    def choose(self, ids: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """The places to hide: ``rate`` of the ordinary tokens, at least one, and what completes its words."""
        places = np.flatnonzero(self.ordinary[ids])
        if not places.size:
            return places
        words = np.arange(len(places))
        if self.continues is not None:
            joined = self.continues[ids[places]] & (np.diff(places, prepend=-2) == 1)
            words = np.maximum(np.cumsum(~joined) - 1, 0)
        lots = rng.random(int(words[-1]) + 1)[words]
        last = max(1, round(self.rate * len(places))) - 1
        return places[lots <= np.partition(lots, last)[last]]


def word_continuations(tokenizer: Tokenizer) -> np.ndarray:
    """(V,) bool: tokens that go on with the word before them, by their spelling; an ideograph is a word of its own."""
    spelled = [tokenizer.spelling(index) or "" for index in range(tokenizer.vocab_size)]
    if any(spelling.startswith("##") for spelling in spelled):  # WordPiece
        return np.array([spelling.startswith("##") for spelling in spelled])
    firsts = [tokenizer.decode([index])[:1] for index in range(len(spelled))]
    return np.array(
        [
            first == "\ufffd" or (first.isalnum() and ord(first) < _FIRST_IDEOGRAPH and not spelling.startswith("▁"))
            for first, spelling in zip(firsts, spelled, strict=True)
        ]
    )
