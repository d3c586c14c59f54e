"""Fill in the middle (Bavarian et al. 2022, arXiv:2207.14255): a text is cut in three and its middle moved to the end,
so that a left-to-right model learns to write what fits between two given ends."""

import re
from dataclasses import dataclass
from typing import Self

import numpy as np

from langwright.core.errors import UserError
from langwright.data.loader import IGNORED
from langwright.tokenizer.sentinels import MIDDLE, PREFIX, SENTINELS, SUFFIX
from langwright.tokenizer.tokenizer import Tokenizer

PAD = "<|fim_pad|>"
_LINE = re.compile(r"(?:(?<=\n)|\A)[ \t]*")


@dataclass(frozen=True)
class FillInTheMiddle:
    """Rearranges a share ``rate`` of the documents of a window, or of what the window holds of them.

    In the order prefix, suffix, middle (PSM) or, for a share ``spm``, suffix, prefix, middle (SPM, the variant that the
    paper trains together with the first). Cuts fall between any two characters, or, ``by_lines``, where a line or what
    is indented in it begins. Sentinels are put in by id: no text can become one.
    """

    tokenizer: Tokenizer
    eos_id: int
    prefix_id: int
    suffix_id: int
    middle_id: int
    pad_id: int
    rate: float
    spm: float
    by_lines: bool

    @classmethod
    def of(cls, tokenizer: Tokenizer, eos_id: int, *, rate: float, spm: float, by_lines: bool) -> Self:
        """With the sentinels of ``tokenizer``; raises `UserError` where it has none."""
        found = [tokenizer.id(token) for token in SENTINELS]
        if any(index not in tokenizer.controls for index in found):
            raise UserError(
                f"train.fim_rate: the tokenizer has no {PREFIX}, {SUFFIX} and {MIDDLE}; prepare the data again with "
                "--special-tokens fim, or to tune name three unused control tokens of the model's with "
                "--examples.sentinels"
            )
        pad = tokenizer.id(PAD) if tokenizer.pad_id is None else tokenizer.pad_id
        prefix, suffix, middle = (int(index or 0) for index in found)
        return cls(tokenizer, eos_id, prefix, suffix, middle, eos_id if pad is None else pad, rate, spm, by_lines)

    def __call__(self, window: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """A window (T + 1,) of the stream as ids and targets (T,): no longer, and filled up with padding."""
        pieces = np.split(window, np.flatnonzero(window[:-1] == self.eos_id) + 1)
        taken = rng.random(len(pieces)) < self.rate
        moved = [self.move(piece, rng) if take else piece for piece, take in zip(pieces, taken, strict=True)]
        row = np.concatenate(moved)
        gap = len(window) - len(row)
        ids = np.concatenate([row, np.full(gap, self.pad_id)])[:-1]
        return ids, np.concatenate([row[1:], np.full(gap, IGNORED)])

    def move(self, piece: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """One document, or a part of one, rearranged. What does not fit is dropped from the beginning of its prefix.

        It stays as it is when there is nothing to cut, when the window cut a character of it in two, or when it would
        not fit even without its prefix.
        """
        ended = int(piece[-1] == self.eos_id)
        text = self.tokenizer.decode(piece[: len(piece) - ended].tolist())
        places = sorted({0, len(text), *self._line_starts(text)}) if self.by_lines else range(len(text) + 1)
        if len(places) < 3 or "\ufffd" in text:
            return piece
        low, high = (places[index] for index in sorted(rng.choice(len(places), 2, replace=False).tolist()))
        parts = [text[:low], text[low:high], text[high:]]
        prefix, middle, suffix = self.tokenizer.encode_batch(parts)
        room = len(piece) - ended - 3 - len(middle) - len(suffix)
        if room < 0 or self.tokenizer.decode([*prefix, *middle, *suffix]) != text:
            return piece
        prefix = prefix[max(0, len(prefix) - room) :]
        if rng.random() < self.spm:
            order = [self.prefix_id, self.suffix_id, *suffix, self.middle_id, *prefix, *middle]
        else:
            order = [self.prefix_id, *prefix, self.suffix_id, *suffix, self.middle_id, *middle]
        return np.array([*order, *piece[len(piece) - ended :]], dtype=piece.dtype)

    @staticmethod
    def _line_starts(text: str) -> set[int]:
        return {place for line in _LINE.finditer(text) for place in line.span()}
