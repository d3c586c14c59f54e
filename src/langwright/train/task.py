"""What a run learns and how it is judged, as data: pretraining on prepared text and tuning on examples are two of them.

Steps, saving, going back, ranks and figures (`langwright.train.run`) are the same for all.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from langwright.data.loader import Batch, Place
from langwright.model.model import Model
from langwright.train.card import RunFacts
from langwright.train.loop import Score
from langwright.train.objective import Objective
from langwright.train.planning.advice import Fit
from langwright.train.spread import Spread


class StepBatches(Protocol):
    """Batches by the number of a step, from 0: always the same one."""

    def __call__(self, step: int, /) -> Batch:
        """The batch, or the rows of it that were asked for."""
        ...

    def places(self, step: int) -> list[Place]:
        """Where in the data its rows begin, all of them."""
        ...


class Verdict(Protocol):
    """What validation found."""

    @property
    def is_finite(self) -> bool:
        """Whether the weights that were scored are sound."""
        ...

    @property
    def tokens(self) -> int:
        """Tokens that were scored, or read."""
        ...

    def score(self, step: int) -> Score:
        """As the figures of that step."""
        ...


@dataclass(frozen=True)
class Task:
    """One run, with everything decided that depends on data and machine."""

    facts: RunFacts
    steps_per_epoch: int
    build: Callable[[], Model]
    """The model as it begins, on the CPU; the same whenever it is asked for."""
    batches: Callable[[Sequence[int] | None], StepBatches]
    """All rows of every batch, or those of one rank."""
    validate: Callable[[Model, Callable[[], bool], Spread], Verdict]
    """Score held-out data; the second argument says whether to stop, as in `langwright.train.validate.validate`."""
    headline: Callable[[Model], list[str]]
    """What is about to happen, in some lines."""
    report: Callable[[Model, Path], list[str]] | None = None
    """Write what else the last validation told into the run's folder; some lines about it."""
    objective: Objective | None = None
    """What is minimised; None: as for pretraining (`lm_objective`)."""
    fit: Fit | None = None
    """How it meets the memory of the device, where that was counted."""
    certified: bool = False
    """Leave a parity certificate in the last checkpoint (`langwright.infer.certificate`)."""
