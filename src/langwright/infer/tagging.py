"""Labels of words, and the spans that they make."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

SCHEME = re.compile(r"O|[BIES]-.+")


class Span(NamedTuple):
    """Words ``start`` up to ``stop``, which is the first that is none of them."""

    label: str
    start: int
    stop: int


def are_spans(tags: Sequence[str]) -> bool:
    """Whether these tags say where spans begin and go on: O, B-PER, I-PER (IOB2), perhaps E-PER and S-PER."""
    return any(tag != "O" for tag in tags) and all(SCHEME.fullmatch(tag) for tag in tags)


def find_spans(tags: Sequence[str]) -> list[Span]:
    """The spans that the tags of a text's words make, as conlleval and seqeval find them.

    A span begins at B and S, at whatever goes on (I, E) where nothing of its label was before it, and ends at E and S
    and before O, B, S and another label.
    """
    found: list[Span] = []
    before, label, start = "O", "", 0
    for number, tag in enumerate([*tags, "O"]):
        kind, _, name = tag.partition("-")
        open_ = before in ("B", "I")
        if open_ and (kind in ("O", "B", "S") or name != label):
            found.append(Span(label, start, number))
            open_ = False
        if kind != "O" and not open_:
            start = number
        if kind in ("E", "S"):
            found.append(Span(name, start, number + 1))
        before, label = kind, name
    return found


def lay_words(
    words: Sequence[Sequence[int]], before: Sequence[int], after: Sequence[int], limit: int, *, last: bool
) -> tuple[list[int], list[int]]:
    """Ids of as many ``words`` as fit whole into ``limit`` with what frames them, and the place where each is labelled.

    That is its first id, or its ``last``: a model that reads from left to right has read the word only there.
    """
    ids, places = [*before], []
    for word in words:
        if len(ids) + len(word) + len(after) > limit:
            break
        places.append(len(ids) + (len(word) - 1 if last else 0))
        ids += word
    return [*ids, *after], places


@dataclass(frozen=True, slots=True)
class TaggedWord:
    """A word, its likeliest tag with the probability of that, and where it stands in the text, in characters."""

    text: str
    tag: str
    probability: float
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class TaggedSpan:
    """Some words that have a label together."""

    label: str
    text: str
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Tagged:
    """The words of a text, and the spans of them where tags make any."""

    words: tuple[TaggedWord, ...]
    spans: tuple[TaggedSpan, ...]


def collect(text: str, words: Sequence[TaggedWord]) -> Tagged:
    """The ``words`` of ``text`` with their spans."""
    tags = [word.tag for word in words]
    spans = []
    for label, first, stop in find_spans(tags) if are_spans(tags) else ():
        start, end = words[first].start, words[stop - 1].stop
        spans.append(TaggedSpan(label, text[start:end], start, end))
    return Tagged(tuple(words), tuple(spans))
