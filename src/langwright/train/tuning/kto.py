"""Tuning by feedback: answers that were found good become likelier, those found bad rarer (KTO)."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from langwright.core.files import write_atomic
from langwright.core.json_text import write_json
from langwright.data.loader import IGNORED, Batch
from langwright.infer.evaluating import evaluating
from langwright.model.model import Model
from langwright.train.loop import Score
from langwright.train.objective import Objective, Piece, to_device
from langwright.train.pretraining import decide
from langwright.train.spread import AS_ONE, Spread
from langwright.train.task import Task
from langwright.train.tuning.base import Start, check_layout, check_positions, foretell, gather_facts, open_base
from langwright.train.tuning.card import feedback_card
from langwright.train.tuning.config import TuneConfig
from langwright.train.tuning.divergence import ANSWER, PROMPTS, mean_divergence
from langwright.train.tuning.feedback import Verdicts, prepare_feedback
from langwright.train.tuning.likelihood import log_likelihoods, pair_likelihoods, with_reference
from langwright.train.tuning.parts import ShuffledBatches
from langwright.train.tuning.preference_loss import kto
from langwright.train.validate import ValidationStopped

FEEDBACK = "feedback.json"


def learn_feedback(
    config: TuneConfig,
    files: Sequence[Path],
    val_files: Sequence[Path] = (),
    say: Callable[[str], None] = lambda _: None,
    *,
    force: bool = False,
    spread: Spread = AS_ONE,
) -> Task:
    """The task of ``config`` on feedback, checked before any work; raises `UserError` for what cannot work."""
    start = open_base(config)
    train, val, about = prepare_feedback(files, val_files, start, config, say)
    config = decide(config, len(train), spread.ranks)
    settings, beta = config.train, config.preference.beta
    size = settings.micro_batch_size or settings.batch_size
    first = [start.begin()]
    shape = first[0].config
    check_positions(config, shape, max(len(each.ids) for part in (train, val) for each in (*part.said, *part.strange)))
    spread.check(settings, shape)
    check_layout(config, spread)
    # Before its first step an adapter changes nothing, and no weight has moved: the model is its own reference.
    say(f"what {len(train) + len(val):,} answers are worth to the model as it is ...")
    reference = first[0].to(config.device).eval()
    train, val = (with_reference(part, reference, size) for part in (train, val))
    first[0].to("cpu")
    seen: list[Told] = []

    def validate(model: Model, stopping: Callable[[], bool], spread: Spread) -> Told:
        seen[:] = [score(model, config, val, stopping)]
        return seen[0]

    facts = gather_facts(config, start, shape, about, files, partial(feedback_card, about=about))
    said = f"{about.good:,} good answers and {about.bad:,} bad ones; {about.val:,} held out"
    return Task(
        facts,
        max(1, len(train) // settings.batch_size),
        build=lambda: first.pop() if first else start.begin(),
        batches=lambda rows: ShuffledBatches(train, config.seed, settings.batch_size, rows),
        validate=validate,
        headline=lambda model: foretell(facts, model, said, "answers", len(train)),
        report=lambda model, out: report(model, out, val, seen[0], start) if seen else [],
        objective=feedback_objective(beta, size),
        certified=True,
    )


def feedback_objective(beta: float, size: int) -> Objective:
    """The mean loss of a step's answers, about a point that all of them decide together, so many at a time."""

    def loss(model: Model, piece: Piece) -> Tensor:
        likelihoods, _ = log_likelihoods(model, piece.ids, piece.targets)
        assert piece.reference is not None
        assert piece.reward is not None
        return kto(likelihoods, piece.reference, piece.reward, beta).sum()

    return Objective(lambda batch: len(batch.ids), loss, partial(set_point, size=size))


@torch.no_grad()
def set_point(model: Model, batch: Batch, spread: Spread, *, size: int) -> Batch:
    """The answers alone (N, T), with ``reference`` (N,) the log-likelihoods at which they are neither gain nor loss:
    the reference's, and over it KL(model || reference) as the strange answers of the whole step estimate it, at least
    0. Nothing is learnt through it."""
    reference = batch.reference
    assert reference is not None
    strange = _side(batch, 1)
    gain = 0.0
    with evaluating(model):
        for start in range(0, len(strange.ids), size):
            rows = slice(start, start + size)
            piece = to_device(strange, model.device, rows)
            worth, _ = log_likelihoods(model, piece.ids, piece.targets)
            gain += (worth.double().cpu().numpy() - reference[rows, 1]).sum()
    gain, count = spread.ranks.total(gain, len(batch.ids))
    return _side(batch, 0)._replace(reference=reference[:, 0] + np.float32(max(0.0, gain / count)), reward=batch.reward)


