"""What a folder of a run tells: its figures, its processes, its newest checkpoint. Nothing in it is trusted."""

import math
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import ValidationError

from langwright.core.errors import UserError
from langwright.core.json_text import read_json_object
from langwright.train.checkpoint import list_checkpoints
from langwright.train.config import RunConfig, TrainConfig, list_recipes, load_recipe
from langwright.train.faults import INCIDENTS
from langwright.train.metrics import METRICS, Row, read_metrics
from langwright.train.planning.outlook import Outlook
from langwright.train.sessions import SESSIONS
from langwright.train.tuning.config import TuneConfig

State = Literal["finished", "running", "stopped", "failed", "killed", "unknown"]
EVER = 1 << 62
"""More steps than any run has."""


class Measure(NamedTuple):
    """What validations tell under ``name``: in words, and in one for a narrow table."""

    name: str
    words: str
    short: str
    more_is_better: bool = True


MEASURES = (
    Measure("val_bpb", "bits per byte", "bpb", more_is_better=False),
    Measure("val_pseudo_bpb", "pseudo bits per byte", "pseudo-bpb", more_is_better=False),
    Measure("val_entity_f1", "F1 of spans", "span F1"),
    Measure("val_accuracy", "accuracy", "right"),
    Measure("val_micro_f1", "F1 over all labels", "F1"),
    Measure("val_mrr", "mean reciprocal rank", "MRR"),
    Measure("val_reward", "mean reward", "reward"),
    Measure("val_pearson", "correlation (Pearson)", "r"),
    Measure("val_loss", "loss", "loss", more_is_better=False),
)
"""A run is judged by the first of these that its validations tell."""


@dataclass(frozen=True)
class Run:
    """``rows`` are those of ``metrics.jsonl``, ``sessions`` of ``sessions.jsonl``; ``facts`` is ``langwright.json``."""

    folder: Path
    rows: list[Row]
    sessions: list[Row]
    facts: dict[str, Any]
    incidents: list[Row]

    @property
    def name(self) -> str:
        """The folder's."""
        return self.folder.resolve().name

    @cached_property
    def config(self) -> RunConfig | None:
        """Of the last process; None where none was written down that this program can read."""
        begun = [row["config"] for row in self.sessions if row.get("event") == "begin" and "config" in row]
        for values in (*begun[-1:], self.facts.get("config")):
            for kind in (TrainConfig, TuneConfig):
                with suppress(ValidationError):
                    return kind.model_validate(values)
        return None

    @property
    def recipe(self) -> str:
        """The recipe that has the same model, if one has; of tuning the method and the model it began with."""
        config = self.config
        if isinstance(config, TuneConfig):
            return f"{config.method} {Path(config.base).name}"
        same = (
            name
            for name in list_recipes()
            if isinstance(config, TrainConfig) and load_recipe(name).model == config.model
        )
        return next(same, "own" if config else "?")

    @property
    def outlook(self) -> Outlook | None:
        """Predicted and actual."""
        try:
            return Outlook.model_validate(self.facts.get("plan"))
        except ValidationError:
            return None

    @property
    def step(self) -> int:
        """Steps done, as far as it is written down."""
        return max((row["step"] for row in (*self.rows, *self.sessions) if isinstance(row.get("step"), int)), default=0)

    @property
    def max_steps(self) -> int | None:
        """Steps in all."""
        return self.config.train.max_steps if self.config else None

    @property
    def reason(self) -> str:
        """Why the last process ended; empty while one works, and where nobody could write it down."""
        last = self.sessions[-1] if self.sessions else {}
        return str(last.get("reason", "")) if last.get("event") == "end" else ""

    @property
    def state(self) -> State:
        """Of the last process. One that did not say how it ended and is no longer there was killed."""
        if not self.sessions:
            return "unknown"
        if self.reason:
            return "finished" if self.reason == "finished" else "stopped" if self.reason.startswith("SIG") else "failed"
        return "running" if _alive(self.sessions[-1].get("process")) else "killed"

    @property
    def began(self) -> str:
        """When the first process did: UTC, to the minute."""
        return str(self.sessions[0].get("time", ""))[:16].replace("T", " ") if self.sessions else ""

    def series(self, event: str, name: str, over: str = "step") -> list[tuple[float, float]]:
        """(``over``, ``name``) of every row of that event that has both."""
        pairs = ((number(row.get(over)), number(row.get(name))) for row in self.rows if row.get("event") == event)
        return [(x, y) for x, y in pairs if x is not None and y is not None]

    @property
    def parameters(self) -> int | None:
        """Weights of the model, adapters included."""
        planned = self.outlook.predicted.parameters if self.outlook else None
        return known if isinstance(known := self.facts.get("parameters"), int) else planned

    @property
    def measure(self) -> Measure:
        """What it is judged by."""
        return next((each for each in MEASURES if self.series("eval", each.name)), MEASURES[0])

    @property
    def latest(self) -> float | None:
        """What the last validation told."""
        found = self.series("eval", self.measure.name)
        return found[-1][1] if found else None

    @property
    def best(self) -> tuple[float, float] | None:
        """Step and figure of the best validation."""
        best_of = max if self.measure.more_is_better else min
        return best_of(self.series("eval", self.measure.name), key=lambda point: point[1], default=None)

    @property
    def rate(self) -> float | None:
        """Tokens a second over all steps."""
        pairs = [(row.get("tokens"), row.get("elapsed")) for row in self.rows if row.get("event") == "step"]
        tokens, seconds = (number(value) for value in (pairs[-1] if pairs else (None, None)))
        return tokens / seconds if tokens and seconds else None

    def summary(self) -> dict[str, Any]:
        """A row of the list."""
        return {
            "run": str(self.folder),
            "recipe": self.recipe,
            "parameters": self.parameters,
            "steps": self.step,
            "max_steps": self.max_steps,
            "measure": self.measure.name,
            "latest": self.latest,
            "best": self.best[1] if self.best else None,
            "tokens_per_second": self.rate,
            "began": self.began,
            "state": self.state,
        }


