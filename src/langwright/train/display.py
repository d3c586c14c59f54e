"""What the user sees while a model learns: a bar with the time left, or plain lines where there is no terminal."""

from collections import deque
from datetime import timedelta
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from langwright.train.loop import StepResult

RECENT = 20
"""The rate shown is that of so many steps."""


class Display:
    """Shows steps on ``console`` between ``start`` and ``max_steps``. Used as a context manager."""

    def __init__(self, console: Console, *, start: int, max_steps: int, log_every: int):
        self._console, self._max_steps, self._log_every = console, max_steps, log_every
        self._recent: deque[tuple[int, float]] = deque(maxlen=RECENT)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
        self._bar = Progress(*columns, console=console, disable=not console.is_terminal)
        self._task = self._bar.add_task("training", total=max_steps, completed=start)

    @property
    def tokens_per_second(self) -> float:
        """Of the last steps; validation and saving not counted."""
        tokens, seconds = (sum(column) for column in zip(*self._recent, strict=True)) if self._recent else (0, 0.0)
        return tokens / seconds if seconds else 0.0

    def say(self, text: str) -> None:
        """Print ``text`` as it is, above the bar."""
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def step(self, result: StepResult) -> None:
        """Show a step that was done."""
        self._recent.append((result.tokens, result.seconds))
        left = (self._max_steps - result.step) * result.tokens / max(self.tokens_per_second, 1e-9)
        shown = f"loss {result.loss:.4f} · {self.tokens_per_second:,.0f} tokens/s · {duration(left)} left"
        self._bar.update(self._task, completed=result.step, description=shown)
        if not self._console.is_terminal and (result.step % self._log_every == 0 or result.step == self._max_steps):
            self.say(f"step {result.step}/{self._max_steps} · {shown} · lr {result.lr:.2e}")

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._bar.stop()


def duration(seconds: float) -> str:
    """``0:04:10``, without fractions."""
    return str(timedelta(seconds=round(seconds)))
