"""Prompts with an answer that was found good or bad: read, checked, divided, put beside answers to other prompts."""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from langwright.core.config import Frozen
from langwright.core.errors import UserError
from langwright.data.examples import Feedback, Preference
from langwright.data.label_checks import check_pairs, check_rendered
from langwright.data.loader import Batch
from langwright.data.order import draw_keys, permute
from langwright.data.rendering import Rendered, Renderer
from langwright.train.tuning.base import Start
from langwright.train.tuning.config import PreferenceSettings, TuneConfig
from langwright.train.tuning.parts import check_enough, hold_out, read_kind, tell_dropped
from langwright.train.tuning.rows import TrainedIds, as_sequence, stack

BALANCE = (1.0, 4 / 3)
"""Between these the summed weights of good answers over those of bad ones should lie (arXiv:2402.01306, equation 8)."""


class FeedbackDescription(Frozen):
    """What is known of the feedback of a run; ``good`` and ``bad`` answers are learnt from."""

    files: tuple[str, ...]
    fingerprint: str
    """SHA-256 over the ids of all answers and what was found of them."""
    good: int
    bad: int
    val: int
    dropped: dict[str, int]


@dataclass(frozen=True)
class Answer:
    """A prompt with one answer, and what was found of it."""

    rendered: Rendered
    good: bool

    @property
    def begins(self) -> int:
        """How many ids the prompt has."""
        return self.rendered.trained.index(True)

    @property
    def prompt(self) -> tuple[int, ...]:
        """Its ids."""
        return tuple(self.rendered.ids[: self.begins])


@dataclass(frozen=True)
class Verdicts:
    """Answers, and beside each its prompt with the answer to another one.

    ``rewards`` (n,) float32 are what the answers weigh, less than 0 for bad ones; ``reference`` (n, 2) float32 is what
    both are worth to the model that tuning began with.
    """

    said: Sequence[TrainedIds]
    strange: Sequence[TrainedIds]
    rewards: np.ndarray
    reference: np.ndarray
    pad_id: int

    def __len__(self) -> int:
        """Answers."""
        return len(self.said)

    def example(self, number: int) -> int:
        """Itself."""
        return number

    def batch(self, numbers: Sequence[int]) -> Batch:
        """These answers and the strange ones, (N, 2, T), padded at the end."""
        ids, targets = stack([(self.said[number], self.strange[number]) for number in numbers], self.pad_id)
        return Batch(ids, targets, reference=self.reference[list(numbers)], reward=self.rewards[list(numbers)])


def prepare_feedback(
    files: Sequence[Path], val_files: Sequence[Path], start: Start, config: TuneConfig, say: Callable[[str], None]
) -> tuple[Verdicts, Verdicts, FeedbackDescription]:
    """Read, render, check and divide; raises `UserError` naming file, row and fix for whatever cannot be.

    Without ``val_files`` a share of the prompts is held out, the same for the same seed.
    """
    renderer = Renderer(start.tokenizer, start.template)
    train, dropped = _read(files, renderer, start, config)
    if val_files:
        val, more = _read(val_files, renderer, start, config)
        dropped += more
    else:
        found: defaultdict[Hashable, set[bool]] = defaultdict(set)
        for each in train:
            found[each.prompt].add(each.good)
        train, val = hold_out(
            train,
            config.examples.val_share,
            config.seed,
            files[0],
            alike=lambda each: each.prompt,
            group=lambda each: frozenset(found[each.prompt]),
        )
    tell_dropped(dropped, say)
    for part, name in ((train, "learnt from"), (val, "held out")):
        check_both_kinds(part, files[0], name)
    settings = config.preference
    tell_imbalance(train, settings, say)
    parts = [_verdicts(part, train, config, start.pad_id) for part in (train, val)]
    check_enough(parts[0], config.train.batch_size, files[0], "answers")
    digest = hashlib.sha256()
    for each in (*train, *val):
        digest.update(np.asarray([len(each.rendered.ids), *each.rendered.ids, each.begins, each.good], "<i8").tobytes())
    about = FeedbackDescription(
        files=tuple(str(path) for path in (*files, *val_files)),
        fingerprint=digest.hexdigest(),
        good=sum(each.good for each in train),
        bad=sum(not each.good for each in train),
        val=len(val),
        dropped=dict(dropped),
    )
    return parts[0], parts[1], about


