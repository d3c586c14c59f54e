"""The one training loop.

A step is a function of the seed, its number and the state before it: the batch is ``batch_at(step)``, dropout draws
from a generator seeded by (seed, step), and nothing else is random. So a run that continues from a checkpoint is the
run that was never stopped.
"""

import math
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from torch.optim import Optimizer

from langwright.core.config import Frozen
from langwright.core.errors import UserError
from langwright.data.loader import Batch
from langwright.model.model import Model
from langwright.train.compute import ComputeModel, pick_compute_dtype
from langwright.train.config import LoopSettings, RunConfig
from langwright.train.faults import BadStep, find_fault, remember
from langwright.train.joint import join_pieces
from langwright.train.objective import Objective, Piece, lm_objective, to_device
from langwright.train.optimiser import set_lr
from langwright.train.planning.outlook import Outlook
from langwright.train.schedule import lr_multiplier
from langwright.train.spread import AS_ONE, Spread

MAX_SKIPPED = 3
"""Steps in a row that could not be taken after which training stops."""


class Score(Frozen):
    """A validation after ``step`` steps.

    Of a language model: bits per byte and perplexity a token; with ``accuracy`` of a masked one: how many hidden tokens
    it tells right; the others are then *pseudo* (see `Validation`) and are told under that name. Of a classifier:
    ``loss`` in nats an example, accuracy and the mean of the labels' F1; ``temperature`` calibrates it. What else a
    tuned model is judged by is in ``more``, by name, and ``n`` says on how many examples.
    """

    step: int
    bpb: float | None = None
    ppl: float | None = None
    accuracy: float | None = None
    loss: float | None = None
    macro_f1: float | None = None
    temperature: float | None = None
    more: dict[str, float] | None = None
    n: int | None = None

    @property
    def rank(self) -> float:
        """What is best when it is least; without a loss the first of ``more`` is what is to be large."""
        found = self.loss if self.bpb is None else self.bpb
        return -next(iter((self.more or {}).values())) if found is None else found

    @property
    def figures(self) -> dict[str, float]:
        """By the names that programs read."""
        if self.bpb is None or self.ppl is None:
            named = {"loss": self.loss, "accuracy": self.accuracy, "macro_f1": self.macro_f1} | (self.more or {})
            return {f"val_{name}": value for name, value in named.items() if value is not None}
        if self.accuracy is None:
            return {"val_bpb": self.bpb, "val_ppl": self.ppl}
        return {"val_pseudo_bpb": self.bpb, "val_pseudo_ppl": self.ppl, "val_accuracy": self.accuracy}

    def __str__(self) -> str:
        if self.bpb is None or self.ppl is None:
            shares = {"accuracy": self.accuracy, "macro F1": self.macro_f1}
            told = [f"{name} {share:.2%}" for name, share in shares.items() if share is not None]
            told += [f"{name.replace('_', ' ')} {value:.4f}" for name, value in (self.more or {}).items()]
            told += [] if self.loss is None else [f"loss {self.loss:.4f}"]
            return ", ".join(told) + ("" if self.n is None else f" (n = {self.n:,})")
        if self.accuracy is None:
            return f"{self.bpb:.4f} bits per byte, perplexity {self.ppl:,.2f}"
        return (
            f"{self.bpb:.4f} pseudo bits per byte, pseudo-perplexity {self.ppl:,.2f}, {self.accuracy:.1%} of hidden "
            "tokens right"
        )


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
    outlook: Outlook | None = None
    """What was planned, and what came of it."""
    recent: tuple[tuple[float, float], ...] = ()
    """Loss and gradient norm of the last steps taken, where leaps are looked for."""
    passed_over: tuple[int, ...] = ()
    """Steps, counted from 0, whose batches are left out because something was wrong there before."""
    lock: threading.RLock = field(default_factory=threading.RLock, init=False, repr=False, compare=False)
    """Whoever changes the state or saves it holds this: a pass that takes minutes must not keep a save from it."""


@dataclass(frozen=True)
class StepResult:
    """Step number ``step``, from 1; ``loss`` is in nats a token; if it was not ``taken``, the weights are as before.

    ``fault`` says why it was not; ``passed_over`` means that it was not even tried.
    """

    step: int
    loss: float
    grad_norm: float
    lr: float
    tokens: int
    seconds: float
    taken: bool
    fault: str | None = None
    passed_over: bool = False


