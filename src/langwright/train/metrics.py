"""The figures of a run: one JSON object a line in metrics.jsonl, and curves in TensorBoard where that is installed."""

import math
import os
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from langwright.core.errors import FormatError, UserError
from langwright.core.files import explained, write_atomic
from langwright.core.json_text import parse_json, write_json

METRICS = "metrics.jsonl"
BOARD = "tensorboard"

Row = dict[str, Any]


class MetricsLog:
    """Rows of ``OUT/metrics.jsonl``: ``event`` (step, skip, eval, sample, save), ``step``, and the event's figures.

    When a run continues at ``resumed_at``, the rows of later steps tell of work that was lost, and are dropped. One of
    several ranks ``writes``; the others only keep the rows.
    """

    def __init__(self, out: Path, resumed_at: int | None = None, *, writes: bool = True):
        self._out, self._path, self._writes = out, out / METRICS, writes
        self.rows: list[Row] = [] if resumed_at is None else read_metrics(self._path, resumed_at)
        self._open(resumed_at)

    def _open(self, resumed_at: int | None) -> None:
        if self._writes:
            write_atomic(self._path, "".join(write_json(row, indent=None) for row in self.rows))
        with explained(self._path):
            self._file = (self._path if self._writes else Path(os.devnull)).open("a", encoding="utf-8")
            self._board = _open_board(self._out / BOARD, resumed_at) if self._writes else None

    def go_back(self, step: int) -> None:
        """Drop the rows of steps after ``step``, whose work was given up."""
        self._close()
        self.rows = [row for row in self.rows if row["step"] <= step]
        self._open(step)

    def sync(self) -> None:
        """Have what was written so far on the disk, so that no checkpoint knows of steps that the log does not."""
        if self._writes:
            with explained(self._path):
                os.fsync(self._file.fileno())

    @property
    def has_board(self) -> bool:
        """Whether TensorBoard is installed."""
        return self._board is not None

    def write(self, event: str, step: int, **values: Any) -> None:
        """Add a row; numbers that are not finite, which JSON does not have, become null."""
        row = {"event": event, "step": step} | {name: finite(value) for name, value in values.items()}
        self.rows.append(row)
        with explained(self._path):
            self._file.write(write_json(row, indent=None))
            self._file.flush()
            for name, value in values.items():
                if self._board is not None and isinstance(value, int | float):
                    self._board.add_scalar(f"{event}/{name}", value, step)

    def has(self, event: str, step: int) -> bool:
        """Whether there is such a row."""
        return any(row["event"] == event and row["step"] == step for row in reversed(self.rows))

    def _close(self) -> None:
        with explained(self._path):
            self._file.close()
            if self._board is not None:
                self._board.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        try:
            self._close()
        except UserError:
            if kind is None:
                raise


def read_metrics(path: Path, up_to: int) -> list[Row]:
    """The rows of steps up to ``up_to``; a last line that was cut off by a crash is left out."""
    rows: list[Row] = []
    if not path.is_file():
        return rows
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = parse_json(line, str(path))
        except FormatError:
            break
        if isinstance(row, dict) and isinstance(row.get("step"), int) and row["step"] <= up_to:
            rows.append(row)
    return rows


def finite(value: Any) -> Any:
    """``value``, or None for a float that JSON does not have."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _open_board(folder: Path, resumed_at: int | None) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    purge = None if resumed_at is None else resumed_at + 1
    return SummaryWriter(str(folder), purge_step=purge)
