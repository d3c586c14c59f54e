"""How fast this machine trains a model: a few real steps on random tokens, whose result is thrown away."""

import math
import statistics
import time
from dataclasses import dataclass

import numpy as np
import torch

from langwright.core.runtime import keep_freed_memory
from langwright.data.loader import Batch
from langwright.model.config import ModelConfig
from langwright.model.model import build_model
from langwright.train.config import TrainConfig
from langwright.train.linear_nll import head_nll
from langwright.train.loop import TrainState, train_steps
from langwright.train.optimiser import build_optimiser

SECONDS = 20.0
"""What a measurement may take, as far as one sequence at a time allows."""
MOST_STEPS = 5


@dataclass(frozen=True)
class Pace:
    """Measured with ``rows`` sequences at a time. ``sequence`` and ``update`` are seconds: of one sequence forward and
    backward, and of what comes once a step; ``validation`` is of one token scored."""

    rows: int
    sequence: float
    update: float
    validation: float

    def step(self, sequences: int) -> float:
        """Seconds of a step of so many sequences."""
        return self.update + self.sequence * sequences


def measure_pace(config: TrainConfig, shape: ModelConfig, seconds: float = SECONDS) -> Pace:
    """Train a fresh model of ``shape`` for a few steps on ``config.device``, which must be decided, and time them.

    As many sequences go through at once as the configuration says, fewer where that would take too long. A step that
    accumulates is never done whole: two of its pieces tell what a piece and the update cost.
    """
    settings = config.train
    keep_freed_memory()
    model = build_model(shape, seed=config.seed).to(config.device)
    state = TrainState(model, build_optimiser(model, settings))

    def time_steps(rows: int, pieces: int, steps: int) -> float:
        """Median of ``steps`` after one that warms up."""
        small = settings.replace(batch_size=rows * pieces, micro_batch_size=rows, schedule="constant", warmup_steps=0)
        ids = np.random.default_rng(0).integers(0, shape.vocab_size, (rows * pieces, settings.context + 1))
        batch = Batch(np.ascontiguousarray(ids[:, :-1]), np.ascontiguousarray(ids[:, 1:]))
        goal = state.step + 1 + steps
        found = train_steps(state, config.replace(train=small), lambda _: batch, max_steps=goal, steps_per_epoch=goal)
        return statistics.median([result.seconds for result in found][1:])

    wanted = min(settings.micro_batch_size or settings.batch_size, settings.batch_size)
    alone = time_steps(1, 1, 1)
    rows = max(1, min(wanted, int(seconds / 4 / alone)))
    steps = max(2, min(MOST_STEPS, int(seconds / 2 / (alone * rows))))
    single = time_steps(rows, 1, steps)
    piece = single
    if rows < settings.batch_size:
        difference = time_steps(rows, 2, steps) - single
        piece = difference if 0 < difference < single else single
    return Pace(rows, piece / rows, single - piece, _time_validation(state, rows, settings.context))


def _time_validation(state: TrainState, rows: int, context: int) -> float:
    """Seconds a token of scoring with the float32 weights."""
    model = state.model.eval()
    ids = torch.zeros(rows, context, dtype=torch.long, device=model.device)
    best = math.inf
    with torch.no_grad():
        for _ in range(2):
            start = time.perf_counter()
            head_nll(model.head, model.backbone(ids), ids).item()
            best = min(best, time.perf_counter() - start)
    return best / ids.numel()
