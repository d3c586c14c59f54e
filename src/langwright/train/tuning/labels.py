"""Texts with labels: batches to learn them from, and what is known of them."""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from langwright.core.errors import UserError
from langwright.data.examples import Labelled
from langwright.data.loader import Batch
from langwright.model.config import Problem
from langwright.tokenizer.tokenizer import Tokenizer
from langwright.train.tuning.config import ExampleSettings, LabelSettings, TuneConfig
from langwright.train.tuning.framing import Given, TextDescription, fingerprint, folded, frame_texts, side_by_side
from langwright.train.tuning.parts import divide, read_kind, tell_dropped


@dataclass(frozen=True)
class LabelledTexts:
    """Token ids of texts, and what is to be told of each: the number of its label (n,) int64, which of all labels it
    has (n, labels) float32 of 0 and 1, or a number (n,) float32; of pairs of texts also segment ``types``."""

    texts: Sequence[Sequence[int]]
    labels: np.ndarray
    pad_id: int
    types: Sequence[Sequence[int]] | None = None

    def __len__(self) -> int:
        """Texts."""
        return len(self.texts)

    def example(self, number: int) -> int:
        """Itself."""
        return number

    def batch(self, numbers: Sequence[int]) -> Batch:
        """These texts, padded at the end to the longest of them."""
        ids, mask = side_by_side([self.texts[number] for number in numbers], self.pad_id)
        types = None if self.types is None else side_by_side([self.types[number] for number in numbers], 0)[0]
        return Batch(ids, self.labels[list(numbers)], None, mask, types=types)


def prepare_labelled(
    files: Sequence[Path],
    val_files: Sequence[Path],
    tokenizer: Tokenizer,
    config: TuneConfig,
    say: Callable[[str], None],
) -> tuple[LabelledTexts, LabelledTexts, TextDescription, Problem]:
    """Read, encode, check and divide; raises `UserError` naming file, row and fix for whatever cannot be.

    Without ``val_files`` a share of every label's texts is held out, the same for the same seed; the same text is never
    on both sides. The last is what there is to tell of a text.
    """
    problem: Problem | None = None
    names: tuple[str, ...] = ()

    def read(paths: Sequence[Path]) -> tuple[list[Labelled], Counter[str]]:
        nonlocal problem, names
        examples, dropped = _read(paths, config.examples)
        if problem is None:  # what is learnt says what there is, also of what is held out of it
            kind = config.labels.kind
            problem = find_problem(examples, say) if kind == "auto" else kind
            names = _names(examples, problem, files[0], config.labels)
        return examples, dropped

    def group(example: Labelled) -> str | None:
        return label_of(example) if problem == "one" else None

    share = config.examples.val_share
    train, val, dropped = divide(
        read, files, val_files, share, config.seed, say, alike=lambda each: _key(each), group=group
    )
    assert problem is not None
    if (train[0].pair is None) != (val[0].pair is None):
        raise UserError(f"{val[0].where}: {files[0]} has {'one text' if train[0].pair is None else 'two texts'} a row")
    pad = tokenizer.pad_id if tokenizer.pad_id is not None else 0
    parts = []
    for part in (train, val):
        given = [Given(example.text, example.pair, example.where) for example in part]
        framed = frame_texts(given, tokenizer, config.train.context, config.examples, dropped) if given else []
        kept = [number for number, each in enumerate(framed) if each]
        if not kept:
            raise UserError(f"{files[0]}: no example is left; look at it with langwright inspect data")
        told = _tell([part[number] for number in kept], problem, names, files[0])
        texts = [each for each in framed if each]
        types = [each.types for each in texts if each.types is not None]
        parts.append(LabelledTexts([each.ids for each in texts], told, pad, types or None))
    tell_dropped(dropped, say)
    about = TextDescription(
        files=tuple(str(path) for path in (*files, *val_files)),
        fingerprint=fingerprint(names, *(each for part in parts for each in (part.texts, part.labels))),
        labels=names,
        train=len(parts[0].texts),
        val=len(parts[1].texts),
        dropped=dict(dropped),
    )
    return parts[0], parts[1], about, problem


def label_of(example: Labelled) -> str:
    """Its only label."""
    if len(example.labels) != 1 or example.several:
        raise UserError(
            f"{example.where}: has a list of labels, and --labels.kind says that a text has one; leave that at auto"
        )
    return example.labels[0]


def find_problem(examples: Sequence[Labelled], say: Callable[[str], None]) -> Problem:
    """What labels are told, by how they are written: lists, numbers with a fraction, or neither."""
    if examples[0].several:
        return "several"
    if any(_is_fraction(label_of(example)) for example in examples):
        say("labels have fractions, so a number is learnt (--labels.kind one takes them for names)")
        return "number"
    return "one"


def _read(files: Sequence[Path], settings: ExampleSettings) -> tuple[list[Labelled], Counter[str]]:
    _, examples, dropped = read_kind(files, settings, (Labelled,), "classify learns texts with labels")
    for example in examples:
        if (example.pair is None) != (examples[0].pair is None):
            raise UserError(
                f"{example.where}: has {'one text' if example.pair is None else 'two texts'}, unlike others"
            )
    return examples, dropped


def _key(example: Labelled) -> tuple[str, str]:
    return folded(example.text), folded(example.pair or "")


def _names(examples: Sequence[Labelled], problem: Problem, file: Path, settings: LabelSettings) -> tuple[str, ...]:
    """All labels, in order; none where numbers are told."""
    names: tuple[str, ...] = ()
    if problem == "one":
        names = tuple(sorted({label_of(example) for example in examples}))
        if len(names) < 2:
            raise UserError(
                f"{file}: all examples have the label {label_of(examples[0])!r:.60}; give examples of another one"
            )
    elif problem == "several":
        names = tuple(sorted({label for example in examples for label in example.labels}))
        if not names:
            raise UserError(f"{file}: no example has a label; give examples that have")
    if settings.out_of_scope is not None and (problem != "one" or settings.out_of_scope not in names):
        why = "occurs in no example" if problem == "one" else "is for one label a text"
        raise UserError(f"--labels.out-of-scope {settings.out_of_scope!r:.60} {why}; leave it out, or name another")
    return names


def _tell(part: Sequence[Labelled], problem: Problem, names: tuple[str, ...], file: Path) -> np.ndarray:
    if problem == "number":
        return np.array([_number(example) for example in part], dtype=np.float32)
    number = {name: at for at, name in enumerate(names)}
    for example in part:
        if unknown := [label for label in example.labels if label not in number]:
            raise UserError(f"{example.where}: label {unknown[0]!r:.60} does not occur in {file}")
    if problem == "one":
        return np.array([number[label_of(example)] for example in part], dtype=np.int64)
    held = np.zeros((len(part), len(names)), dtype=np.float32)
    for row, example in zip(held, part, strict=True):
        row[[number[label] for label in example.labels]] = 1
    return held


def _is_fraction(label: str) -> bool:
    return bool({".", "e", "E"} & set(label)) and _as_number(label) is not None


def _as_number(label: str) -> float | None:
    try:
        number = float(label)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _number(example: Labelled) -> float:
    number = _as_number(label_of(example))
    if number is None:
        raise UserError(
            f"{example.where}: label {label_of(example)!r:.60} is no number, and a number is learnt; write one, or use "
            "--labels.kind one to take all labels for names"
        )
    return number
