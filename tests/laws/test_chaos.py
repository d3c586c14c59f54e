"""Law: a run that is killed again and again, at any moment, is the run that was never disturbed."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from langwright.cli.main import main
from langwright.core.errors import UserError
from langwright.core.files import verify_folder
from langwright.train import metrics
from langwright.train.checkpoint import list_checkpoints
from langwright.train.config import load_recipe
from langwright.train.run import train
from tests.unit.train.file_layer import KILLED, file_layer, in_child
from tests.unit.train.tiny import prepare_text, quiet

RECIPE = """
seed = 11
device = "cpu"
threads = 1
[model]
d_model = 16
n_layers = 2
n_heads = 2
dropout = 0.2
[train]
max_steps = 8
batch_size = 4
micro_batch_size = 3
context = 12
lr = 1e-2
dtype = "float32"
schedule = "wsd"
eval_every = 3
log_every = 1
save_every = 1
keep = 2
keep_best = true
"""
KINDS = {
    "in the background": "",
    "in the foreground, two workers": "save_in_background = false\nloader_workers = 2\n",
    "muon, every second step": 'optimiser = "muon"\nsave_every = 2\n',
    "going back from leaps": 'on_bad_step = "rewind"\nspike_norm = 1.06\nspike_window = 3\nsave_every = 2\nlr = 1e-3\n',
}
CLOCK = {"elapsed", "tokens_per_second"}


class Disturbed:
    """Runs of one recipe, and what an undisturbed one leaves."""

    def __init__(self, folder: Path, kind: str):
        self.folder, self.data = folder, folder / "data"
        folder.mkdir(exist_ok=True)
        if not self.data.exists():
            prepare_text(folder)
        keys = [line.split(" = ")[0] for line in KINDS[kind].splitlines()]
        kept = [line for line in RECIPE.splitlines() if line.split(" = ")[0] not in keys]
        text = "\n".join(kept) + "\n" + KINDS[kind]
        self.recipe = folder / f"{kind}.toml"
        self.recipe.write_text(text)
        start = time.monotonic()
        whole = folder / f"{kind}, whole"
        assert in_child(lambda: os._exit(self.run(whole))) == 0
        self.seconds = time.monotonic() - start
        self.expected = self.result_of(whole)

    def words(self, out: Path) -> list[str]:
        return ["train", str(self.recipe), "--data", str(self.data), "--out", str(out), "--resume"]

    def run(self, out: Path) -> int:
        """The verb, in a process of its own whose words nobody reads."""
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.dup2(null, 2)
        return main(self.words(out))

    def result_of(self, out: Path) -> dict[str, Any]:
        """Everything that a run leaves, but for the clock and for when checkpoints were made."""
        last = (out / "last").resolve()
        trainer = json.loads((last / "trainer.json").read_text())
        rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        return {
            "files": {name: (last / name).read_bytes() for name in ("model.safetensors", "optimizer.safetensors")},
            "trainer": {name: value for name, value in trainer.items() if name != "seconds"},
            "rows": [{k: v for k, v in row.items() if k not in CLOCK} for row in rows if row["event"] != "save"],
            "incidents": {path.name: path.read_text() for path in (out / "incidents").glob("*")},
            "checkpoints": [path.name for path in list_checkpoints(out)],
            "hidden": [path.name for path in out.iterdir() if path.name.startswith(".")],
        }

    def check_whole(self, out: Path) -> None:
        """What is seen after a kill, before anybody has tidied up."""
        for folder in list_checkpoints(out):
            verify_folder(folder)
        if (out / "last").is_symlink():
            verify_folder(out / "last")


def disturb(runs: Disturbed, kills: int, seed: int) -> int:
    """Kill ``kills`` runs; returns how many came to their end in between, all as they should."""
    rng, out, done, count = random.Random(seed), runs.folder / "out", 0, 0
    shutil.rmtree(out, ignore_errors=True)
    while count < kills:
        child = os.fork()
        if child == 0:
            os._exit(runs.run(out))
        time.sleep(rng.uniform(0, runs.seconds))
        os.kill(child, signal.SIGKILL)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert code in (0, -signal.SIGKILL)
        runs.check_whole(out)
        if code == 0:
            assert runs.result_of(out) == runs.expected
            shutil.rmtree(out)
            done += 1
        else:
            count += 1
    assert in_child(lambda: os._exit(runs.run(out))) == 0
    assert runs.result_of(out) == runs.expected
    return done + 1


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("chaos")


def test_a_run_killed_eight_times(folder: Path):
    disturb(Disturbed(folder, "going back from leaps"), 8, seed=1)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_run_killed_fifty_times(folder: Path, kind: str):
    """Two hundred kills over the four kinds."""
    disturb(Disturbed(folder, kind), 50, seed=2)


@pytest.mark.slow
def test_a_process_from_the_command_line_killed(folder: Path):
    """The same with processes that start from nothing, killed at times after the first checkpoint."""
    runs, rng, out = Disturbed(folder, "in the background"), random.Random(3), folder / "processes"
    command = [sys.executable, "-m", "langwright.cli.main", *runs.words(out)]
    for _ in range(6):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        had = {path.name for path in list_checkpoints(out)}
        while process.poll() is None and {path.name for path in list_checkpoints(out)} <= had:
            time.sleep(0.005)
        time.sleep(rng.uniform(0, 0.05))
        process.kill()
        process.wait()
        runs.check_whole(out)
    assert subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False).returncode == 0
    assert runs.result_of(out) == runs.expected


def fail_at(runs: Disturbed, nth: int, fault: str) -> None:
    """A whole run under the layer, then one without it: at the end everything is as it should be."""
    out = runs.folder / "failing"
    shutil.rmtree(out, ignore_errors=True)
    if fault == "EIO":
        with file_layer(nth, fault):
            try:
                train(load_recipe(str(runs.recipe)), runs.data, out, console=quiet())
            except UserError as error:
                assert "Input/output error" in str(error)
    else:

        def die() -> None:
            with file_layer(nth, fault):
                runs.run(out)

        assert in_child(die) == KILLED
    runs.check_whole(out)
    assert in_child(lambda: os._exit(runs.run(out))) == 0
    assert runs.result_of(out) == runs.expected, f"{fault} at change {nth}"


@pytest.mark.parametrize("fault", ["kill", "power", "EIO"])
@pytest.mark.parametrize("every", [pytest.param(5, marks=pytest.mark.slow), 97])
def test_a_run_stopped_at_any_change_of_its_files(
    folder: Path, fault: str, every: int, monkeypatch: pytest.MonkeyPatch
):
    """Not only checkpoints: also metrics, incidents and links."""
    monkeypatch.setattr(metrics, "_open_board", lambda *_: None)  # it writes by a thread of its own, whenever it likes
    runs = Disturbed(folder, "going back from leaps")
    assert len(runs.expected["incidents"]) == 2
    with file_layer() as layer:
        train(load_recipe(str(runs.recipe)), runs.data, folder / "counted", console=quiet())
    shutil.rmtree(folder / "counted")
    for nth in range(1 + every // 7, len(layer.log) + 1, every):
        fail_at(runs, nth, fault)
