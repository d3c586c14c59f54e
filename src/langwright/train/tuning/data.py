"""From files of examples to rows to learn from and rows to be judged on."""

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from langwright.core.config import Frozen
from langwright.core.errors import UserError
from langwright.data.examples import Chat, Completion, Text
from langwright.data.fim import FillInTheMiddle
from langwright.data.label_checks import check_rendered, overlap
from langwright.data.rendering import Rendered, Renderer
from langwright.tokenizer.tokenizer import Tokenizer
from langwright.train.tuning.config import ExampleSettings
from langwright.train.tuning.parts import hold_out, read_kind, tell_dropped
from langwright.train.tuning.passages import passages
from langwright.train.tuning.rows import Rows, TrainedIds, as_sequence, lay_out

LEARNT = (Chat, Completion, Text)
"""Kinds of examples that hold what is to be said."""


class Split(Frozen):
    """A part of the examples. ``trained`` of the ``tokens`` are learnt (or judged), which spell ``bytes`` of text."""

    examples: int
    tokens: int
    trained: int
    bytes: int


class ExampleDescription(Frozen):
    """What is known of the examples of a run."""

    files: tuple[str, ...]
    format: str
    fingerprint: str
    """SHA-256 over the ids of all examples and which of them are learnt."""
    train: Split
    val: Split
    dropped: dict[str, int]
    """Examples that were left out, by the reason."""


@dataclass(frozen=True)
class TuningData:
    """Both parts, laid out in rows, and what is known of them."""

    train: Rows
    val: Rows
    description: ExampleDescription
    longest: int
    """Tokens of the longest example."""


def prepare_examples(
    files: Sequence[Path],
    val_files: Sequence[Path],
    renderer: Renderer,
    tokenizer: Tokenizer,
    settings: ExampleSettings,
    say: Callable[[str], None],
    *,
    context: int,
    seed: int,
    move: FillInTheMiddle | None = None,
) -> TuningData:
    """Read, render, check, divide and lay out; raises `UserError` naming file, row and fix for whatever cannot be.

    Without ``val_files`` a share of the examples is held out, the same for the same ``seed``. ``move`` rearranges
    passages of plain texts, which no conversation has.
    """
    found, train, dropped = _rendered(files, renderer, tokenizer, settings, context)
    if val_files:
        _, val, more = _rendered(val_files, renderer, tokenizer, settings, context)
        dropped += more
        if (both := overlap(train, val)).first is not None:
            say(
                f"{both.rows:,} held-out examples are also learnt from; the first: {both.first[1]} (as {both.first[0]})"
            )
    else:
        train, val = hold_out(train, settings.val_share, seed, files[0], alike=lambda each: each.text)
    if move is not None and found != "text":
        raise UserError(
            f"{files[0]}: train.fim_rate moves the middles of plain texts, and this is {found}; leave it out"
        )
    if found == "text" and (move is not None or settings.too_long == "split"):
        train, val = (passages(part, tokenizer, context + 1, move=move, seed=seed) for part in (train, val))
    tell_dropped(dropped, say)
    digest = hashlib.sha256()
    for each in (*train, *val):
        digest.update(np.asarray([len(each.ids), *each.ids], dtype="<i8").tobytes() + bytes(each.trained))
    description = ExampleDescription(
        files=tuple(str(path) for path in (*files, *val_files)),
        format=found,
        fingerprint=digest.hexdigest(),
        train=_measure(train, tokenizer),
        val=_measure(val, tokenizer),
        dropped=dict(dropped),
    )
    pad = tokenizer.pad_id if tokenizer.pad_id is not None else 0
    longest = max(len(each.ids) for each in (*train, *val))
    rows = [_rows(part, context, pad, pack=settings.pack) for part in (train, val)]
    return TuningData(rows[0], rows[1], description, longest)


def _rendered(
    files: Sequence[Path], renderer: Renderer, tokenizer: Tokenizer, settings: ExampleSettings, context: int
) -> tuple[str, list[Rendered], Counter[str]]:
    found, examples, skipped = read_kind(files, settings, LEARNT, "sft learns chats, completions or texts")
    rendered = [renderer.render(example) for example in examples]
    # A sequence of n tokens asks the model for n - 1 predictions, and has so many places.
    room = context + 1
    if settings.too_long == "split" and found == "text":
        room = max(room, *(len(each.ids) for each in rendered))  # `passages` sees to it
    kept, dropped = check_rendered(rendered, tokenizer, room, settings.too_long)
    if not kept:
        raise UserError(f"{files[0]}: no example is left to learn from; look at it with langwright inspect data")
    return found, kept, skipped + dropped


def _measure(part: list[Rendered], tokenizer: Tokenizer) -> Split:
    # Nothing comes before the first token of a sequence that could tell it.
    trained = [[i for i, learnt in zip(each.ids[1:], each.trained[1:], strict=True) if learnt] for each in part]
    return Split(
        examples=len(part),
        tokens=sum(len(each.ids) for each in part),
        trained=sum(map(len, trained)),
        bytes=sum(len(tokenizer.decode(ids, skip_special_tokens=True).encode()) for ids in trained),
    )


def _rows(part: list[Rendered], context: int, pad_id: int, *, pack: bool) -> Rows:
    sequences: list[TrainedIds] = [as_sequence(each.ids, each.trained) for each in part]
    return Rows(sequences, lay_out([len(each.ids) for each in sequences], context, pack=pack), pad_id)
