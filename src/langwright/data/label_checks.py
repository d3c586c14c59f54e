"""What has to be true of rendered examples before anything learns from them, and of two sets of them."""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

from langwright.core.errors import UserError
from langwright.data.examples import Example, text_of
from langwright.data.rendering import Rendered, Spellings
from langwright.data.split import text_hash
from langwright.data.tables import RowError
from langwright.tokenizer.tokenizer import Tokenizer

TooLong = Literal["error", "drop", "cut", "split"]
"""What is done about a row that is too long; only plain texts can be split, and are before (others: an error)."""


class Repeats(NamedTuple):
    """How many rows repeat another, and where the first of them and the one it repeats stand."""

    rows: int
    first: tuple[str, str] | None


def check_rendered(
    rendered: Iterable[Rendered], tokenizer: Tokenizer, max_tokens: int, too_long: TooLong = "error"
) -> tuple[list[Rendered], Counter[str]]:
    """The rows to learn from, and how many were dropped or cut and why.

    A row of more than ``max_tokens`` ids is an error, dropped, or cut at its end. Raises `UserError` naming row and fix
    for one without a trained token, also after the cut; whose last trained turn holds no end token, so that no end
    would be learnt; that begins with two BOS; and in which a control token's spelling became that token.
    """
    kept, dropped = _check_together(((row,) for row in rendered), tokenizer, max_tokens, too_long)
    return [row for (row,) in kept], dropped


def check_pairs(
    pairs: Iterable[tuple[Rendered, Rendered]],
    tokenizer: Tokenizer,
    max_tokens: int,
    too_long: TooLong = "error",
    *,
    ends: bool = True,
) -> tuple[list[tuple[Rendered, Rendered]], Counter[str]]:
    """`check_rendered` for chosen and rejected, which are kept or dropped together; without ``ends`` a turn's end may
    lack an end token, since nobody learns to write it."""
    kept, dropped = _check_together(pairs, tokenizer, max_tokens, too_long, ends=ends)
    return [(chosen, rejected) for chosen, rejected in kept], dropped


def overlap(train: Iterable[Example | Rendered], test: Iterable[Example | Rendered]) -> Repeats:
    """Rows of ``test`` whose text also stands in ``train``, upper and lower case and white space being the same."""
    known: dict[int, str] = {}
    for item in train:
        known.setdefault(_key(item), item.where)
    met = [(known[key], item.where) for item in test if (key := _key(item)) in known]
    return Repeats(len(met), met[0] if met else None)


def check_apart(train: Iterable[Example | Rendered], test: Iterable[Example | Rendered]) -> None:
    """Raise `UserError` when the two sets overlap: what is measured on the test would be memory."""
    count, first = overlap(train, test)
    if first:
        raise UserError(
            f"{count:,} test rows stand in the training rows too (the first: {first[1]} is {first[0]}); take them out"
            " of one of the two"
        )


def duplicates(items: Iterable[Example | Rendered]) -> Repeats:
    """Rows whose text stood in a row before, compared as in `overlap`."""
    known: dict[int, str] = {}
    met = []
    for item in items:
        if (key := _key(item)) in known:
            met.append((known[key], item.where))
        known.setdefault(key, item.where)
    return Repeats(len(met), met[0] if met else None)


def _check_together(
    groups: Iterable[Sequence[Rendered]], tokenizer: Tokenizer, max_tokens: int, too_long: TooLong, *, ends: bool = True
) -> tuple[list[list[Rendered]], Counter[str]]:
    if max_tokens < 2:
        raise ValueError(f"max_tokens is {max_tokens}; nothing can be learnt from fewer than 2")
    spellings = Spellings(tokenizer)
    kept: list[list[Rendered]] = []
    dropped: Counter[str] = Counter()
    for group in groups:
        for row in group:
            _check_labels(row, tokenizer, ends)
            _check_controls(row, tokenizer, spellings)
        if all(len(row.ids) <= max_tokens for row in group):
            kept.append(list(group))
        elif too_long == "drop":
            dropped[f"longer than {max_tokens:,} tokens"] += 1
        else:
            kept.append([_cut(row, max_tokens, too_long) for row in group])
            dropped[f"cut to {max_tokens:,} tokens"] += 1
    if not kept:
        told = ", ".join(f"{count:,} {reason}" for reason, count in dropped.items())
        raise UserError(
            f"no row is left to learn from{f' ({told})' if told else ''}; allow longer rows, or give others"
        )
    return kept, dropped


def _check_labels(row: Rendered, tokenizer: Tokenizer, ends: bool) -> None:
    if len(row.ids) != len(row.trained):
        raise ValueError(f"{row.where}: {len(row.ids)} ids and {len(row.trained)} flags")
    if True not in row.trained[1:]:  # nothing comes before the first token to tell it from
        fix = "give it an answer, and a chat template that writes it"
        raise RowError(row.where, "", "no token is trained", fix)
    if ends and not any(index in tokenizer.eos_ids for index in _last_turn(row)):
        known = ", ".join(sorted(map(tokenizer.token, tokenizer.eos_ids))) or "none"
        raise RowError(
            row.where,
            "",
            "its end is never trained, so the model would not learn to stop",
            f"use a chat template that ends a turn with an end token of the tokenizer ({known})",
        )


def _last_turn(row: Rendered) -> list[int]:
    """The ids of the last unbroken stretch of trained tokens."""
    stop = len(row.ids) - row.trained[::-1].index(True)
    start = next((place + 1 for place in range(stop - 1, -1, -1) if not row.trained[place]), 0)
    return row.ids[start:stop]


def _check_controls(row: Rendered, tokenizer: Tokenizer, spellings: Spellings) -> None:
    if tokenizer.bos_id is not None and row.ids[:2] == [tokenizer.bos_id] * 2:
        token = tokenizer.token(tokenizer.bos_id)
        fix = "take it out of the chat template or out of the text"
        raise RowError(row.where, "", f"begins with {token} twice", fix)
    if spellings.count_ids(row.ids) > spellings.count(row.text) - row.spelled:
        raise RowError(
            row.where,
            "",
            "a control token that the content spells became that token",
            "encode content with Tokenizer.encode or ChatTemplate.render, never with allow_special",
        )


def _cut(row: Rendered, max_tokens: int, too_long: TooLong) -> Rendered:
    size = len(row.ids)
    if size <= max_tokens:
        return row
    if too_long in ("error", "split"):
        fix = "allow longer rows (--train.context), or have them dropped or cut (--examples.too-long)"
        raise RowError(row.where, "", f"{size:,} tokens where {max_tokens:,} are allowed", fix)
    if True not in row.trained[1:max_tokens]:
        fix = f"allow longer rows (this one has {size:,} tokens), or have them dropped"
        raise RowError(row.where, "", f"no trained token is left after the cut to {max_tokens:,}", fix)
    return Rendered(row.ids[:max_tokens], row.trained[:max_tokens], row.where, row.text, row.spelled)


def _key(item: Example | Rendered) -> int:
    text = item.text if isinstance(item, Rendered) else text_of(item)
    return text_hash(" ".join(text.casefold().split()))
