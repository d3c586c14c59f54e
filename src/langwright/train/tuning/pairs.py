"""Prompts with two answers, one preferred: read, checked and divided."""

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from langwright.core.config import Frozen
from langwright.data.examples import Preference
from langwright.data.label_checks import check_pairs
from langwright.data.loader import Batch
from langwright.data.rendering import Rendered, Renderer
from langwright.train.tuning.base import Start
from langwright.train.tuning.config import TuneConfig
from langwright.train.tuning.parts import check_enough, hold_out, read_kind, tell_dropped
from langwright.train.tuning.rows import TrainedIds, as_sequence, stack


class PairDescription(Frozen):
    """What is known of the pairs of a run."""

    files: tuple[str, ...]
    fingerprint: str
    """SHA-256 over the ids of all pairs."""
    train: int
    val: int
    dropped: dict[str, int]


@dataclass(frozen=True)
class Pair:
    """A prompt with both answers; the first ``prompt`` ids of both are alike."""

    chosen: TrainedIds
    rejected: TrainedIds
    prompt: int


@dataclass(frozen=True)
class Pairs:
    """Pairs and, where the method compares, what their answers were worth to the reference, (n, 2) float32."""

    pairs: Sequence[Pair]
    reference: np.ndarray
    pad_id: int

    def __len__(self) -> int:
        """Pairs."""
        return len(self.pairs)

    def example(self, number: int) -> int:
        """Itself."""
        return number

    def batch(self, numbers: Sequence[int]) -> Batch:
        """These pairs, (P, 2, T): chosen and rejected side by side, padded at the end."""
        pairs = [self.pairs[number] for number in numbers]
        ids, targets = stack([(pair.chosen, pair.rejected) for pair in pairs], self.pad_id)
        return Batch(ids, targets, reference=self.reference[list(numbers)])


Sides = tuple[Rendered, Rendered]
"""Chosen and rejected."""


def prepare_pairs(
    files: Sequence[Path],
    val_files: Sequence[Path],
    start: Start,
    config: TuneConfig,
    say: Callable[[str], None],
    *,
    written: bool = True,
) -> tuple[list[Sides], list[Sides], PairDescription]:
    """Read, render, check and divide; raises `UserError` naming file, row and fix for whatever cannot be.

    Without ``val_files`` a share of the prompts is held out, the same for the same seed. Answers that are not
    ``written`` by the model but only read need no end token, and their last token takes a place of its own.
    """
    renderer = Renderer(start.tokenizer, start.template)
    train, dropped = _read(files, renderer, start, config, written)
    if val_files:
        val, more = _read(val_files, renderer, start, config, written)
        dropped += more
    else:
        train, val = hold_out(train, config.examples.val_share, config.seed, files[0], alike=_prompt)
    tell_dropped(dropped, say)
    check_enough(train, config.train.batch_size, files[0], "pairs")
    about = PairDescription(
        files=tuple(str(path) for path in (*files, *val_files)),
        fingerprint=_fingerprint([*train, *val]),
        train=len(train),
        val=len(val),
        dropped=dict(dropped),
    )
    return train, val, about


def as_pairs(part: Sequence[Sides], pad_id: int) -> Pairs:
    """Rendered pairs to learn to write from."""
    return Pairs([_pair(*both) for both in part], np.zeros((len(part), 2), dtype=np.float32), pad_id)


def _read(
    files: Sequence[Path], renderer: Renderer, start: Start, config: TuneConfig, written: bool
) -> tuple[list[Sides], Counter[str]]:
    learns = f"{config.method} learns pairs of answers"
    _, examples, dropped = read_kind(files, config.examples, (Preference,), learns)
    rendered = [renderer.render(example) for example in examples]
    most = config.train.context + written  # the last token that is written is never read
    kept, unfit = check_pairs(rendered, start.tokenizer, most, config.examples.too_long, ends=written)
    return kept, dropped + unfit


def _pair(chosen: Rendered, rejected: Rendered) -> Pair:
    return Pair(
        as_sequence(chosen.ids, chosen.trained), as_sequence(rejected.ids, rejected.trained), chosen.trained.index(True)
    )


def _prompt(both: Sides) -> tuple[int, ...]:
    chosen, _ = both
    return tuple(chosen.ids[: chosen.trained.index(True)])


def _fingerprint(part: Sequence[Sides]) -> str:
    digest = hashlib.sha256()
    for pair in (_pair(*both) for both in part):
        for side in (pair.chosen, pair.rejected):
            digest.update(np.int64(len(side.ids)).tobytes() + side.ids.tobytes() + side.targets.tobytes())
    return digest.hexdigest()
