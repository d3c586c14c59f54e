"""Progress bars on standard error: silent where nobody watches."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

StageProgress = Callable[[str, int, int], None]


@contextmanager
def byte_progress() -> Iterator[StageProgress]:
    """Yield ``progress(stage, done, total)`` in bytes; each new stage gets its own bar, ``total`` 0 is unknown."""
    columns = (
        TextColumn("{task.description:<24}"),
        BarColumn(bar_width=30),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(compact=True),
    )
    console = Console(stderr=True)
    with Progress(*columns, console=console, disable=not console.is_terminal) as bars:
        tasks = {}

        def progress(stage: str, done: int, total: int) -> None:
            for other, task in tasks.items():
                if other != stage and not bars.tasks[task].finished:
                    bars.update(
                        task, total=max(1, bars.tasks[task].completed), completed=bars.tasks[task].completed or 1
                    )
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=None)
            bars.update(tasks[stage], completed=done, total=total or None)

        yield progress
