"""Prompts whose answers can be checked: read, rendered and divided."""

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from langwright.core.config import Frozen
from langwright.core.errors import UserError
from langwright.data.examples import Problem
from langwright.data.loader import Batch
from langwright.train.tuning.base import Start
from langwright.train.tuning.config import TuneConfig
from langwright.train.tuning.parts import check_enough, hold_out, read_kind, tell_dropped
from langwright.train.tuning.verifiers import check_problem, check_settings


class ProblemDescription(Frozen):
    """What is known of the problems of a run."""

    files: tuple[str, ...]
    fingerprint: str
    """SHA-256 over the ids of all prompts, the answers and the tests."""
    train: int
    val: int
    dropped: dict[str, int]


@dataclass(frozen=True)
class Asked:
    """A problem and its prompt as the model is given it."""

    problem: Problem
    ids: tuple[int, ...]


@dataclass(frozen=True)
class Problems:
    """Problems to be answered."""

    asked: Sequence[Asked]
    pad_id: int

    def __len__(self) -> int:
        """Problems."""
        return len(self.asked)

    def example(self, number: int) -> int:
        """Itself."""
        return number

    def batch(self, numbers: Sequence[int]) -> Batch:
        """The prompts of these problems (P, T), padded at the end; ``targets`` (P,) are the numbers."""
        lengths = np.array([len(self.asked[number].ids) for number in numbers])
        ids = np.full((len(lengths), int(lengths.max())), self.pad_id, dtype=np.int64)
        for at, number in enumerate(numbers):
            ids[at, : lengths[at]] = self.asked[number].ids
        return Batch(ids, np.array(numbers, dtype=np.int64), mask=np.arange(ids.shape[1]) < lengths[:, None])


def prepare_problems(
    files: Sequence[Path], val_files: Sequence[Path], start: Start, config: TuneConfig, say: Callable[[str], None]
) -> tuple[Problems, Problems, ProblemDescription]:
    """Read, render, check and divide; raises `UserError` naming file, row and fix for whatever cannot be.

    Without ``val_files`` a share of the prompts is held out, the same for the same seed.
    """
    check_settings(config.grpo)
    if config.grpo.max_new_tokens >= config.train.context:
        raise UserError(
            f"grpo.max_new_tokens ({config.grpo.max_new_tokens}) leaves no room for a prompt in train.context "
            f"({config.train.context}); lower the one or raise the other"
        )
    train, dropped = _read(files, start, config)
    if val_files:
        val, more = _read(val_files, start, config)
        dropped += more
    else:
        share = config.examples.val_share
        train, val = hold_out(train, share, config.seed, files[0], alike=lambda each: each.ids)
    tell_dropped(dropped, say)
    check_enough(train, config.train.batch_size, files[0], "problems")
    digest = hashlib.sha256()
    for each in (*train, *val):
        digest.update(repr((each.ids, each.problem.answer, each.problem.tests)).encode(errors="replace"))
    about = ProblemDescription(
        files=tuple(str(path) for path in (*files, *val_files)),
        fingerprint=digest.hexdigest(),
        train=len(train),
        val=len(val),
        dropped=dict(dropped),
    )
    return Problems(train, start.pad_id), Problems(val, start.pad_id), about


def _read(files: Sequence[Path], start: Start, config: TuneConfig) -> tuple[list[Asked], Counter[str]]:
    _, problems, dropped = read_kind(files, config.examples, (Problem,), "grpo learns problems (prompt, answer)")
    if start.template is None:
        raise UserError(
            f"{config.base}: has no chat template to ask with; give --examples.chat-template chatml, or a file"
        )
    room = config.train.context - config.grpo.max_new_tokens
    kept = []
    for problem in problems:
        check_problem(config.grpo, problem)
        try:
            ids = tuple(start.template.render(problem.prompt, add_generation_prompt=True).ids)
        except UserError as error:
            raise UserError(f"{problem.where}: {error}") from None
        if len(ids) <= room:
            kept.append(Asked(problem, ids))
        elif config.examples.too_long == "drop":
            dropped[f"prompt longer than {room:,} tokens"] += 1
        else:
            raise UserError(
                f"{problem.where}: the prompt has {len(ids):,} tokens, and train.context ({config.train.context}) has "
                f"room for {room:,} beside grpo.max_new_tokens; raise it, or use --examples.too-long drop"
            )
    if not kept:
        raise UserError(f"{files[0]}: no problem is left to learn from; raise --train.context")
    return kept, dropped
