"""Law: whatever stops the writer of a checkpoint, at whatever change of the file system, a whole state is found then.

Exhaustive: the changes that an undisturbed writer makes are counted, and then it is stopped at every single one.
"""

import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from langwright.core.errors import UserError
from langwright.core.files import sha256, verify_folder
from langwright.data.loader import open_data
from langwright.train.card import RunFacts
from langwright.train.checkpoint import (
    LAST,
    Snapshot,
    clear_leftovers,
    drop_superseded,
    list_checkpoints,
    newest_checkpoint,
    save_checkpoint,
    set_aside,
    step_of,
    take_snapshot,
)
from langwright.train.loop import Score
from langwright.train.pretraining import collect_facts
from tests.unit.train.file_layer import FAULTS, KILLED, file_layer, in_child
from tests.unit.train.tiny import advance, make_config, make_state, prepare_text

TENSORS = ("model.safetensors", "optimizer.safetensors")


@dataclass
class Run:
    """Snapshots of a small run after steps 0 to 4, by step, and the sums of their tensors on disk."""

    facts: RunFacts
    snapshots: list[Snapshot]
    sums: dict[int, list[str]]
    folder: Path

    def save(self, out: Path, step: int) -> None:
        save_checkpoint(out, self.snapshots[step], self.facts)


@pytest.fixture(scope="module")
def run() -> Iterator[Run]:
    memory = Path("/dev/shm")  # a disk would only make flushing slow
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
        yield make_run(Path(folder))


def make_run(folder: Path) -> Run:
    data = open_data(prepare_text(folder))
    config = make_config(train={"keep": 2, "keep_best": True, "max_steps": 9})
    facts, state = collect_facts(config, data), make_state(config, data.train.vocab_size)
    run, whole = Run(facts, [], {}, folder), folder / "whole"
    for step in range(5):
        state.latest = Score(step=step, bpb=4.0 - step, ppl=2.0)
        run.snapshots.append(take_snapshot(state, copied=True))
        run.save(whole, step)
        run.sums[step] = [sha256(whole / f"step-{step:08d}" / name) for name in TENSORS]
        advance(state, config, data.train, 1)
    assert len({tuple(sums) for sums in run.sums.values()}) == 5
    return run


def begin_save(run: Run, out: Path) -> None:
    """Two checkpoints; the third one makes the first go."""
    run.save(out, 0)
    run.save(out, 1)


def begin_replace(run: Run, out: Path) -> None:
    """The step that will be saved is there already."""
    run.save(out, 1)
    run.save(out, 2)


def begin_recovery(run: Run, out: Path) -> None:
    """What a process leaves that is killed between moving a folder aside and putting the new one in its place."""
    begin_replace(run, out)
    shutil.copytree(out / "step-00000002", out / ".step-00000002.0123456789ab.tmp")
    (out / "step-00000002").rename(out / ".step-00000002.0123456789ab.old")


def begin_damaged(run: Run, out: Path) -> None:
    """The newest checkpoint is damaged."""
    begin_replace(run, out)
    (out / "step-00000002" / "trainer.json").write_text("{}")


def recover(run: Run, out: Path) -> None:
    clear_leftovers(out)
    run.save(out, 3)


def go_on_without_the_damaged(run: Run, out: Path) -> None:
    found = newest_checkpoint(out, lambda _: None)
    assert found is not None
    set_aside(out, step_of(found), lambda _: None)
    run.save(out, 2)


SCENARIOS: dict[str, tuple[Callable[[Run, Path], None], Callable[[Run, Path], None], set[int]]] = {
    "a new step": (begin_save, lambda run, out: run.save(out, 2), {1, 2}),
    "a step that is there": (begin_replace, lambda run, out: run.save(out, 2), {2}),
    "recovery": (begin_recovery, recover, {2, 3}),
    "a damaged newest": (begin_damaged, go_on_without_the_damaged, {1, 2}),
    "superseded": (begin_save, lambda _, out: drop_superseded(out, [0]), {0, 1}),
}
"""What is there, what is done under the layer, and the steps one of which must be found after it."""


def points_of(run: Run, name: str) -> tuple[Path, int]:
    """What is there before the scenario, and how many changes it makes."""
    begin, work, _ = SCENARIOS[name]
    base, out = run.folder / f"{name}, before", run.folder / f"{name}, counted"
    if not base.exists():
        base.mkdir()
        begin(run, base)
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(base, out, symlinks=True)
    with file_layer() as layer:
        work(run, out)
    return base, len(layer.log)


def pointed(out: Path) -> Path:
    """Where ``last`` leads; it is a file where no link could be made."""
    last = out / LAST
    return out / (last.readlink() if last.is_symlink() else last.read_text().strip())


def check(run: Run, out: Path, allowed: set[int], *, damaged: set[int]) -> None:
    """A whole checkpoint is found, and nobody sees half of one; then the next save leaves nothing to tidy."""
    clear_leftovers(out)
    for folder in list_checkpoints(out):
        if step_of(folder) not in damaged:
            verify_folder(folder)
            assert [sha256(folder / name) for name in TENSORS] == run.sums[step_of(folder)]
    found = newest_checkpoint(out, lambda _: None)
    assert found is not None
    assert step_of(found) in allowed
    assert pointed(out).is_dir()
    set_aside(out, step_of(found), lambda _: None)
    run.save(out, 4)
    assert pointed(out) == out / "step-00000004"
    assert not [path.name for path in out.iterdir() if path.name.startswith(".")]
    assert len(list_checkpoints(out)) == 2


FAST = {("a new step", "kill"), ("superseded", "power"), ("superseded", "EIO")}


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        pytest.param(name, fault, marks=() if (name, fault) in FAST else pytest.mark.slow)
        for name in SCENARIOS
        for fault in FAULTS
    ],
)
def test_a_writer_stopped_at_any_change_loses_nothing(run: Run, name: str, fault: str):
    _, work, allowed = SCENARIOS[name]
    base, points = points_of(run, name)
    damaged = {2} if name == "a damaged newest" else set()
    for nth in range(1, points + 1):
        out = run.folder / f"{name}, {fault} {nth}"
        shutil.copytree(base, out, symlinks=True)
        if fault in ("kill", "power"):

            def die(out: Path = out, nth: int = nth) -> None:
                with file_layer(nth, fault):
                    work(run, out)

            assert in_child(die) == KILLED, nth
        else:
            with file_layer(nth, fault):
                try:
                    work(run, out)
                except UserError as error:
                    assert ("the disk is full" if fault == "ENOSPC" else "Input/output error") in str(error)
        try:
            check(run, out, allowed, damaged=damaged)
        except BaseException as error:
            error.add_note(f"{name}, {fault} at change {nth} of {points}")
            raise
        shutil.rmtree(out)
