"""A real process, a real signal: the work is saved, and continuing gives what an undisturbed run gives."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from langwright.core.files import verify_folder
from langwright.train.interrupt import Interrupted
from langwright.train.run import train
from tests.unit.train.tiny import DROPOUT, make_config, prepare_text, quiet

ROOT = Path(__file__).parents[3]
CHANGES = {"model": DROPOUT, "train": {"max_steps": 9, "sample_every": 3, "save_every": 2, "keep": 2}}
# The sampler tells that step 6 is done and waits for the handlers to change, so the signal comes at a known moment.
PROGRAM = """
import signal, sys, time
from pathlib import Path
from langwright.train.interrupt import Interrupted
from langwright.train.run import train
from tests.unit.train.tiny import make_config, quiet

calls = []
def sampler(model, prompt):
    calls.append(prompt)
    if len(calls) == 2:
        handler = signal.getsignal(signal.SIGTERM)
        print("now", flush=True)
        while signal.getsignal(signal.SIGTERM) is handler:
            time.sleep(0.01)
    return ""

try:
    train(make_config(**{changes!r}), Path(sys.argv[1]), Path(sys.argv[2]), sampler=sampler, console=quiet())
except Interrupted as error:
    print(error)
    sys.exit(128 + error.signum)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_saves_and_the_run_continues_bit_for_bit(number: signal.Signals, tmp_path: Path):
    data, out = prepare_text(tmp_path), tmp_path / "run"
    command = [sys.executable, "-c", PROGRAM.format(changes=CHANGES), str(data), str(out)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "now\n"
        process.send_signal(number)
        try:
            text, _ = process.communicate(timeout=50)
        finally:
            process.kill()
    assert process.returncode == 128 + number
    assert f"stopped by {number.name} after step 6; saved in {out / 'step-00000006'}" in text
    verify_folder(out / "last")
    assert sorted(path.name for path in out.glob("step-*")) == ["step-00000004", "step-00000006"]

    config = make_config(**CHANGES)
    whole = train(config, data, tmp_path / "whole", console=quiet())
    part = train(config, data, out, resume=True, console=quiet())
    for file in ("model.safetensors", "optimizer.safetensors"):
        assert (part.checkpoint / file).read_bytes() == (whole.checkpoint / file).read_bytes()


def test_a_signal_before_the_first_step_saves_too(tmp_path: Path):
    data, out = prepare_text(tmp_path), tmp_path / "run"

    class Impatient(type(quiet())):
        def print(self, *objects: object, **options: object) -> None:
            if "step 0 · validation" in str(objects[0]):
                signal.raise_signal(signal.SIGINT)

    with pytest.raises(Interrupted, match="after step 0"):
        train(make_config(), data, out, console=Impatient())
    whole = train(make_config(), data, tmp_path / "whole", console=quiet())
    part = train(make_config(), data, out, resume=True, console=quiet())
    assert (part.checkpoint / "model.safetensors").read_bytes() == (whole.checkpoint / "model.safetensors").read_bytes()
