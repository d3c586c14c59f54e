"""The figures of a run: one JSON object a line in metrics.jsonl, and curves in TensorBoard where that is installed."""

import math
import os
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from langwright.core.errors import FormatError
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
        path = out / METRICS
        self.rows: list[Row] = [] if resumed_at is None else read_metrics(path, resumed_at)
        if writes:
            write_atomic(path, "".join(write_json(row, indent=None) for row in self.rows))
        with explained(path):
            self._file = (path if writes else Path(os.devnull)).open("a", encoding="utf-8")
        self._path, self._board = path, _open_board(out / BOARD, resumed_at) if writes else None

    @property
    def has_board(self) -> bool:
        """Whether TensorBoard is installed."""
        return self._board is not None

    def write(self, event: str, step: int, **values: Any) -> None:
        """Add a row; numbers that are not finite, which JSON does not have, become null."""
        row = {"event": event, "step": step} | {name: _finite(value) for name, value in values.items()}
        self.rows.append(row)
        with explained(self._path):
            self._file.write(write_json(row, indent=None))
            self._file.flush()
        for name, value in values.items():
            if self._board is not None and isinstance(value, int | float):
                self._board.add_scalar(f"{event}/{name}", value, step)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._file.close()
        if self._board is not None:
            self._board.close()


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


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _open_board(folder: Path, resumed_at: int | None) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    purge = None if resumed_at is None else resumed_at + 1
    return SummaryWriter(str(folder), purge_step=purge)
