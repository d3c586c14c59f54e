"""How a run of `train` or `tune` ends on the command line, on one process or several."""

from collections.abc import Callable
from typing import Any

from rich.console import Console

from langwright.train.interrupt import Interrupted
from langwright.train.ranks import SharedError, speaks
from langwright.train.session import TrainResult


def carry_out(job: Callable[[Console], TrainResult], again: str) -> TrainResult | int:
    """What ``job`` gives, or the exit code where there is nothing left to say.

    That is so when it was interrupted (``again`` tells how to go on), and on all ranks but the first.
    """
    console = Console(stderr=True, quiet=not speaks())
    try:
        result = job(console)
    except SharedError:
        if speaks():
            raise
        return 2
    except Interrupted as stop:
        console.print(f"{stop}; to continue: {again}", markup=False, highlight=False, soft_wrap=True)
        return 128 + stop.signum
    return result if speaks() else 0


def summary(result: TrainResult) -> dict[str, Any]:
    """For programs."""
    return {
        "steps": result.steps,
        **result.score.figures,
        "tokens_per_second": result.tokens_per_second,
        "checkpoint": str(result.checkpoint),
    }
