"""Tuning by preferences: of two answers to a prompt, the chosen one becomes likelier than the rejected one."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from langwright.core.files import write_atomic
from langwright.core.json_text import write_json
from langwright.model.model import Model
from langwright.train.loop import Score
from langwright.train.objective import Objective, Piece, to_device
from langwright.train.pretraining import decide
from langwright.train.spread import AS_ONE, Spread
from langwright.train.task import Task
from langwright.train.tuning.base import Start, check_layout, check_positions, foretell, gather_facts, open_base
from langwright.train.tuning.card import preference_card
from langwright.train.tuning.config import TuneConfig
from langwright.train.tuning.divergence import ANSWER, PROMPTS, mean_divergence
from langwright.train.tuning.likelihood import pair_likelihoods, with_reference
from langwright.train.tuning.pairs import Pairs, as_pairs, prepare_pairs
from langwright.train.tuning.parts import ShuffledBatches
from langwright.train.tuning.preference_loss import COMPARISONS, Worth
from langwright.train.validate import ValidationStopped

PREFERENCES = "preferences.json"


def worth(model: Model, piece: Piece) -> Worth:
    """What the answers of a piece of pairs (P, 2, T) are worth."""
    sums, counts = pair_likelihoods(model, piece)
    assert piece.reference is not None
    return Worth(sums[:, 0], sums[:, 1], counts[:, 0], counts[:, 1], piece.reference[:, 0], piece.reference[:, 1])


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
    *sides, about = prepare_pairs(files, val_files, start, config, say)
    train, val = (as_pairs(part, start.pad_id) for part in sides)
    config = decide(config, len(train), spread.ranks)
    settings, preference = config.train, config.preference
    first = [start.begin()]
    shape = first[0].config
    longest = max(
        len(side.ids) for part in (train, val) for pair in part.pairs for side in (pair.chosen, pair.rejected)
    )
    check_positions(config, shape, longest)
    spread.check(settings, shape)
    check_layout(config, spread)
    method = COMPARISONS[config.method]
    if method.reference:
        # Before its first step an adapter changes nothing, and no weight has moved: the model is its own reference.
        say(f"what {len(train) + len(val):,} pairs are worth to the model as it is ...")
        reference, size = first[0].to(config.device).eval(), settings.micro_batch_size or settings.batch_size
        train, val = (with_reference(part, reference, size) for part in (train, val))
        first[0].to("cpu")
    lengths = [max(len(pair.chosen.ids), len(pair.rejected.ids)) for pair in train.pairs]
    seen: list[Preferred] = []

    def validate(model: Model, stopping: Callable[[], bool], spread: Spread) -> Preferred:
        seen[:] = [score(model, config, val, stopping, spread)]
        return seen[0]

    facts = gather_facts(config, start, shape, about, files, partial(preference_card, about=about))
    objective = Objective(
        lambda batch: len(batch.ids), lambda model, piece: method.loss(worth(model, piece), preference).sum()
    )
    return Task(
        facts,
        max(1, len(train) // settings.batch_size),
        build=lambda: first.pop() if first else start.begin(),
        batches=lambda rows: ShuffledBatches(train, config.seed, settings.batch_size, rows, lengths),
        validate=validate,
        headline=lambda model: foretell(
            facts, model, f"{about.train:,} pairs of answers; {about.val:,} held out", "pairs", len(train)
        ),
        report=lambda model, out: report(model, out, val, seen[0], start) if seen else [],
        objective=objective,
        certified=True,
    )


@torch.no_grad()
def score(model: Model, config: TuneConfig, val: Pairs, stopping: Callable[[], bool], spread: Spread) -> Preferred:
    """Judge the held-out pairs; several ranks all judge all of them."""
    model.eval()
    method, settings = COMPARISONS[config.method], config.preference
    size = config.train.micro_batch_size or config.train.batch_size
    loss: list[Tensor] = []
    margin: list[Tensor] = []
    likelier: list[Tensor] = []
    for start in range(0, len(val.pairs), size):
        if stopping():
            raise ValidationStopped
        piece = to_device(val.batch(range(start, min(start + size, len(val.pairs)))), model.device)
        found = spread.run(model, lambda each, piece=piece: worth(each, piece))
        loss.append(method.loss(found, settings))
        margin.append(method.margin(found, settings))
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
        "kl": moved.figures,
    }
    write_atomic(out / PREFERENCES, write_json(values))
    return [
        f"the chosen answer is preferred in {judged.accuracy:.1%} of {len(val.pairs):,} held-out pairs, by "
        f"{judged.margin:.2f} on average",
        str(moved),
    ]
