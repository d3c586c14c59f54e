"""Batches made ahead of time, while the model computes."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Self

from langwright.data.loader import Batch


class Prefetch:
    """``batch_at`` with the batches of the coming steps made by ``workers`` threads; with none, made when asked for.

    A batch is a function of its step, so what comes out depends neither on the threads nor on the order of the
    questions, and there is nothing to save. What ``batch_at`` raises is raised when its step is asked for. Used as a
    context manager.
    """

    def __init__(self, batch_at: Callable[[int], Batch], workers: int, *, max_steps: int):
        self._batch_at, self._max_steps, self._ahead = batch_at, max_steps, 2 * workers
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="batches") if workers else None
        self._made: dict[int, Future[Batch]] = {}

    def __call__(self, step: int) -> Batch:
        """Batch number ``step``."""
        if self._pool is None:
            return self._batch_at(step)
        coming = range(step, max(step + 1, min(step + 1 + self._ahead, self._max_steps)))
        for number in [number for number in self._made if number not in coming]:
            self._made.pop(number).cancel()
        for number in coming:
            if number not in self._made:
                self._made[number] = self._pool.submit(self._batch_at, number)
        return self._made.pop(step).result()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