def _side(batch: Batch, side: int) -> Batch:
    """One of the two answers of each row, as long as the longest of them."""
    ids, targets = batch.ids[:, side], batch.targets[:, side]
    T = int((targets != IGNORED).any(0).nonzero()[0].max()) + 1
    return Batch(ids[:, :T], targets[:, :T])


@dataclass(frozen=True)
class Told:
    """How held-out answers are judged by their rewards, beta x (ln p - ln p of the reference)."""

    loss: float
    accuracy: float
    """Share of answers whose reward has the right sign."""
    auc: float
    """How often a good answer's reward is above a bad one's."""
    good: float
    """Mean reward of the good answers."""
    bad: float
    """Mean reward of the bad ones."""
    tokens: int

    @property
    def is_finite(self) -> bool:
        """Whether the weights that were judged are sound."""
        return math.isfinite(self.loss)

    def score(self, step: int) -> Score:
        """As the figures of that step."""
        return Score(step=step, loss=self.loss, accuracy=self.accuracy, more={"auc": self.auc})


@torch.no_grad()
def score(model: Model, config: TuneConfig, val: Verdicts, stopping: Callable[[], bool]) -> Told:
    """Judge the held-out answers; several ranks all judge all of them."""
    model.eval()
    beta, size = config.preference.beta, config.train.micro_batch_size or config.train.batch_size
    worth = np.empty((len(val), 2), dtype=np.float32)
    for start in range(0, len(val), size):
        if stopping():
            raise ValidationStopped
        numbers = range(start, min(start + size, len(val)))
        found, _ = pair_likelihoods(model, to_device(val.batch(numbers), model.device))
        worth[numbers.start : numbers.stop] = found.cpu().numpy()
    gain = worth - val.reference  # (n, 2)
    point = val.reference[:, 0] + max(0.0, gain[:, 1].mean().item())
    loss = kto(torch.from_numpy(worth[:, 0]), torch.from_numpy(point), torch.from_numpy(val.rewards), beta)
    rewards, good = beta * gain[:, 0], val.rewards > 0
    return Told(
        loss=loss.mean().item(),
        accuracy=float(np.where(good, rewards > 0, rewards < 0).mean()),
        auc=area(rewards[good], rewards[~good]),
        good=rewards[good].mean().item(),
        bad=rewards[~good].mean().item(),
        tokens=sum(len(each.ids) for each in (*val.said, *val.strange)),
    )


def area(above: np.ndarray, below: np.ndarray) -> float:
    """How often a value of ``above`` is more than one of ``below``, a tie counting half: the area under the ROC curve
    (Hanley & McNeil 1982)."""
    sorted_below = np.sort(below)
    less, not_more = (np.searchsorted(sorted_below, above, side) for side in ("left", "right"))
    return float((less + not_more).mean()) / (2 * len(below))


def report(model: Model, out: Path, val: Verdicts, told: Told, start: Start) -> list[str]:
    """Write ``OUT/feedback.json``: how held-out answers are judged, and how far the model's answers have moved."""
    prompts = {tuple(each.ids[: int((each.targets != IGNORED).argmax()) + 1].tolist()): None for each in val.said}
    moved = mean_divergence(model, start.load(), list(prompts)[:PROMPTS], tokens=ANSWER, seed=0)
    values = {
        "answers": len(val),
        "accuracy": told.accuracy,
        "auc": told.auc,
        "loss": told.loss,
        "reward": {"good": told.good, "bad": told.bad},
        "kl": moved.figures,
    }
    write_atomic(out / FEEDBACK, write_json(values))
    return [
        f"{told.accuracy:.1%} of {len(val):,} held-out answers are told right by the sign of their reward (good ones "
        f"{told.good:+.2f} on average, bad ones {told.bad:+.2f}); AUC {told.auc:.3f}",
        str(moved),
    ]
