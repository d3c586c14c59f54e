"""Group relative policy optimisation: of several answers to a prompt, those that are checked to be better become
likelier (GRPO; Shao et al. 2024, arXiv:2402.03300).

Answers are drawn from the model as it is at the step and learnt from once, so it is strictly on-policy: the ratio of
new to old probabilities is 1, and there is nothing to clip.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from langwright.core.errors import UserError
from langwright.core.files import write_atomic
from langwright.core.json_text import write_json
from langwright.core.runtime import pick_dtype
from langwright.data.loader import IGNORED, Batch
from langwright.infer.evaluating import evaluating
from langwright.infer.generate import generate
from langwright.infer.row import Generation
from langwright.infer.sampling import SamplingConfig
from langwright.model.adapters import without_adapters
from langwright.model.model import Model
from langwright.tokenizer.tokenizer import Tokenizer
from langwright.train.linear_nll import Rule, head_loss
from langwright.train.loop import Score
from langwright.train.objective import Objective, Piece, count_targets
from langwright.train.pretraining import decide
from langwright.train.spread import AS_ONE, Spread
from langwright.train.task import Task
from langwright.train.tuning.base import Start, check_layout, foretell, gather_facts, open_base
from langwright.train.tuning.card import problem_card
from langwright.train.tuning.config import GrpoSettings, TuneConfig
from langwright.train.tuning.divergence import PROMPTS, mean_divergence
from langwright.train.tuning.intervals import interval
from langwright.train.tuning.parts import ShuffledBatches
from langwright.train.tuning.problems import Asked, Problems, prepare_problems
from langwright.train.tuning.rows import as_sequence, stack
from langwright.train.tuning.verifiers import rewards_of
from langwright.train.validate import ValidationStopped

ANSWERS = "answers.json"
SHOWN = 16
"""How many held-out answers are written down."""
TOGETHER = 16
"""Answers that are written at a time."""


def grpo(
    config: TuneConfig,
    files: Sequence[Path],
    val_files: Sequence[Path] = (),
    say: Callable[[str], None] = lambda _: None,
    *,
    force: bool = False,
    spread: Spread = AS_ONE,
) -> Task:
    """The task of ``config`` on problems, checked before any work; raises `UserError` for what cannot work."""
    start = open_base(config)
    train, val, about = prepare_problems(files, val_files, start, config, say)
    config = decide(config, len(train), spread.ranks)
    settings, beta = config.train, config.grpo.beta
    first = [start.begin()]
    shape = first[0].config
    if settings.context > shape.max_positions:
        raise UserError(
            f"train.context is {settings.context} and {config.base} has positions for {shape.max_positions}; lower it"
        )
    spread.check(settings, shape)
    check_layout(config, spread)
    before = start.load().to(config.device, pick_dtype(settings.dtype)) if beta and config.adapter is None else None
    seen: list[Checked] = []

    def validate(model: Model, stopping: Callable[[], bool], spread: Spread) -> Checked:
        seen[:] = [score(model, config.grpo, val, start.tokenizer, stopping)]
        return seen[0]

    facts = gather_facts(config, start, shape, about, files, partial(problem_card, about=about))
    said = f"{about.train:,} problems, {about.val:,} held out; {config.grpo.group} answers to each, of up to "
    said += f"{config.grpo.max_new_tokens} tokens"
    return Task(
        facts,
        max(1, len(train) // settings.batch_size),
        build=lambda: first.pop() if first else start.begin(),
        batches=lambda rows: ShuffledBatches(train, config.seed, settings.batch_size, rows),
        validate=validate,
        headline=lambda model: foretell(facts, model, said, "problems", len(train)),
        report=lambda model, out: report(model, out, config.grpo, val, seen[0], start) if seen else [],
        objective=group_objective(config.grpo, train, start.tokenizer, before),
        certified=True,
    )


def group_objective(
    settings: GrpoSettings, train: Problems, tokenizer: Tokenizer, before: Model | None = None
) -> Objective:
    """The mean over all tokens of a step's answers: - advantage x ratio + beta x KL(model || model as it was).

    Every token weighs the same, whichever answer it is in. A mean over answers of their means, as in the paper, weighs
    tokens of long answers less, so wrong ones grow longer (Dr. GRPO; Liu et al. 2025, arXiv:2503.20783).
    The model as it was is ``before``, or that without its adapters.
    """

    def prepare(model: Model, batch: Batch, spread: Spread) -> Batch:
        asked = [train.asked[number] for number in batch.targets for _ in range(settings.group)]
        answers = answer(model, asked, SamplingConfig(max_new_tokens=settings.max_new_tokens), tokenizer)
        gained = [
            sum(rewards_of(settings, each.problem, said.text).values())
            for each, said in zip(asked, answers, strict=True)
        ]
        advantages = normalise(np.array(gained).reshape(-1, settings.group))
        return as_batch(answers, advantages.flatten(), train.pad_id)

    def loss(model: Model, piece: Piece) -> Tensor:
        kept = piece.targets != IGNORED
        theirs = look_back(before or model, piece.ids, kept) if settings.beta else None
        assert piece.reward is not None
        advantages = piece.reward[kept.nonzero()[:, 0]]  # (M,)
        rule = policy_rule(piece.targets[kept], advantages, theirs, settings.beta)
        return head_loss(model.head, model.backbone(piece.ids)[kept], rule)

    return Objective(count_targets, loss, prepare)


@torch.no_grad()
def look_back(model: Model, ids: Tensor, kept: Tensor) -> Callable[[slice], Tensor]:
    """Logits of ``model`` without its adapters at the M places of ``ids`` (N, T) that are ``kept``; parts of (M, V)."""
    with evaluating(model), without_adapters(model):
        seen = model.backbone(ids)[kept]  # (M, D)
    return lambda rows: model.head(seen[rows])


def answer(model: Model, asked: Sequence[Asked], sampling: SamplingConfig, tokenizer: Tokenizer) -> list[Generation]:
    """One answer to each; what is drawn depends on torch's generator alone."""
    return generate(model, [each.ids for each in asked], sampling, tokenizer=tokenizer, batch_size=TOGETHER)