def read_run(folder: Path) -> Run:
    """The run in ``folder``; raises `UserError` where there is none."""
    if not (folder / METRICS).is_file():
        raise UserError(
            f"{folder}: not the folder of a training run (no {METRICS}); give the --out of langwright train"
        )
    facts: dict[str, Any] = {}
    for checkpoint in reversed(list_checkpoints(folder)):
        try:
            facts = read_json_object(checkpoint / "langwright.json")
            break
        except UserError:
            continue
    try:
        rows, sessions = read_metrics(folder / METRICS, EVER), read_metrics(folder / SESSIONS, EVER)
    except OSError as error:
        raise UserError(f"{folder}: cannot be read: {error.strerror or error}") from None
    return Run(folder, rows, sessions, facts, _read_incidents(folder / INCIDENTS))


def find_runs(folder: Path, depth: int = 3) -> Iterator[Path]:
    """Folders of runs in and below ``folder``, by name, not deeper than ``depth``; raises `UserError` if it is none."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    if (folder / METRICS).is_file():
        yield folder
        return
    if depth:
        try:
            below = sorted(path for path in folder.iterdir() if path.is_dir() and not path.is_symlink())
        except OSError:
            return  # what may not be looked into holds no run of ours
        for path in below:
            if not path.name.startswith("."):
                yield from find_runs(path, depth - 1)


def number(value: Any) -> float | None:
    """``value`` if it is a finite number."""
    whole = isinstance(value, int | float) and not isinstance(value, bool)
    return value if whole and abs(value) < 1e300 and math.isfinite(value) else None


def _read_incidents(folder: Path) -> list[Row]:
    found = []
    for path in sorted(folder.glob("*.json")):
        try:
            found.append(read_json_object(path) | {"file": path.name})
        except UserError:
            continue
    return found


def _alive(process: Any) -> bool:
    try:
        os.kill(process, 0)
    except PermissionError:
        return True
    except (OSError, TypeError, OverflowError):
        return False
    return True
