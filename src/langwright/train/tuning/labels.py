"""Texts with labels: batches to learn them from, and what is known of them."""

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from langwright.core.config import Frozen
from langwright.core.errors import UserError
from langwright.data.examples import Labelled
from langwright.data.loader import Batch
from langwright.infer.prompts import frame
from langwright.tokenizer.tokenizer import Tokenizer
from langwright.train.tuning.config import ExampleSettings
from langwright.train.tuning.parts import hold_out, read_kind, tell_dropped


class LabelDescription(Frozen):
    """What is known of the labelled texts of a run."""

    files: tuple[str, ...]
    fingerprint: str
    """SHA-256 over all ids and labels."""
    labels: tuple[str, ...]
    train: int
    val: int
    dropped: dict[str, int]


@dataclass(frozen=True)
class LabelledTexts:
    """Token ids of texts and the number of the label of each, (n,) int64."""

    texts: Sequence[Sequence[int]]
    labels: np.ndarray
    pad_id: int

    def __len__(self) -> int:
        """Texts."""
        return len(self.texts)

    def example(self, number: int) -> int:
        """Itself."""
        return number

    def batch(self, numbers: Sequence[int]) -> Batch:
        """These texts, padded at the end to the longest of them."""
        rows = [self.texts[number] for number in numbers]
        lengths = np.array([len(row) for row in rows])
        ids = np.full((len(rows), int(lengths.max())), self.pad_id, dtype=np.int64)
        for at, row in enumerate(rows):
            ids[at, : len(row)] = row
        return Batch(ids, self.labels[list(numbers)], None, np.arange(ids.shape[1])[None] < lengths[:, None])


def prepare_labelled(
    files: Sequence[Path],
    val_files: Sequence[Path],
    tokenizer: Tokenizer,
    settings: ExampleSettings,
    say: Callable[[str], None],
    *,
    context: int,
    seed: int,
) -> tuple[LabelledTexts, LabelledTexts, LabelDescription]:
    """Read, encode, check and divide; raises `UserError` naming file, row and fix for whatever cannot be.

    Without ``val_files`` a share of every label's texts is held out, the same for the same ``seed``; the same text is
    never on both sides.
    """
    train, dropped = _read(files, settings)
    names = tuple(sorted({label_of(example) for example in train}))
    if len(names) < 2:
        raise UserError(
            f"{files[0]}: all examples have the label {label_of(train[0])!r:.60}; give examples of another one"
        )
    if val_files:
        val, more = _read(val_files, settings)
        dropped += more
        if unknown := [example for example in val if label_of(example) not in names]:
            raise UserError(f"{unknown[0].where}: label {label_of(unknown[0])!r:.60} does not occur in {files[0]}")
        both = {_folded(example.text) for example in train} & {_folded(example.text) for example in val}
        if both:
            say(f"{len(both):,} held-out texts are also learnt from; the figures will look better than they are")
    else:
        train, val = hold_out(
            train, settings.val_share, seed, files[0], alike=lambda each: _folded(each.text), group=label_of
        )
    pad = tokenizer.pad_id if tokenizer.pad_id is not None else 0
    parts = []
    for part in (train, val):
        texts = _encode(part, tokenizer, context, settings, dropped)
        kept = [number for number, ids in enumerate(texts) if ids]
        if not kept:
            raise UserError(f"{files[0]}: no example is left; look at it with langwright inspect data")
        numbers = np.array([names.index(label_of(part[number])) for number in kept], dtype=np.int64)
        parts.append(LabelledTexts([texts[number] for number in kept], numbers, pad))
    digest = hashlib.sha256(repr(names).encode())
    for part in parts:
        for ids, label in zip(part.texts, part.labels.tolist(), strict=True):
            digest.update(np.asarray([len(ids), *ids, label], dtype="<i8").tobytes())
    tell_dropped(dropped, say)
    description = LabelDescription(
        files=tuple(str(path) for path in (*files, *val_files)),
        fingerprint=digest.hexdigest(),
        labels=names,
        train=len(parts[0].texts),
        val=len(parts[1].texts),
        dropped=dict(dropped),
    )
    return parts[0], parts[1], description


def label_of(example: Labelled) -> str:
    """Its only label."""
    [label] = example.labels
    return label


def _read(files: Sequence[Path], settings: ExampleSettings) -> tuple[list[Labelled], Counter[str]]:
    _, examples, dropped = read_kind(files, settings, (Labelled,), "classify learns texts with labels")
    for example in examples:
        if len(example.labels) != 1 or example.pair is not None:
            what = "two texts" if example.pair is not None else f"{len(example.labels)} labels"
            raise UserError(f"{example.where}: has {what}; classify learns one text with one label")
    return examples, dropped


def _encode(
    part: list[Labelled], tokenizer: Tokenizer, context: int, settings: ExampleSettings, dropped: Counter[str]
) -> list[list[int]]:
    """Ids of each text, framed; none for one that is left out."""
    texts = tokenizer.encode_batch([example.text for example in part], add_special_tokens=True)
    for number, ids in enumerate(texts):
        if len(ids) <= context:
            continue
        if settings.too_long == "error":
            raise UserError(
                f"{part[number].where}: has {len(ids)} tokens and train.context is {context}; raise it, or use "
                "--examples.too-long cut or drop"
            )
        if settings.too_long == "drop":
            dropped["too long"] += 1
            texts[number] = []
            continue
        before, bare, after = frame(tokenizer, part[number].text)
        texts[number] = [*before, *bare[: max(0, context - len(before) - len(after))], *after]
        dropped["cut to the context"] += 1
    return texts


def _folded(text: str) -> str:
    return " ".join(text.split()).casefold()