def normalise(rewards: np.ndarray) -> np.ndarray:
    """Advantages (P, G) from rewards: (reward - mean of its group) / standard deviation; 0 where all are alike."""
    spread = np.ptp(rewards, axis=1, keepdims=True) > 0  # a sum of equal numbers may be rounded
    deviation = np.where(spread, rewards.std(1, keepdims=True), 1.0)
    return np.where(spread, (rewards - rewards.mean(1, keepdims=True)) / deviation, 0.0)


def as_batch(answers: Sequence[Generation], advantages: np.ndarray, pad_id: int) -> Batch:
    """Prompts with their answers (N, T), of which the answers are learnt, each with its advantage (N,)."""
    rows = [
        as_sequence([*each.prompt_ids, *each.token_ids], [False] * len(each.prompt_ids) + [True] * len(each.token_ids))
        for each in answers
    ]
    ids, targets = stack([(row,) for row in rows], pad_id)  # (N, 1, T)
    return Batch(ids[:, 0], targets[:, 0], reward=advantages.astype(np.float32))


def policy_rule(
    targets: Tensor, advantages: Tensor, reference_logits: Callable[[slice], Tensor] | None, beta: float
) -> Rule:
    """- advantage x ratio + beta x `k3` of each token of ``targets`` (M,); the ratio is 1, its gradient that of ln p.

    The logits of the reference are asked for as they are needed; None: there is no beta.
    """

    def rule(logits: Tensor, rows: slice, learnt: bool) -> tuple[Tensor, Tensor | None]:
        index, norm = targets[rows][:, None], logits.logsumexp(-1, keepdim=True)  # (n, 1)
        loss = slope = -advantages[rows]  # slope: of the loss by ln p
        if reference_logits is not None:
            theirs = F.log_softmax(reference_logits(rows).float(), -1).gather(-1, index)[:, 0]
            ratio = theirs - (logits.gather(-1, index) - norm)[:, 0]
            loss = loss + beta * k3(ratio)
            slope = slope + beta * (1 - ratio.exp())
        if not learnt:
            return loss.sum(), None
        grad = logits.sub_(norm).exp_().neg_().scatter_add_(-1, index, torch.ones_like(norm))
        return loss.sum(), grad.mul_(slope[:, None])

    return rule


