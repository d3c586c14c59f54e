"""Reward models: one number for an answer, higher for the one that is preferred."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from langwright.core.files import write_atomic
from langwright.core.json_text import write_json
from langwright.data.loader import Batch
from langwright.model.families import FAMILIES
from langwright.model.model import Model, with_head
from langwright.train.loop import Score
from langwright.train.objective import Objective, Piece, to_device
from langwright.train.pretraining import decide
from langwright.train.spread import AS_ONE, Spread
from langwright.train.task import Task
from langwright.train.tuning.base import check_layout, check_positions, foretell, gather_facts, open_base
from langwright.train.tuning.card import reward_card
from langwright.train.tuning.config import TuneConfig
from langwright.train.tuning.pairs import Sides, prepare_pairs
from langwright.train.tuning.parts import ShuffledBatches
from langwright.train.validate import ValidationStopped

REWARDS = "rewards.json"


@dataclass(frozen=True)
class WholePairs:
    """Pairs of answers with their prompts, read to the last token."""

    sides: Sequence[Sides]
    pad_id: int

    def __len__(self) -> int:
        """Pairs."""
        return len(self.sides)

    def example(self, number: int) -> int:
        """Itself."""
        return number

    def batch(self, numbers: Sequence[int]) -> Batch:
        """These pairs, (P, 2, T): chosen and rejected side by side, padded at the end; there is nothing to predict."""
        pairs = [self.sides[number] for number in numbers]
        lengths = np.array([[len(side.ids) for side in pair] for pair in pairs])  # (P, 2)
        ids = np.full((len(pairs), 2, int(lengths.max())), self.pad_id, dtype=np.int64)
        for at, pair in enumerate(pairs):
            for place, side in enumerate(pair):
                ids[at, place, : len(side.ids)] = side.ids
        mask = np.arange(ids.shape[2]) < lengths[..., None]
        return Batch(ids, np.zeros(len(pairs), dtype=np.int64), mask=mask)


def rewards(model: Model, piece: Piece) -> Tensor:
    """What ``model`` gives for the answers of a piece of pairs (P, 2, T), (P, 2) float32."""
    assert piece.mask is not None
    return model(piece.ids.flatten(0, 1), attention_mask=piece.mask.flatten(0, 1)).float().view(-1, 2)


def ranking_loss(model: Model, piece: Piece) -> Tensor:
    """Sum of -ln sigmoid(reward of the chosen answer - reward of the rejected one): the odds of Bradley and Terry
    (Christiano et al. 2017, arXiv:1706.03741; Ouyang et al. 2022, arXiv:2203.02155)."""
    found = rewards(model, piece)
    return -F.logsigmoid(found[:, 0] - found[:, 1]).sum()


RANKING = Objective(lambda batch: len(batch.ids), ranking_loss)
"""A step's loss is the mean over its pairs."""


def learn_rewards(
    config: TuneConfig,
    files: Sequence[Path],
    val_files: Sequence[Path] = (),
    say: Callable[[str], None] = lambda _: None,
    *,
    force: bool = False,
    spread: Spread = AS_ONE,
) -> Task:
    """The task of ``config`` on pairs, checked before any work; raises `UserError` for what cannot work."""
    if config.adapter is not None:  # the head is fresh, so it has to be trained as well
        config = config.replace(adapter=config.adapter.replace(train_head=True))
    start = open_base(config, lambda model: with_head(model, "sequence_classifier", ("reward",), config.seed))
    *sides, about = prepare_pairs(files, val_files, start, config, say, written=False)
    train, val = (WholePairs(part, start.pad_id) for part in sides)
    config = decide(config, len(train), spread.ranks)
    settings = config.train
    first = [start.begin()]
    shape = first[0].config
    FAMILIES[shape.family].config_to_hf(shape, "sequence_classifier")  # raises when the family has no words for it
    check_positions(config, shape, max(len(side.ids) for part in sides for pair in part for side in pair))
    spread.check(settings, shape)
    check_layout(config, spread)
    seen: list[Ranked] = []

    def validate(model: Model, stopping: Callable[[], bool], spread: Spread) -> Ranked:
        seen[:] = [score(model, config, val, stopping)]
        return seen[0]

    facts = gather_facts(config, start, shape, about, files, partial(reward_card, about=about))
    said = f"{about.train:,} pairs of answers; {about.val:,} held out"
    lengths = [max(len(side.ids) for side in pair) for pair in train.sides]
    return Task(
        facts,
        max(1, len(train) // settings.batch_size),
        build=lambda: first.pop() if first else start.begin(),
        batches=lambda rows: ShuffledBatches(train, config.seed, settings.batch_size, rows, lengths),
        validate=validate,
        headline=lambda model: foretell(facts, model, said, "pairs", len(train)),
        report=lambda model, out: report(out, val, seen[0]) if seen else [],
        objective=RANKING,
        certified=True,
    )


@dataclass(frozen=True)
class Ranked:
    """What held-out pairs get, and the mean loss."""

    loss: float
    rewards: np.ndarray
    """(P, 2): of the chosen and of the rejected answer."""
    tokens: int

    @property
    def accuracy(self) -> float:
        """Share of the pairs whose chosen answer gets more."""
        return float((self.rewards[:, 0] > self.rewards[:, 1]).mean())

    @property
    def margin(self) -> float:
        """By how much, on average."""
        return float((self.rewards[:, 0] - self.rewards[:, 1]).mean())

    @property
    def is_finite(self) -> bool:
        """Whether the weights that were judged are sound."""
        return math.isfinite(self.loss)

    def score(self, step: int) -> Score:
        """As the figures of that step."""
        return Score(step=step, loss=self.loss, accuracy=self.accuracy)


@torch.no_grad()
def score(model: Model, config: TuneConfig, val: WholePairs, stopping: Callable[[], bool]) -> Ranked:
    """Judge the held-out pairs; several ranks all judge all of them."""
    model.eval()
    size = config.train.micro_batch_size or config.train.batch_size
    found: list[Tensor] = []
    for start in range(0, len(val), size):
        if stopping():
            raise ValidationStopped
        numbers = range(start, min(start + size, len(val)))
        found.append(rewards(model, to_device(val.batch(numbers), model.device)).cpu())
    both = torch.cat(found).double()  # (P, 2)
    loss = -F.logsigmoid(both[:, 0] - both[:, 1]).mean().item()
    return Ranked(loss, both.numpy(), tokens=sum(len(side.ids) for pair in val.sides for side in pair))


def report(out: Path, val: WholePairs, ranked: Ranked) -> list[str]:
    """Write ``OUT/rewards.json``: how the held-out pairs are judged."""
    named = zip(("chosen", "rejected"), ranked.rewards.T, strict=True)
    values = {
        "pairs": len(val),
        "accuracy": ranked.accuracy,
        "margin": ranked.margin,
        "loss": ranked.loss,
        "rewards": {name: {"mean": float(each.mean()), "std": float(each.std())} for name, each in named},
    }
    write_atomic(out / REWARDS, write_json(values))
    return [
        f"the chosen answer gets more in {ranked.accuracy:.1%} of {len(val):,} held-out pairs, by {ranked.margin:.2f} "
        "on average"
    ]