def _read(
    files: Sequence[Path], renderer: Renderer, start: Start, config: TuneConfig
) -> tuple[list[Answer], Counter[str]]:
    learns = "kto learns answers that were found good or bad, or pairs of answers"
    _, examples, dropped = read_kind(files, config.examples, (Feedback, Preference), learns)
    limits = start.tokenizer, config.train.context + 1, config.examples.too_long
    pairs = [renderer.render(each) for each in examples if isinstance(each, Preference)]
    if pairs:
        both, unfit = check_pairs(pairs, *limits)
        answers = [Answer(each, good) for pair in both for each, good in zip(pair, (True, False), strict=True)]
        return answers, dropped + unfit
    answers: list[Answer] = []
    for good in (True, False):
        rendered = [renderer.render(each) for each in examples if isinstance(each, Feedback) and each.good is good]
        kept, unfit = check_rendered(rendered, *limits) if rendered else ([], Counter())
        answers += [Answer(each, good) for each in kept]
        dropped += unfit
    return answers, dropped


def check_both_kinds(answers: Sequence[Answer], file: Path, name: str) -> None:
    """Raise `UserError` where all answers are good, or all are bad; ``name`` says which part they are."""
    if len({each.good for each in answers}) < 2:
        kind, other = ("good", "bad") if answers[0].good else ("bad", "good")
        raise UserError(
            f"{file}: all answers that are {name} are {kind}; kto tells good from bad, so give {other} ones too"
        )


def tell_imbalance(answers: Sequence[Answer], settings: PreferenceSettings, say: Callable[[str], None]) -> None:
    """Say so where one kind of answers outweighs the other by more than `BALANCE`, and which weight would mend it."""
    good = sum(each.good for each in answers)
    bad = len(answers) - good
    ratio = settings.desirable_weight * good / (settings.undesirable_weight * bad)
    if BALANCE[0] - 1e-9 <= ratio <= BALANCE[1] + 1e-9:
        return
    low, high = (limit * settings.undesirable_weight * bad / good for limit in BALANCE)
    say(
        f"{good:,} good answers weigh {ratio:.2f} times as much as {bad:,} bad ones and should weigh 1 to 1.33 times "
        f"as much; use --preference.desirable-weight {low:.2f} to {high:.2f}"
    )


def mismatch(answers: Sequence[Answer], others: Sequence[Answer], seed: int, max_tokens: int) -> list[TrainedIds]:
    """Each of the prompts of ``answers`` with the answer of one of ``others`` to a different prompt, cut to so many
    tokens; raises `UserError` when there is none."""
    order = permute(np.arange(len(others)), len(others), draw_keys(seed, 0)).tolist()
    prompts = [each.prompt for each in others]
    found = []
    for number, own in enumerate(answers):
        around = (order[(number + step) % len(order)] for step in range(len(order)))
        other = next((others[at] for at in around if prompts[at] != own.prompt), None)
        if other is None:
            raise UserError(
                f"{own.rendered.where}: all answers are to the same prompt; kto needs answers to different ones"
            )
        said, learnt = other.rendered.ids[other.begins :], other.rendered.trained[other.begins :]
        ids, trained = [*own.prompt, *said], [False] * own.begins + learnt
        found.append(as_sequence(ids[:max_tokens], trained[:max_tokens]))
    return found


def _verdicts(part: Sequence[Answer], train: Sequence[Answer], config: TuneConfig, pad_id: int) -> Verdicts:
    weights = config.preference.desirable_weight, -config.preference.undesirable_weight
    return Verdicts(
        [as_sequence(each.rendered.ids, each.rendered.trained) for each in part],
        mismatch(part, train, config.seed, config.train.context + 1),
        np.array([weights[0] if each.good else weights[1] for each in part], dtype=np.float32),
        np.zeros((len(part), 2), dtype=np.float32),
        pad_id,
    )