def k3(ratio: Tensor) -> Tensor:
    """Estimates of KL(p || q) from ``ratio``, ln q - ln p of tokens drawn from p: r - 1 - ln r, where r is q / p.

    Unbiased, and never negative (k3 of Schulman 2020, "Approximating KL divergence").
    """
    return ratio.exp() - ratio - 1


@dataclass(frozen=True)
class Checked:
    """Held-out problems as they are answered without chance."""

    answers: Sequence[Generation]
    gained: Sequence[dict[str, float]]
    """Each reward of each answer, weighed."""

    @property
    def rewards(self) -> np.ndarray:
        """Of each answer, (n,)."""
        return np.array([sum(each.values()) for each in self.gained])

    @property
    def is_finite(self) -> bool:
        """Whether the weights that were judged are sound."""
        return math.isfinite(self.rewards.mean())

    @property
    def tokens(self) -> int:
        """Of prompts and answers."""
        return sum(len(each.prompt_ids) + len(each.token_ids) for each in self.answers)

    def score(self, step: int) -> Score:
        """As the figures of that step."""
        mean, (low, high) = float(self.rewards.mean()), self.interval
        return Score(step=step, more={"reward": mean, "reward_low": low, "reward_high": high}, n=len(self.rewards))

    @property
    def interval(self) -> tuple[float, float]:
        """95 % of the mean reward."""
        return interval(lambda chosen: float(self.rewards[chosen].mean()), len(self.rewards))


def score(
    model: Model, settings: GrpoSettings, val: Problems, tokenizer: Tokenizer, stopping: Callable[[], bool]
) -> Checked:
    """Answer the held-out problems greedily and check; several ranks all answer all of them."""
    sampling = SamplingConfig(temperature=0.0, max_new_tokens=settings.max_new_tokens)
    answers: list[Generation] = []
    for start in range(0, len(val), TOGETHER):
        if stopping():
            raise ValidationStopped
        answers += answer(model, val.asked[start : start + TOGETHER], sampling, tokenizer)
    pairs = zip(val.asked, answers, strict=True)
    return Checked(answers, [rewards_of(settings, each.problem, said.text) for each, said in pairs])


def report(model: Model, out: Path, settings: GrpoSettings, val: Problems, checked: Checked, start: Start) -> list[str]:
    """Write ``OUT/answers.json``: rewards by name, some answers, and how far the model's answers have moved."""
    prompts = [each.ids for each in val.asked[:PROMPTS]]
    moved = mean_divergence(model, start.load(), prompts, tokens=settings.max_new_tokens, seed=0)
    found, ended = checked.score(0), sum(each.finish_reason == "stop" for each in checked.answers)
    values = {
        "problems": len(val),
        "reward": {"value": float(checked.rewards.mean()), "ci95": checked.interval},
        "rewards": {name: float(np.mean([each[name] for each in checked.gained])) for name in settings.rewards},
        "tokens_an_answer": sum(len(each.token_ids) for each in checked.answers) / len(val),
        "ended": ended / len(val),
        "kl": moved.figures,
        "answers": [
            {"where": each.problem.where, "said": said.text, "right": each.problem.answer, "rewards": gained}
            for each, said, gained in zip(val.asked[:SHOWN], checked.answers, checked.gained, strict=False)
        ],
    }
    write_atomic(out / ANSWERS, write_json(values))
    return [
        f"{len(val):,} held-out problems: {found}; {ended / len(val):.1%} of the answers ended by themselves",
        f"{moved}; some answers are in {out / ANSWERS}",
    ]
