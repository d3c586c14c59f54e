"""Text in parts: pairs of texts as the tokenizer frames them, and words that are encoded one by one."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Self

from langwright.core.errors import UserError
from langwright.tokenizer.tokenizer import Tokenizer

# Of Chinese and Japanese every character is a word of its own, as BERT's vocabularies take them.
_ALONE = r"\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\u3040-\u30ff"
WORD = re.compile(rf"[{_ALONE}]|[^\W{_ALONE}]+|[^\w\s]")


class Framed(NamedTuple):
    """Ids with what frames them, and where they are of two texts the segment type of each."""

    ids: list[int]
    types: list[int] | None = None


@dataclass(frozen=True)
class PairFrame:
    """What stands before, between and after two texts, and the segment types of these and of the texts."""

    before: Framed
    between: Framed
    after: Framed
    first: int
    second: int

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> Self:
        """As the tokenizer's post-processing has it; raises `UserError` where nothing would part the two."""
        full = tokenizer.backend.encode("a", "a")
        sides = full.sequence_ids  # 0, 1, and None for what frames them
        starts = [sides.index(side) for side in (0, 1)]
        stops = [start + sides.count(side) for start, side in zip(starts, (0, 1), strict=True)]

        def cut(start: int, stop: int) -> Framed:
            return Framed(full.ids[start:stop], full.type_ids[start:stop])

        if stops[0] == starts[1]:
            raise UserError(
                "this tokenizer puts nothing between two texts, so a model could not tell where the second begins; use "
                "an encoder, or write both into one text"
            )
        types = full.type_ids
        return cls(
            cut(0, starts[0]),
            cut(stops[0], starts[1]),
            cut(stops[1], len(full.ids)),
            types[starts[0]],
            types[starts[1]],
        )

    @property
    def size(self) -> int:
        """Tokens of the frame alone."""
        return len(self.before.ids) + len(self.between.ids) + len(self.after.ids)

    def join(self, first: Sequence[int], second: Sequence[int], limit: int | None = None) -> Framed:
        """Both texts framed. With ``limit`` of tokens in all the longer one is cut at its end, then both alike."""
        if limit is not None:
            lengths = fit_pair(len(first), len(second), max(0, limit - self.size))
            first, second = first[: lengths[0]], second[: lengths[1]]
        texts = (Framed([*first], [self.first] * len(first)), Framed([*second], [self.second] * len(second)))
        parts = (self.before, texts[0], self.between, texts[1], self.after)
        types = [kind for part in parts for kind in part.types or ()]
        return Framed([index for part in parts for index in part.ids], types)


def fit_pair(first: int, second: int, room: int) -> tuple[int, int]:
    """The lengths of two texts cut to ``room`` together, as `transformers` cuts the longest first."""
    if first + second <= room:
        return first, second
    short = min(first, second, room // 2)
    return (room - short, short) if first > second else (short, room - short)


class Word(NamedTuple):
    """A word, and the characters of a text that it is."""

    text: str
    start: int
    stop: int


def split_words(text: str) -> list[Word]:
    """Runs of letters and digits, and every other mark by itself; so is every Chinese or Japanese character."""
    return [Word(match[0], *match.span()) for match in WORD.finditer(text)]


def place_words(words: Sequence[str]) -> list[Word]:
    """Words side by side with a space between them."""
    found, start = [], 0
    for word in words:
        found.append(Word(word, start, start + len(word)))
        start += len(word) + 1
    return found


def encode_words(tokenizer: Tokenizer, rows: Sequence[Sequence[str]]) -> list[list[list[int]]]:
    """The ids of each word of each row, as it stands in a text after a space (the first: at the beginning).

    Needs no offsets. Raises `UserError` for a tokenizer whose tokens go beyond words.
    """
    a, b, spaced, both = tokenizer.encode_batch(["a", "b", " b", "a b"])
    if both not in (a + b, a + spaced):
        raise UserError("the tokens of this tokenizer go across words, so words cannot be labelled; use another model")
    space = "" if both == a + b else " "  # word pieces, and a prefix that every word gets anyway, need none
    texts = [word if number == 0 else space + word for words in rows for number, word in enumerate(words)]
    found = iter(tokenizer.encode_batch(texts))
    return [[next(found) for _ in words] for words in rows]
