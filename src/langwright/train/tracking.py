"""Sends a run's figures to Weights & Biases or MLflow, where ``track`` asks for one; neither is imported otherwise.

Their own settings decide where figures go (``WANDB_MODE``, ``WANDB_PROJECT``, ``MLFLOW_TRACKING_URI``, ...). What they
cannot take never stops a run: it is told once, and training goes on.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from langwright.core.errors import UserError
from langwright.train.config import RunConfig
from langwright.train.interrupt import Interrupted
from langwright.train.metrics import Row
from langwright.train.report.page import flatten

PROJECT = "langwright"
"""Of Weights & Biases and MLflow's experiment, where their settings name none."""


class Client(Protocol):
    """What is needed of a service."""

    def log(self, figures: Mapping[str, float], step: int) -> None:
        """Add figures of a step."""

    def close(self, *, failed: bool) -> None:
        """Nothing more will come."""


class Tracker:
    """Hands rows of ``metrics.jsonl`` to a client, each once."""

    def __init__(self, client: Client | None, rows: Sequence[Row], say: Callable[[str], None]):
        self._client, self._say, self._sent = client, say, len(rows)

    def follow(self, rows: Sequence[Row]) -> None:
        """Send what is new in ``rows``; rows that were taken back, when a run went back, are sent anew."""
        self._sent = min(self._sent, len(rows))
        new, self._sent = rows[self._sent :], len(rows)
        for row in new:
            figures = {
                f"{row['event']}/{name}": value
                for name, value in row.items()
                if name != "step" and isinstance(value, int | float)
            }
            if figures:
                self._try(lambda client, figures=figures, step=row["step"]: client.log(figures, step))

    def close(self, *, failed: bool) -> None:
        """Say goodbye."""
        self._try(lambda client: client.close(failed=failed))

    def _try(self, action: Callable[[Client], None]) -> None:
        if self._client is None:
            return
        try:
            action(self._client)
        except Exception as error:  # a foreign library's: anything may come, and nothing of it is worth a run
            self._say(f"tracking stopped, training goes on: {type(error).__name__}: {error}")
            self._client = None


@contextmanager
def tracked(
    config: RunConfig, out: Path, rows: Sequence[Row], *, resumed: bool, say: Callable[[str], None]
) -> Iterator[Tracker]:
    """A tracker for the run in ``out`` that has ``rows`` already; raises `UserError` where the service cannot be used.

    A ``resumed`` run goes on under the name that it had.
    """
    tracker = Tracker(_open(config, out, resumed) if config.track else None, rows, say)
    try:
        yield tracker
    except BaseException as error:
        tracker.close(failed=not isinstance(error, Interrupted))
        raise
    tracker.close(failed=False)


def _open(config: RunConfig, out: Path, resumed: bool) -> Client:
    assert config.track is not None
    make = {"wandb": _Wandb, "mlflow": _MLflow}[config.track]
    try:
        return make(config, out.resolve(), resumed)
    except ImportError as error:
        raise UserError(f"track = {config.track}: {error}; pip install {config.track}, or leave --track out") from None
    except Exception as error:
        raise UserError(f"track = {config.track}: {type(error).__name__}: {error}") from None


class _Wandb:
    def __init__(self, config: RunConfig, out: Path, resumed: bool):
        import wandb  # pyright: ignore[reportMissingImports]

        mark = out / "wandb-run.txt"
        known = mark.read_text(encoding="utf-8").strip() if resumed and mark.is_file() else None
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=out.name,
            dir=str(out),
            config=config.model_dump(mode="json"),
            id=known,
            resume="allow" if known else None,
        )
        mark.write_text(f"{self._run.id}\n", encoding="utf-8")

    def log(self, figures: Mapping[str, float], step: int) -> None:
        self._run.log(dict(figures), step=step)

    def close(self, *, failed: bool) -> None:
        self._run.finish(exit_code=int(failed))


class _MLflow:
    def __init__(self, config: RunConfig, out: Path, resumed: bool):
        from mlflow import MlflowClient  # pyright: ignore[reportMissingImports]

        self._client = MlflowClient()
        mark = out / "mlflow-run.txt"
        if resumed and mark.is_file():
            self._run = mark.read_text(encoding="utf-8").strip()
            self._client.update_run(self._run, status="RUNNING")
            return
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        experiment = self._client.get_experiment_by_name(name)
        number = experiment.experiment_id if experiment else self._client.create_experiment(name)
        self._run = self._client.create_run(number, run_name=out.name).info.run_id
        mark.write_text(f"{self._run}\n", encoding="utf-8")
        for key, value in flatten(config.model_dump(mode="json")).items():
            self._client.log_param(self._run, key, value)

    def log(self, figures: Mapping[str, float], step: int) -> None:
        for name, value in figures.items():
            self._client.log_metric(self._run, name, value, step=step)

    def close(self, *, failed: bool) -> None:
        self._client.set_terminated(self._run, "FAILED" if failed else "FINISHED")
