"""Ctrl-C and SIGTERM: finish nothing, lose nothing."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(Exception):
    """Training was stopped by a signal after a checkpoint was committed. An exit code for it is 128 + ``signum``."""

    def __init__(self, signum: int, step: int, checkpoint: Path):
        self.signum, self.step, self.checkpoint = signum, step, checkpoint
        name = signal.Signals(signum).name
        super().__init__(f"stopped by {name} after step {step}; saved in {checkpoint}; continue with --resume")


class StopRequest:
    """Which signal asked to stop, if any did."""

    def __init__(self) -> None:
        self.signum: int | None = None
        self._late: threading.Timer | None = None

    def when_late(self, grace_seconds: float, act: Callable[[], None]) -> None:
        """Have another thread call ``act`` where the work goes on ``grace_seconds`` after the signal."""
        self._late = threading.Timer(grace_seconds, act)
        self._late.daemon = True
        if self.signum is not None:
            self._late.start()

    def made(self, signum: int) -> None:
        """The signal came."""
        self.signum = signum
        if self._late is not None:
            self._late.start()

    def over(self) -> None:
        """Nobody is late any more."""
        if self._late is not None:
            self._late.cancel()

    def __call__(self) -> bool:
        """Whether to stop."""
        return self.signum is not None


@contextmanager
def stop_requests(*, patient: bool = False) -> Iterator[StopRequest]:
    """Within the block a first SIGINT or SIGTERM only makes the request; a second one acts as it always does.

    A ``patient`` process takes no notice of a second: launchers pass on a signal that the system already sent to all
    processes, and end with SIGKILL what is not done in time.

    Outside of the main thread, where Python cannot handle signals, nothing is changed.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}

    def ask(number: int, frame: FrameType | None) -> None:
        if patient:
            request.signum = number
            return
        restore()
        request.made(number)

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    for number in SIGNALS:
        signal.signal(number, ask)
    try:
        yield request
    finally:
        restore()
        request.over()
