"""The one training loop.

A step is a function of the seed, its number and the state before it: the batch is ``batch_at(step)``, dropout draws
from a generator seeded by (seed, step), and nothing else is random. So a run that continues from a checkpoint is the
run that was never stopped.
"""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch.optim import Optimizer

from langwright.core.config import Frozen
from langwright.core.errors import UserError
from langwright.data.loader import Batch
from langwright.model.model import Model
from langwright.train.compute import ComputeModel, pick_compute_dtype
from langwright.train.config import TrainConfig
from langwright.train.objective import CAUSAL_LM, Objective, Piece
from langwright.train.optimiser import set_lr
from langwright.train.schedule import lr_multiplier
from langwright.train.spread import AS_ONE, Spread

MAX_SKIPPED = 3
"""Steps in a row without a finite gradient after which training stops."""


class Score(Frozen):
    """A validation: bits per byte and perplexity a token after ``step`` steps."""

    step: int
    bpb: float
    ppl: float


@dataclass
class TrainState:
    """Everything that a step changes. ``step`` counts the steps done, those not taken included."""

    model: Model
    optimiser: Optimizer
    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    """Spent in steps, over all sessions."""
    skipped: int = 0
    skipped_in_a_row: int = 0
    latest: Score | None = None
    best: Score | None = None


@dataclass(frozen=True)
class StepResult:
    """Step number ``step``, from 1; ``loss`` is in nats a token; if it was not ``taken``, the weights are as before."""

    step: int
    loss: float
    grad_norm: float
    lr: float
    tokens: int
    seconds: float
    taken: bool


def train_steps(
    state: TrainState,
    config: TrainConfig,
    batch_at: Callable[[int], Batch],
    *,
    max_steps: int,
    steps_per_epoch: int,
    objective: Objective = CAUSAL_LM,
    stopping: Callable[[], bool] = lambda: False,
    spread: Spread | None = None,
) -> Iterator[StepResult]:
    """Train ``state`` in place up to ``max_steps``, yielding after every step; between steps the state is whole.

    With ``spread``, ``batch_at`` gives the rows of this rank; losses, norms and tokens are those of all ranks. Without,
    this process is alone.

    ``stopping`` is asked before every pass through the model; once it is true, the step at hand is dropped and the
    iterator ends. Raises `UserError` when `MAX_SKIPPED` steps in a row have no finite loss and gradient.
    """
    settings = config.train
    spread = spread or Spread(config.parallel)
    compute = spread.compute_model(state.model, pick_compute_dtype(settings.dtype, state.model.device))
    while state.step < max_steps:
        start = time.perf_counter()
        lr = settings.lr * lr_multiplier(settings, state.step, max_steps, steps_per_epoch)
        batch = batch_at(state.step)
        torch.manual_seed(step_seed(config.seed, state.step, spread.part))
        loss = accumulate(compute, batch, objective, settings.micro_batch_size, stopping, spread)
        if loss is None:
            return
        set_lr(state.optimiser, lr)
        grad_norm = update(state, settings.grad_clip, math.isfinite(loss), spread)
        taken = math.isfinite(loss) and math.isfinite(grad_norm)
        if taken:
            compute.refresh()
        state.step += 1
        tokens = batch.ids.size * spread.parts
        state.tokens += tokens
        state.skipped += not taken
        state.skipped_in_a_row = 0 if taken else state.skipped_in_a_row + 1
        seconds = time.perf_counter() - start
        state.seconds += seconds
        yield StepResult(state.step, loss, grad_norm, lr, tokens, seconds, taken)
        if state.skipped_in_a_row >= MAX_SKIPPED:
            raise UserError(
                f"step {state.step}: {MAX_SKIPPED} steps in a row could not be taken (loss {loss:g}, gradient norm "
                f"{grad_norm:g}); lower train.lr (now {settings.lr:g}), or set train.dtype to float32"
            )


def accumulate(
    compute: ComputeModel,
    batch: Batch,
    objective: Objective,
    micro_batch_size: int | None,
    stopping: Callable[[], bool] = lambda: False,
    spread: Spread = AS_ONE,
) -> float | None:
    """Forward and backward of ``batch`` in micro-batches: gradients of its mean loss on the masters, and that loss.

    None when ``stopping`` became true; then there are no gradients. Several ranks are asked only before the first pass.
    """
    device, total = compute.master.device, spread.agree(objective.weight(batch), not spread.ranks.alone and stopping())
    if spread.stopped:
        return None
    if not total:
        raise UserError("a batch holds no token to learn from; look at the targets of the data")
    compute.model.train()
    loss = torch.zeros((), device=device)
    for piece in micro_batches(batch, micro_batch_size, device):
        if spread.ranks.alone and stopping():
            compute.master.zero_grad(set_to_none=True)
            return None
        part = spread.run(compute.model, lambda model, piece=piece: objective.loss(model, piece)) / total
        part.backward()
        compute.collect()
        loss += part.detach()
    return spread.collect(compute.master, loss).item()


def update(state: TrainState, grad_clip: float, finite: bool, spread: Spread = AS_ONE) -> float:
    """Clip, move the weights if everything is finite, and drop the gradients; returns their norm before clipping."""
    parameters = [parameter for parameter in state.model.parameters() if parameter.grad is not None]
    norm = spread.norm(parameters)
    grad_norm = norm.item()
    if finite and math.isfinite(grad_norm):
        if grad_clip:
            spread.clip(parameters, grad_clip, norm)
        state.optimiser.step()
    state.optimiser.zero_grad(set_to_none=True)
    return grad_norm


def micro_batches(batch: Batch, size: int | None, device: torch.device) -> Iterator[Piece]:
    """``batch`` on the device in pieces of at most ``size`` sequences, in order."""
    size = size or len(batch.ids)
    for start in range(0, len(batch.ids), size):
        ids, targets = (torch.from_numpy(part[start : start + size]).to(device) for part in batch)
        yield Piece(ids, targets)


def step_seed(seed: int, step: int, part: int = 0) -> int:
    """The seed of one step's dropout: well mixed, so that neither close seeds nor close steps share draws.

    Ranks that learn from other rows (``part``) draw other masks.
    """
    return int(np.random.SeedSequence([seed, step, part] if part else [seed, step]).generate_state(1, np.uint64)[0])
