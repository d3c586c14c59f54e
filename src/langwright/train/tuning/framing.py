"""Texts of examples as ids with what frames them, and what is done about those that are too long."""

import hashlib
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from langwright.core.config import Frozen
from langwright.core.errors import UserError
from langwright.infer.prompts import frame
from langwright.tokenizer.segments import Framed, PairFrame
from langwright.tokenizer.tokenizer import Tokenizer
from langwright.train.tuning.config import ExampleSettings


class TextDescription(Frozen):
    """What is known of the texts of a run."""

    files: tuple[str, ...]
    fingerprint: str
    """SHA-256 over all ids and what is to be told of them."""
    train: int
    val: int
    dropped: dict[str, int]
    labels: tuple[str, ...] = ()
    """In the order in which the model numbers them."""


class Given(NamedTuple):
    """A text, or a pair of texts, and where it stands."""

    text: str
    pair: str | None
    where: str


def frame_texts(
    given: Sequence[Given], tokenizer: Tokenizer, context: int, settings: ExampleSettings, dropped: Counter[str]
) -> list[Framed | None]:
    """Each text in at most ``context`` ids, framed; None for one that is left out. All are pairs, or none is."""
    texts = tokenizer.encode_batch([each.text for each in given], add_special_tokens=given[0].pair is None)
    if given[0].pair is None:
        return [
            _fitting(Framed(ids), each, tokenizer, context, settings, dropped)
            for each, ids in zip(given, texts, strict=True)
        ]
    frames = PairFrame.of(tokenizer)
    seconds = tokenizer.encode_batch([each.pair or "" for each in given])
    found: list[Framed | None] = []
    for each, first, second in zip(given, texts, seconds, strict=True):
        size = frames.size + len(first) + len(second)
        fits = size <= context or cuts(size, each.where, context, settings, dropped)
        found.append(frames.join(first, second, context) if fits else None)
    return found


def _fitting(
    framed: Framed, given: Given, tokenizer: Tokenizer, context: int, settings: ExampleSettings, dropped: Counter[str]
) -> Framed | None:
    size = len(framed.ids)
    if not size:
        dropped["no tokens"] += 1
        return None
    if size <= context:
        return framed
    if not cuts(size, given.where, context, settings, dropped):
        return None
    before, bare, after = frame(tokenizer, given.text)
    return Framed([*before, *bare[: max(0, context - len(before) - len(after))], *after])


def cuts(size: int, where: str, context: int, settings: ExampleSettings, dropped: Counter[str]) -> bool:
    """What becomes of a text of ``size`` tokens, more than there is room for: cut, or else left out; either counts.

    Raises `UserError` where that is an error.
    """
    if settings.too_long == "error":
        raise UserError(
            f"{where}: has {size} tokens and train.context is {context}; raise it, or use --examples.too-long cut or "
            "drop"
        )
    dropped["cut to the context" if settings.too_long == "cut" else "too long"] += 1
    return settings.too_long == "cut"


def side_by_side(rows: Sequence[Sequence[int]], fill: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows filled up at the end to the longest of them, (B, T) int64, and which places are theirs, (B, T) bool."""
    lengths = np.array([len(row) for row in rows])
    found = np.full((len(rows), int(lengths.max())), fill, dtype=np.int64)
    for at, row in enumerate(rows):
        found[at, : len(row)] = row
    return found, np.arange(found.shape[1])[None] < lengths[:, None]


def fingerprint(labels: Sequence[str], *parts: Sequence[Sequence[int]] | np.ndarray) -> str:
    """SHA-256 over ``labels``, sequences of ids and arrays."""
    digest = hashlib.sha256(repr(tuple(labels)).encode())
    for part in parts:
        if isinstance(part, np.ndarray):
            digest.update(repr((part.shape, part.dtype.str)).encode() + np.ascontiguousarray(part).tobytes())
            continue
        for ids in part:
            digest.update(np.asarray([len(ids), *ids], dtype="<i8").tobytes())
    return digest.hexdigest()


def folded(text: str) -> str:
    """What two texts share that differ in white space and in upper and lower case alone."""
    return " ".join(text.split()).casefold()
