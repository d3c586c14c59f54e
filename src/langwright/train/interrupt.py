"""Ctrl-C and SIGTERM: finish nothing, lose nothing."""

import signal
import threading
from collections.abc import Iterator
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

    def __call__(self) -> bool:
        """Whether to stop."""
        return self.signum is not None


@contextmanager
def stop_requests(*, patient: bool = False) -> Iterator[StopRequest]:
    """Within the block a first SIGINT or SIGTERM only sets the request; a second one acts as it always does.

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
        request.signum = number
        if not patient:
            restore()

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    for number in SIGNALS:
        signal.signal(number, ask)
    try:
        yield request
    finally:
        restore()
