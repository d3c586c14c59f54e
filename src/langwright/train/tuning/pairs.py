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
from langwright.data.loader import IGNORED, Batch
from langwright.data.rendering import Rendered, Renderer
from langwright.train.tuning.base import Start
from langwright.train.tuning.config import TuneConfig
from langwright.train.tuning.parts import check_enough, hold_out, read_kind, tell_dropped
from langwright.train.tuning.rows import TrainedIds, as_sequence


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
        both = [(self.pairs[number].chosen, self.pairs[number].rejected) for number in numbers]
        T = max(len(each.ids) for pair in both for each in pair)
        ids = np.full((len(both), 2, T), self.pad_id, dtype=np.int64)
        targets = np.full((len(both), 2, T), IGNORED, dtype=np.int64)
        for at, pair in enumerate(both):
            for side, each in enumerate(pair):
                ids[at, side, : len(each.ids)], targets[at, side, : len(each.ids)] = each
        return Batch(ids, targets, reference=self.reference[list(numbers)])


def prepare_pairs(
    files: Sequence[Path], val_files: Sequence[Path], start: Start, config: TuneConfig, say: Callable[[str], None]
) -> tuple[Pairs, Pairs, PairDescription]:
    """Read, render, check and divide; raises `UserError` naming file, row and fix for whatever cannot be.

    Without ``val_files`` a share of the prompts is held out, the same for the same seed.
    """
    renderer = Renderer(start.tokenizer, start.template)
    train, dropped = _read(files, renderer, start, config)
    if val_files:
        val, more = _read(val_files, renderer, start, config)
        dropped += more
    else:
        train, val = hold_out(train, config.examples.val_share, config.seed, files[0], alike=_prompt)
    tell_dropped(dropped, say)
    parts = [Pairs(part, np.zeros((len(part), 2), dtype=np.float32), start.pad_id) for part in (train, val)]
    check_enough(parts[0], config.train.batch_size, files[0], "pairs")
    about = PairDescription(
        files=tuple(str(path) for path in (*files, *val_files)),
        fingerprint=_fingerprint(train, val),
        train=len(train),
        val=len(val),
        dropped=dict(dropped),
    )
    return parts[0], parts[1], about


def _read(
    files: Sequence[Path], renderer: Renderer, start: Start, config: TuneConfig
) -> tuple[list[Pair], Counter[str]]:
    learns = f"{config.method} learns pairs of answers"
    _, examples, dropped = read_kind(files, config.examples, (Preference,), learns)
    rendered = [renderer.render(example) for example in examples]
    kept, unfit = check_pairs(rendered, start.tokenizer, config.train.context + 1, config.examples.too_long)
    return [_pair(*both) for both in kept], dropped + unfit


def _pair(chosen: Rendered, rejected: Rendered) -> Pair:
    return Pair(
        as_sequence(chosen.ids, chosen.trained), as_sequence(rejected.ids, rejected.trained), chosen.trained.index(True)
    )


def _prompt(pair: Pair) -> bytes:
    return pair.chosen.ids[: pair.prompt].tobytes()


def _fingerprint(*parts: list[Pair]) -> str:
    digest = hashlib.sha256()
    for pair in (pair for part in parts for pair in part):
        for side in (pair.chosen, pair.rejected):
            digest.update(np.int64(len(side.ids)).tobytes() + side.ids.tobytes() + side.targets.tobytes())
    return digest.hexdigest()
