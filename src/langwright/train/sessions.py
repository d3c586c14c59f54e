"""The processes that worked on a run, in ``OUT/sessions.jsonl``: a row when one begins and a row when it ends."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from langwright.core.errors import UserError
from langwright.core.files import explained, write_atomic
from langwright.core.hardware import describe_hardware
from langwright.core.json_text import write_json
from langwright.train.config import RunConfig
from langwright.train.interrupt import Interrupted

SESSIONS = "sessions.jsonl"


@contextmanager
def recorded_session(out: Path, step: Callable[[], int], config: RunConfig, *, fresh: bool) -> Iterator[None]:
    """Write down when this process began and ended, on what machine, at which ``step()``, how, and why it ended.

    A ``fresh`` run forgets the sessions of an earlier one in the same folder.
    """
    if fresh:
        write_atomic(out / SESSIONS, "")
    about = {"process": os.getpid(), "machine": describe_hardware(), "config": config.model_dump(mode="json")}
    append(out, {"event": "begin", "step": step()} | about)
    reason = "finished"
    try:
        yield
    except Interrupted as stop:
        reason = signal.Signals(stop.signum).name
        raise
    except BaseException as error:
        reason = f"{type(error).__name__}: {error}"[:500]
        raise
    finally:
        with suppress(UserError):  # nothing that is written here is worth hiding what went wrong
            append(out, {"event": "end", "step": step(), "process": os.getpid(), "reason": reason})


def append(out: Path, row: dict[str, Any]) -> None:
    """Add a row with the time, UTC."""
    path = out / SESSIONS
    stamped = {"time": datetime.now(UTC).isoformat(timespec="seconds")} | row
    with explained(path), path.open("a", encoding="utf-8") as file:
        file.write(write_json(stamped, indent=None))
