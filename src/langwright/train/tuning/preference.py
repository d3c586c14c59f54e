"""Tuning by preferences: of two answers to a prompt, the chosen one becomes likelier than the rejected one."""

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from langwright.core.config import Frozen
from langwright.core.errors import UserError
from langwright.core.files import write_atomic
from langwright.core.json_text import write_json
from langwright.data.examples import Example, Preference, read_examples
from langwright.data.label_checks import check_pairs
from langwright.data.loader import IGNORED, Batch, Place
from langwright.data.order import draw_keys, draw_order, permute
from langwright.data.rendering import Rendered, Renderer
from langwright.model.model import Model, count_parameters
from langwright.train.card import RunFacts
from langwright.train.loop import Score
from langwright.train.objective import Objective, Piece, to_device
from langwright.train.pretraining import decide
from langwright.train.spread import AS_ONE, Spread
from langwright.train.task import Task
from langwright.train.tuning.base import Start, check_layout, open_base
from langwright.train.tuning.card import preference_card
from langwright.train.tuning.config import PreferenceSettings, TuneConfig
from langwright.train.tuning.divergence import mean_divergence
from langwright.train.tuning.preference_loss import Worth, dpo, ipo, orpo, simpo
from langwright.train.tuning.rows import TrainedIds, as_sequence
from langwright.train.validate import ValidationStopped

WITH_REFERENCE = ("dpo", "ipo")
"""Methods that compare the model with the one it began as."""
PREFERENCES = "preferences.json"
PROMPTS, ANSWER = 32, 64
"""How many held-out prompts are answered, with at most so many tokens, to see how far the model has moved."""


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


@dataclass(frozen=True)
class PairBatches:
    """The batches of a run: called with the number of a step, from 0, always the same one."""

    data: Pairs
    seed: int
    batch_size: int
    wanted: Sequence[int] | None = None
    """The pairs of a batch that this rank learns from; None: all."""

    def __call__(self, step: int) -> Batch:
        """Batch number ``step``."""
        rows = range(self.batch_size) if self.wanted is None else self.wanted
        return self.data.batch(self._numbers(step, rows))

    def places(self, step: int) -> list[Place]:
        """Each pair's number."""
        return [Place(number, number, 0) for number in self._numbers(step, range(self.batch_size))]

    def _numbers(self, step: int, rows: Sequence[int]) -> list[int]:
        return draw_order(len(self.data.pairs), self.seed, [step * self.batch_size + row for row in rows])


