"""When and by whom checkpoints are written: here, while training waits, or by a thread, from a copy in memory."""

import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

from langwright.core.errors import UserError
from langwright.train.card import RunFacts
from langwright.train.checkpoint import Snapshot, save_checkpoint, take_snapshot
from langwright.train.loop import TrainState


class Saver:
    """Writes one checkpoint at a time into ``out``.

    In the background, `begin` costs a copy of weights and optimiser in the host's memory, and waits only when the write
    before it still goes on. Nothing but whole checkpoints is ever to be seen in ``out``, whoever writes. What went
    wrong in the background is raised by the next call. Used as a context manager, which waits at the end.
    """

    def __init__(self, out: Path, facts: RunFacts, *, background: bool, say: Callable[[str], None] = lambda _: None):
        self._out, self._facts, self._background, self._say = out, facts, background, say
        self._thread: threading.Thread | None = None
        self._written: Path | BaseException | None = None  # by the thread, for whoever has joined it
        self._committed: list[Path] = []

    def begin(self, state: TrainState, *, prune: bool = True) -> None:
        """Write ``state`` as it is now; with ``prune``, old checkpoints that need not be kept are deleted after it."""
        self._join()
        snapshot = self._take(state)
        if not self._background:
            self._committed.append(self._commit(snapshot, prune))
            return
        # A daemon, so that a second Ctrl-C does not have to wait for it; what it leaves behind then is cleared later.
        self._thread = threading.Thread(target=self._write, args=(snapshot, prune), name="checkpoint", daemon=True)
        self._thread.start()

    def committed(self, *, wait: bool) -> list[Path]:
        """The checkpoints that were committed since this was asked last; ``wait`` for the one that is being written."""
        if wait or (self._thread is not None and not self._thread.is_alive()):
            self._join()
        found, self._committed = self._committed, []
        return found

    def _take(self, state: TrainState) -> Snapshot:
        return take_snapshot(state, copied=self._background)

    def _commit(self, snapshot: Snapshot, prune: bool) -> Path:
        return save_checkpoint(self._out, snapshot, self._facts, prune=prune)

    def _write(self, snapshot: Snapshot, prune: bool) -> None:
        try:
            self._written = self._commit(snapshot, prune)
        except BaseException as error:  # raised again by whoever asks next
            self._written = error

    def _join(self) -> None:
        if self._thread is None:
            return
        self._thread.join()
        written, self._written, self._thread = self._written, None, None
        if isinstance(written, BaseException):
            raise written
        assert written is not None
        self._committed.append(written)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if kind is not None and not issubclass(kind, Exception):
            return  # a second Ctrl-C ends at once
        try:
            self._join()
        except UserError as late:
            if kind is None:
                raise
            self._say(str(late))  # another error is on its way; both are told
