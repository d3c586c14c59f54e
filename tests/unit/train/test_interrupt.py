"""Signals become requests, once."""

import os
import signal
import threading
from pathlib import Path

import pytest

from langwright.train.interrupt import Interrupted, stop_requests


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_first_signal_only_asks(number: signal.Signals):
    before = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    with stop_requests() as request:
        assert not request()
        os.kill(os.getpid(), number)
        assert request()
        assert request.signum == number
        assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)] == before
    assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)] == before


def test_second_ctrl_c_acts_at_once():
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    try:
        with stop_requests():
            os.kill(os.getpid(), signal.SIGINT)
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


def test_other_threads_change_nothing():
    before, seen = signal.getsignal(signal.SIGINT), []

    def work() -> None:
        with stop_requests() as request:
            seen.extend([request(), signal.getsignal(signal.SIGINT)])

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [False, before]


def test_message_says_what_was_saved_and_what_to_do():
    error = Interrupted(signal.SIGTERM, 12, Path("runs/a/step-00000012"))
    text = "stopped by SIGTERM after step 12; saved in runs/a/step-00000012; continue with --resume"
    assert str(error) == text
    assert error.signum == 15
