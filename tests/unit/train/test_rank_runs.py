"""Whole runs on several ranks: the run of one process, its files, and what stops it."""

import json
import os
import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist
from safetensors.torch import load_file

from langwright.core.files import verify_folder
from langwright.train.config import TrainConfig
from langwright.train.interrupt import Interrupted
from langwright.train.loop import StepResult
from langwright.train.ranks import SharedError
from langwright.train.run import train
from langwright.train.session import Session, TrainResult
from tests.unit.train.on_ranks import on_ranks
from tests.unit.train.tiny import make_config, prepare_text, quiet, told

pytestmark = pytest.mark.xdist_group("rank runs")  # what the ranks leave is made once

SHAPE = {"d_model": 16, "n_layers": 2, "n_heads": 4, "n_kv_heads": 4}
LOOP = {
    "batch_size": 8,
    "max_steps": 6,
    "save_every": 2,
    "eval_every": 3,
    "lr": 1e-3,
    "schedule": "constant",
    "log_every": 1,
}


def config_of(train: dict[str, Any] | None = None, **parallel: Any) -> TrainConfig:
    return make_config(SHAPE, LOOP | (train or {}), parallel=parallel)


@contextmanager
def rank_is_told_to_stop(rank: int, step: int) -> Iterator[None]:
    """One rank gets a SIGTERM after a step."""
    with pytest.MonkeyPatch.context() as patch:
        after = Session.after

        def signalled(self: Session, result: StepResult) -> None:
            after(self, result)
            if result.step == step and dist.get_rank() == rank:
                os.kill(os.getpid(), signal.SIGTERM)

        patch.setattr(Session, "after", signalled)
        yield


@contextmanager
def small_files_only(rank: int) -> Iterator[None]:
    """One rank cannot write files of more than a few bytes, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    if dist.get_rank() == rank:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def runs(data_folder: str, out_folder: str) -> None:
    """What every rank does for the tests with ``runs``; the group is made once, and used by all runs."""
    data, out = Path(data_folder), Path(out_folder)
    dist.init_process_group("gloo")
    first = dist.get_rank() == 0

    train(config_of(kind="ddp"), data, out / "ddp", console=quiet())
    train(config_of({"max_steps": 4}, kind="fsdp"), data, out / "fsdp", console=quiet())
    told_by = quiet()
    train(config_of(kind="fsdp"), data, out / "fsdp", resume=True, console=told_by)
    assert ("continuing after step 4" in told(told_by)) == first
    train(config_of(kind="fsdp", whole_checkpoints=False), data, out / "shares", console=quiet())

    for kind in ("ddp", "fsdp"):
        config = config_of({"save_every": 0}, kind=kind)
        stopped = pytest.raises(Interrupted, match="stopped by SIGTERM after step 2; saved in .*step-00000002")
        with rank_is_told_to_stop(1, 2), stopped:
            train(config, data, out / f"stopped {kind}", console=quiet())

    with pytest.raises(SharedError, match=r"train\.batch_size \(9\) is not a multiple of the 2 shares"):
        train(config_of({"batch_size": 9}), data, out / "odd", console=quiet())
    with pytest.raises(SharedError, match="already holds checkpoints"):
        train(config_of(), data, out / "ddp", console=quiet())
    with pytest.raises(SharedError, match="another architecture"):
        train(make_config(SHAPE | {"d_model": 32}, LOOP), data, out / "ddp", resume=True, console=quiet())
    for rank, background in ((0, True), (1, True), (1, False)):
        config, folder = config_of({"save_in_background": background}, kind="fsdp"), out / f"full {rank} {background}"
        with small_files_only(rank), pytest.raises(SharedError, match="cannot be written"):
            train(config, data, folder, console=quiet())
        assert not list(folder.glob("*step-*")), "a rank could not write"
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("runs")
    data = prepare_text(folder)
    on_ranks(2, "tests.unit.train.test_rank_runs:runs", data, folder)
    return data, folder


@pytest.fixture(scope="module")
def alone(folders: tuple[Path, Path]) -> TrainResult:
    data, out = folders
    return train(config_of(), data, out / "alone", console=quiet())


def rows_of(out: Path) -> dict[tuple[str, int], dict[str, Any]]:
    """Of the log, by event and step; there is one of each."""
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    found = {(row["event"], row["step"]): row for row in rows}
    assert len(found) == len(rows)
    return found


@pytest.mark.parametrize("name", ["ddp", "fsdp", "shares"])
def test_two_ranks_leave_what_one_process_leaves(name: str, folders: tuple[Path, Path], alone: TrainResult):
    """The files of the last checkpoint and the rows of the log, the latter also across a resume."""
    _, out = folders
    last, expected = out / name / "last", out / "alone" / "last"
    verify_folder(last)
    weights, wanted = load_file(last / "model.safetensors"), load_file(expected / "model.safetensors")
    assert weights.keys() == wanted.keys()
    for key, value in wanted.items():
        assert (weights[key] - value).abs().max() < 1e-5, key
    rows, wanted_rows = rows_of(out / name), rows_of(out / "alone")
    assert wanted_rows.keys() <= rows.keys()
    for place, want in wanted_rows.items():
        for key in ("loss", "grad_norm", "val_bpb", "tokens", "lr"):
            assert rows[place].get(key, 0) == pytest.approx(want.get(key, 0), rel=1e-4), (place, key)
    assert (out / name / "step-00000004" / "model.safetensors").exists() == (name != "shares")


@pytest.mark.parametrize("name", ["fsdp", "shares", "stopped fsdp", "stopped ddp"])
def test_one_process_continues_what_two_ranks_began(
    name: str, folders: tuple[Path, Path], alone: TrainResult, tmp_path: Path
):
    """From shares, with the state of the optimiser; from a signal as well."""
    data, out = folders
    path = out / name
    if not name.startswith("stopped"):
        os.rename(path / "step-00000006", tmp_path / "newest")  # the checkpoint of step 4 is the newest now
    found = train(config_of(), data, path, resume=True, console=quiet())
    assert found.val_bpb == pytest.approx(alone.val_bpb, rel=1e-5)
    weights, wanted = (load_file(each / "model.safetensors") for each in (found.checkpoint, alone.checkpoint))
    for key, value in wanted.items():
        assert (weights[key] - value).abs().max() < 1e-5, key
    assert not (found.checkpoint / "shards").exists()


def test_nothing_is_left_of_a_run_that_was_refused(folders: tuple[Path, Path]):
    assert not (folders[1] / "odd").exists()
