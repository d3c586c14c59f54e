"""The real command under torchrun: killed, told to stop, and continued by another number of processes."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from langwright.core.files import verify_folder
from tests.unit.train.tiny import prepare_text

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("torchrun")]

ROOT = Path(__file__).parents[2]
RECIPE = """
device = "cpu"
threads = 1

[model]
d_model = 16
n_layers = 2
n_heads = 4

[train]
batch_size = 8
context = 12
dtype = "float32"
lr = 1e-3
schedule = "constant"
eval_every = 0
log_every = 1
save_every = 3
keep = 100
"""
FOREVER = 1_000_000
LONGEST = 600
"""Seconds until something is wrong."""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("torchrun")
    (folder / "recipe.toml").write_text(RECIPE)
    return folder / "recipe.toml", prepare_text(folder)


def start(processes: int, recipe: tuple[Path, Path], out: Path, *words: str, steps: int) -> subprocess.Popen[str]:
    """``langwright train``, on more than one process through deploy/torchrun.sh."""
    path, data = recipe
    given = [str(path), "--data", str(data), "--out", str(out), "--train.max-steps", str(steps), *words]
    if processes == 1:
        command = [sys.executable, "-m", "langwright.cli.main", "train", *given, "--resume"]
    else:
        command = ["bash", str(ROOT / "deploy" / "torchrun.sh"), *given]
    found = os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PROCESSES": str(processes),
        "OMP_NUM_THREADS": "1",
    }
    return subprocess.Popen(command, env=found, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def end(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Exit code, standard output and standard error."""
    try:
        out, error = process.communicate(timeout=LONGEST)
    finally:
        if process.poll() is None:
            for each in (process.pid, *workers_of(process).values()):
                os.kill(each, signal.SIGKILL)
    return process.returncode, out, error


def wait_for(there: Callable[[], Any], process: subprocess.Popen[str]) -> Any:
    """Until ``there()`` is."""
    latest = time.monotonic() + LONGEST
    while time.monotonic() < latest and process.poll() is None:
        if found := there():
            return found
        time.sleep(0.1)
    raise AssertionError(end(process))


def steps_done(out: Path) -> int:
    log = out / "metrics.jsonl"
    return log.read_text().count('"event": "step"') if log.exists() else 0


def workers_of(process: subprocess.Popen[str]) -> dict[int, int]:
    """Process id of every rank."""
    found = {}
    for folder in Path("/proc").iterdir():
        try:
            if not folder.name.isdigit() or f"\nPPid:\t{process.pid}\n" not in (folder / "status").read_text():
                continue
            environment = (folder / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        ranks = [each.removeprefix(b"RANK=") for each in environment if each.startswith(b"RANK=")]
        found |= {int(rank): int(folder.name) for rank in ranks}
    return found


@pytest.mark.parametrize("parallel", [["--parallel.kind", "fsdp"], ["--parallel.kind", "ddp"]])
def test_each_number_of_processes_continues_what_another_began(
    parallel: list[str], recipe: tuple[Path, Path], tmp_path: Path
):
    """2, then 4, then 1, against 1 all along."""
    code, told, error = end(start(1, recipe, tmp_path / "alone", "--json", steps=9))
    assert code == 0, error
    expected = json.loads(told.splitlines()[-1])
    for processes, steps in ((2, 3), (4, 6), (1, 9)):
        words = parallel if processes > 1 else []
        code, told, error = end(start(processes, recipe, tmp_path / "run", "--json", *words, steps=steps))
        assert code == 0, error
        assert len(told.splitlines()) == 1, told  # one rank speaks
    assert json.loads(told)["val_bpb"] == pytest.approx(expected["val_bpb"], rel=1e-6)
    weights, wanted = (load_file(tmp_path / name / "last" / "model.safetensors") for name in ("run", "alone"))
    for name, value in wanted.items():
        assert (weights[name] - value).abs().max() < 1e-5, name


@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_a_dead_rank_ends_the_run_and_what_was_committed_stays(kind: str, recipe: tuple[Path, Path], tmp_path: Path):
    process = start(2, recipe, tmp_path, "--parallel.kind", kind, steps=FOREVER)
    wait_for(lambda: (tmp_path / "step-00000006").exists(), process)
    os.kill(workers_of(process)[1], signal.SIGKILL)
    code, _, error = end(process)
    assert code not in (0, -signal.SIGKILL), error
    newest = max(tmp_path.glob("step-*"))
    verify_folder(newest)
    code, _, error = end(start(1, recipe, tmp_path, steps=int(newest.name[5:]) + 2))
    assert code == 0, error
    assert f"continuing after step {int(newest.name[5:])} of" in " ".join(error.split())


@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
@pytest.mark.parametrize("whom", ["torchrun", "rank 1"])
def test_a_signal_stops_all_ranks_at_the_same_step(whom: str, recipe: tuple[Path, Path], tmp_path: Path):
    words = ["--parallel.kind", "fsdp", "--train.save-every", "0"]
    process = start(2, recipe, tmp_path, *words, steps=FOREVER)
    wait_for(lambda: steps_done(tmp_path) > 3, process)
    os.kill(process.pid if whom == "torchrun" else workers_of(process)[1], signal.SIGTERM)
    code, _, error = end(process)
    assert code != 0
    [saved] = tmp_path.glob("step-*")
    verify_folder(saved)
    assert f"after step {int(saved.name[5:])}; saved in" in " ".join(error.split())
    assert "internal error" not in error  # torchrun prints a traceback of its own
    assert steps_done(tmp_path) == int(saved.name[5:])


def test_what_does_not_fit_is_told_once_before_work_starts(recipe: tuple[Path, Path], tmp_path: Path):
    code, _, error = end(start(2, recipe, tmp_path / "run", "--train.batch-size", "9", steps=3))
    assert code != 0
    assert error.count("langwright: train.batch_size (9) is not a multiple of the 2 shares") == 1
    assert not (tmp_path / "run").exists()