def log_likelihoods(model: Model, ids: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Of each row of ``ids`` (N, T): the sum of ln p over its ``targets``, in float32, and how many they are; (N,)."""
    hidden, kept = model.backbone(ids), targets != IGNORED  # (N, T, D); padding stands last, where nobody sees it
    logits = model.head(hidden[kept]).float()  # (M, V)
    nll = F.cross_entropy(logits, targets[kept], reduction="none")  # (M,)
    sums = torch.zeros(len(ids), device=ids.device).index_add(0, kept.nonzero()[:, 0], -nll)
    return sums, kept.sum(1)


def worth(model: Model, piece: Piece) -> Worth:
    """What the answers of a piece of pairs (P, 2, T) are worth."""
    sums, counts = log_likelihoods(model, piece.ids.flatten(0, 1), piece.targets.flatten(0, 1))
    sums, counts = sums.view(-1, 2), counts.view(-1, 2)
    assert piece.reference is not None
    return Worth(sums[:, 0], sums[:, 1], counts[:, 0], counts[:, 1], piece.reference[:, 0], piece.reference[:, 1])


def losses(method: str, settings: PreferenceSettings, found: Worth) -> Tensor:
    """Of each pair, (P,)."""
    if method == "dpo":
        return dpo(found, settings.beta, settings.label_smoothing)
    if method == "ipo":
        return ipo(found, settings.beta)
    if method == "simpo":
        return simpo(found, settings.beta, settings.target_margin)
    return orpo(found, settings.beta)


def margins(method: str, settings: PreferenceSettings, found: Worth) -> Tensor:
    """By how much the chosen answer is preferred, (P,): more than 0 is right.

    For methods with a reference the difference of rewards, beta x (ln p - ln p of the reference); else that of the mean
    log-likelihoods a token.
    """
    if method in WITH_REFERENCE:
        chosen, rejected = found.chosen - found.chosen_reference, found.rejected - found.rejected_reference
        return settings.beta * (chosen - rejected)
    return found.chosen / found.chosen_tokens - found.rejected / found.rejected_tokens


@dataclass(frozen=True)
class Preferred:
    """Of the held-out pairs: mean loss, the share whose chosen answer is preferred, and by how much on average."""

    loss: float
    accuracy: float
    margin: float
    likelier: float
    """Share whose chosen answer is the likelier one as such, by the mean log-likelihood of a token."""
    tokens: int

    @property
    def is_finite(self) -> bool:
        """Whether the weights that were judged are sound."""
        return math.isfinite(self.loss)

    def score(self, step: int) -> Score:
        """As the figures of that step."""
        return Score(step=step, loss=self.loss, accuracy=self.accuracy)


def prefer(
    config: TuneConfig,
    files: Sequence[Path],
    val_files: Sequence[Path] = (),
    say: Callable[[str], None] = lambda _: None,
    *,
    force: bool = False,
    spread: Spread = AS_ONE,
) -> Task:
    """The task of ``config`` on pairs, checked before any work; raises `UserError` for what cannot work."""
    start = open_base(config)
    settings, preference = config.train, config.preference
    renderer = Renderer(start.tokenizer, start.template)
    train, dropped = _read(files, renderer, start, config)
    if val_files:
        val, more = _read(val_files, renderer, start, config)
        dropped += more
    else:
        train, val = _divide(train, config.examples.val_share, config.seed, files[0])
    if len(train) < settings.batch_size:
        raise UserError(f"{files[0]}: {len(train)} pairs are fewer than train.batch_size ({settings.batch_size})")
    if dropped:
        say("left out: " + ", ".join(f"{count} ({reason})" for reason, count in dropped.most_common()))
    config = decide(config, len(train), spread.ranks)
    settings = config.train
    first = [start.begin()]
    shape = first[0].config
    spread.check(settings, shape)
    check_layout(config, spread)
    parts = [Pairs(part, np.zeros((len(part), 2), dtype=np.float32), start.pad_id) for part in (train, val)]
    if config.method in WITH_REFERENCE:
        # Before its first step an adapter changes nothing, and no weight has moved: the model is its own reference.
        say(f"what {len(train) + len(val):,} pairs are worth to the model as it is ...")
        reference = first[0].to(config.device).eval()
        parts = [_with_reference(part, reference, settings.micro_batch_size or settings.batch_size) for part in parts]
        first[0].to("cpu")
    about = PairDescription(
        files=tuple(str(path) for path in (*files, *val_files)),
        fingerprint=_fingerprint(train, val),
        train=len(train),
        val=len(val),
        dropped=dict(dropped),
    )
    seen: list[Preferred] = []

    def validate(model: Model, stopping: Callable[[], bool], spread: Spread) -> Preferred:
        seen[:] = [score(model, config, parts[1], stopping, spread)]
        return seen[0]

    facts = RunFacts(
        config,
        shape,
        start.tokenizer,
        about,
        files[0].parent,
        card=partial(preference_card, about=about),
        form=start.form,
        more={"base": config.base, "method": config.method},
    )
    objective = Objective(
        lambda batch: len(batch.ids), lambda model, piece: losses(config.method, preference, worth(model, piece)).sum()
    )
    return Task(
        facts,
        max(1, len(train) // settings.batch_size),
        build=lambda: first.pop() if first else start.begin(),
        batches=lambda rows: PairBatches(parts[0], config.seed, settings.batch_size, rows),
        validate=validate,
        headline=lambda model: headline(facts, about, model),
        report=lambda model, out: report(model, out, parts[1], seen[0], start) if seen else [],
        objective=objective,
        certified=True,
    )


@torch.no_grad()
def score(model: Model, config: TuneConfig, val: Pairs, stopping: Callable[[], bool], spread: Spread) -> Preferred:
    """Judge the held-out pairs; several ranks all judge all of them."""
    model.eval()
    size = config.train.micro_batch_size or config.train.batch_size
    loss: list[Tensor] = []
    margin: list[Tensor] = []
    likelier: list[Tensor] = []
    for start in range(0, len(val.pairs), size):
        if stopping():
            raise ValidationStopped
        piece = to_device(val.batch(range(start, min(start + size, len(val.pairs)))), model.device)
        found = spread.run(model, lambda each, piece=piece: worth(each, piece))
        loss.append(losses(config.method, config.preference, found))
        margin.append(margins(config.method, config.preference, found))
        likelier.append(found.chosen / found.chosen_tokens > found.rejected / found.rejected_tokens)
    margins_found = torch.cat(margin)
    return Preferred(
        loss=torch.cat(loss).mean().item(),
        accuracy=(margins_found > 0).float().mean().item(),
        margin=margins_found.mean().item(),
        likelier=torch.cat(likelier).float().mean().item(),
        tokens=sum(len(pair.chosen.ids) + len(pair.rejected.ids) for pair in val.pairs),
    )


def report(model: Model, out: Path, val: Pairs, judged: Preferred, start: Start) -> list[str]:
    """Write ``OUT/preferences.json``: how the held-out pairs are judged, and how far the model's answers have moved."""
    prompts = [pair.chosen.ids[: pair.prompt].tolist() for pair in val.pairs[:PROMPTS]]
    moved = mean_divergence(model, start.load(), prompts, tokens=ANSWER, seed=0)
    values = {
        "pairs": len(val.pairs),
        "accuracy": judged.accuracy,
        "margin": judged.margin,
        "loss": judged.loss,
        "chosen_is_likelier": judged.likelier,
        "kl": {"nats_a_token": moved.a_token, "nats_an_answer": moved.an_answer, "answers": len(prompts)},
    }
    write_atomic(out / PREFERENCES, write_json(values))
    return [
        f"the chosen answer is preferred in {judged.accuracy:.1%} of {len(val.pairs):,} held-out pairs, by "
        f"{judged.margin:.2f} on average",
        f"KL divergence from the model it began as: {moved.a_token:.4f} nats a token, {moved.an_answer:.2f} an answer "
        f"(of up to {ANSWER} tokens, {len(prompts)} answers)",
    ]


def headline(facts: RunFacts, about: PairDescription, model: Model) -> list[str]:
    """What is about to happen, in three lines."""
    config, settings = facts.config, facts.config.train
    trained = sum(each.numel() for each in model.parameters() if each.requires_grad)
    steps = settings.max_steps or 0
    return [
        f"model: {count_parameters(model):,} parameters ({facts.model.family}), {trained:,} of them trained, "
        f"{settings.dtype} on {config.device}, {config.threads} threads",
        f"data: {about.train:,} pairs of answers; {about.val:,} held out",
        f"plan: {steps:,} steps of {settings.batch_size} pairs "
        f"({steps * settings.batch_size / about.train:.2f} epochs)",
    ]


def _read(
    files: Sequence[Path], renderer: Renderer, start: Start, config: TuneConfig
) -> tuple[list[Pair], Counter[str]]:
    examples = read_examples(files, fields=config.examples.fields, format=config.examples.format)
    rendered = [renderer.render(_checked(example, config.method)) for example in examples.items]
    kept, dropped = check_pairs(rendered, start.tokenizer, config.train.context + 1, config.examples.too_long)
    return [_pair(*both) for both in kept], examples.dropped + dropped


def _checked(example: Example, method: str) -> Preference:
    if not isinstance(example, Preference):
        raise UserError(
            f"{example.where}: {method} learns pairs of answers, and this is a {type(example).__name__.lower()} "
            "example; use another method, or map fields with --examples.fields"
        )
    return example


def _pair(chosen: Rendered, rejected: Rendered) -> Pair:
    return Pair(
        as_sequence(chosen.ids, chosen.trained), as_sequence(rejected.ids, rejected.trained), chosen.trained.index(True)
    )


def _divide(pairs: list[Pair], share: float, seed: int, file: Path) -> tuple[list[Pair], list[Pair]]:
    """Hold out a share, never the same prompt on both sides."""
    n, held = len(pairs), round(len(pairs) * share)
    if not 0 < held < n:
        raise UserError(f"{file}: holding out {share:g} of {n} pairs leaves none; give --val FILE or more pairs")
    order = permute(np.arange(n), n, draw_keys(seed, 0))
    val = [pairs[number] for number in order[:held]]
    prompts = {_prompt(pair) for pair in val}
    train = [pairs[number] for number in sorted(order[held:].tolist()) if _prompt(pairs[number]) not in prompts]
    return train, val


def _prompt(pair: Pair) -> bytes:
    return pair.chosen.ids[: pair.prompt].tobytes()


def _fingerprint(*parts: list[Pair]) -> str:
    digest = hashlib.sha256()
    for pair in (pair for part in parts for pair in part):
        for side in (pair.chosen, pair.rejected):
            digest.update(np.int64(len(side.ids)).tobytes() + side.ids.tobytes() + side.targets.tobytes())
    return digest.hexdigest()


@torch.no_grad()
def _with_reference(part: Pairs, model: Model, size: int) -> Pairs:
    reference = np.empty((len(part.pairs), 2), dtype=np.float32)
    for start in range(0, len(part.pairs), size):
        numbers = range(start, min(start + size, len(part.pairs)))
        piece = to_device(part.batch(numbers), model.device)
        sums, _ = log_likelihoods(model, piece.ids.flatten(0, 1), piece.targets.flatten(0, 1))
        reference[numbers.start : numbers.stop] = sums.view(-1, 2).cpu().numpy()
    return Pairs(part.pairs, reference, part.pad_id)