def train_steps(
    state: TrainState,
    config: RunConfig,
    batch_at: Callable[[int], Batch],
    *,
    max_steps: int,
    steps_per_epoch: int,
    objective: Objective | None = None,
    stopping: Callable[[], bool] = lambda: False,
    spread: Spread | None = None,
) -> Iterator[StepResult]:
    """Train ``state`` in place up to ``max_steps``, yielding after every step; between steps the state is whole.

    With ``spread``, ``batch_at`` gives the rows of this rank; losses, norms and tokens are those of all ranks. Without,
    this process is alone.

    ``objective`` is by default that of pretraining (`lm_objective`). ``stopping`` is asked before every pass through
    the model; once it is true, the step at hand is dropped and the iterator ends. A step with a fault (`find_fault`)
    changes no weights; the caller may go back to an older state when it is yielded. Raises `BadStep` after
    `MAX_SKIPPED` of them in a row, or, where ``on_bad_step`` is stop, after one, which then stays to be done.
    """
    settings, objective = config.train, objective or lm_objective(state.model)
    spread = spread or Spread(config.parallel)
    compute = spread.compute_model(state.model, pick_compute_dtype(settings.dtype, state.model.device))
    while state.step < max_steps:
        start = time.perf_counter()
        lr = settings.lr * lr_multiplier(settings, state.step, max_steps, steps_per_epoch)
        if state.step in state.passed_over:
            with state.lock:
                state.step += 1
                state.skipped += 1
            yield StepResult(state.step, math.nan, math.nan, lr, 0, 0.0, False, "passed over", True)
            continue
        batch = batch_at(state.step)
        torch.manual_seed(step_seed(config.seed, state.step, spread.part))
        batch = objective.prepare(compute.model, batch, spread)
        loss = accumulate(compute, batch, objective, settings.micro_batch_size, stopping, spread)
        if loss is None:
            return
        with state.lock:
            set_lr(state.optimiser, lr)
            grad_norm, fault = update(state, settings, loss, spread)
            number, tokens = state.step + 1, batch.n_tokens * spread.parts
            if fault is None:
                compute.refresh()
                state.recent = remember(state.recent, loss, grad_norm, settings)
            if fault is None or settings.on_bad_step != "stop":
                state.step = number
                state.tokens += tokens
            state.skipped += fault is not None
            state.skipped_in_a_row = 0 if fault is None else state.skipped_in_a_row + 1
            seconds = time.perf_counter() - start
            state.seconds += seconds
        yield StepResult(number, loss, grad_norm, lr, tokens, seconds, fault is None, fault)
        if fault is not None:
            _go_on_or_stop(state, settings, number, fault)
            compute.refresh()  # whoever looked at the step may have gone back to other weights


def _go_on_or_stop(state: TrainState, settings: LoopSettings, number: int, fault: str) -> None:
    if state.step < number and settings.on_bad_step == "rewind":
        return
    if settings.on_bad_step == "stop":
        raise BadStep(f"step {number} could not be taken ({fault}), and train.on_bad_step is stop")
    if state.skipped_in_a_row >= MAX_SKIPPED:
        raise BadStep(
            f"step {number}: {MAX_SKIPPED} steps in a row could not be taken ({fault}); lower train.lr (now "
            f"{settings.lr:g}), or set train.dtype to float32"
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
    if objective.join is not None:
        pieces = list(micro_batches(batch, micro_batch_size, device))
        joined = join_pieces(compute, pieces, objective, total, stopping)
        return None if joined is None else joined.item()
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


def update(state: TrainState, settings: LoopSettings, loss: float, spread: Spread = AS_ONE) -> tuple[float, str | None]:
    """Clip, move the weights unless something is wrong, drop the gradients; their norm before clipping, and what is."""
    parameters = [parameter for parameter in state.model.parameters() if parameter.grad is not None]
    norm = spread.norm(parameters)
    grad_norm = norm.item()
    fault = find_fault(loss, grad_norm, state.recent, settings)
    if fault is None:
        if settings.grad_clip:
            spread.clip(parameters, settings.grad_clip, norm)
        state.optimiser.step()
    state.optimiser.zero_grad(set_to_none=True)
    return grad_norm, fault


def micro_batches(batch: Batch, size: int | None, device: torch.device) -> Iterator[Piece]:
    """``batch`` on the device in pieces of at most ``size`` sequences, in order."""
    size = size or len(batch.ids)
    for start in range(0, len(batch.ids), size):
        yield to_device(batch, device, slice(start, start + size))


def step_seed(seed: int, step: int, part: int = 0) -> int:
    """The seed of one step's dropout: well mixed, so that neither close seeds nor close steps share draws.

    Ranks that learn from other rows (``part``) draw other masks.
    """
    return int(np.random.SeedSequence([seed, step, part] if part else [seed, step]).generate_state(1, np.uint64)[0])
