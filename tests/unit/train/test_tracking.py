"""Figures go to a service once each, and nothing that a service does stops a run. The real clients where installed."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from langwright.core.errors import UserError
from langwright.train.run import train
from langwright.train.tracking import Tracker, tracked
from tests.unit.train.tiny import make_config, prepare_text, quiet, told

ROWS = [
    {"event": "step", "step": 1, "loss": 2.0, "lr": 0.1},
    {"event": "sample", "step": 1, "prompt": "a", "text": "b"},
    {"event": "skip", "step": 2, "loss": None, "grad_norm": 3.0},
]


class Ledger:
    """A service that keeps everything, until it has had enough."""

    def __init__(self, room: int = 99):
        self.rows: list[tuple[int, dict[str, float]]] = []
        self.closed: bool | None = None
        self._room = room

    def log(self, figures: Mapping[str, float], step: int) -> None:
        if len(self.rows) == self._room:
            raise ConnectionError("the line is dead")
        self.rows.append((step, dict(figures)))

    def close(self, *, failed: bool) -> None:
        self.closed = failed


def test_every_row_is_sent_once():
    ledger, said = Ledger(), []
    tracker = Tracker(ledger, [], said.append)
    tracker.follow(ROWS[:1])
    tracker.follow(ROWS)
    tracker.follow(ROWS)
    tracker.close(failed=False)
    assert ledger.rows == [(1, {"step/loss": 2.0, "step/lr": 0.1}), (2, {"skip/grad_norm": 3.0})]
    assert ledger.closed is False
    assert not said


def test_what_was_there_before_is_not_sent_again_but_what_was_taken_back_is():
    ledger = Ledger()
    tracker = Tracker(ledger, ROWS[:2], print)
    tracker.follow(ROWS)
    tracker.follow(ROWS[:2])
    tracker.follow([*ROWS[:2], {"event": "step", "step": 2, "loss": 1.0}])
    assert ledger.rows == [(2, {"skip/grad_norm": 3.0}), (2, {"step/loss": 1.0})]


def test_a_service_that_fails_is_told_once_and_left_alone():
    said: list[str] = []
    tracker = Tracker(Ledger(room=0), [], said.append)
    tracker.follow(ROWS)
    tracker.close(failed=False)
    assert said == ["tracking stopped, training goes on: ConnectionError: the line is dead"]


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_what_is_not_installed_is_named_before_training(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UserError, match=f"track = {name}: .*pip install {name}"):
        train(make_config(track=name), prepare_text(tmp_path), tmp_path / "out", console=quiet())


def test_nothing_is_imported_unless_asked(tmp_path: Path):
    before = {"wandb", "mlflow"} & set(sys.modules)
    with tracked(make_config(), tmp_path, [], resumed=False, say=print) as tracker:
        tracker.follow(ROWS)
    assert {"wandb", "mlflow"} & set(sys.modules) == before


@pytest.mark.filterwarnings("ignore")
def test_mlflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    mlflow: Any = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file://{tmp_path / 'mlruns'}")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    console = quiet()
    result = train(make_config(track="mlflow"), prepare_text(tmp_path), tmp_path / "out", console=console)
    assert "tracking stopped" not in told(console)
    client = mlflow.MlflowClient()
    number = (tmp_path / "out" / "mlflow-run.txt").read_text().strip()
    run = client.get_run(number)
    assert run.info.status == "FINISHED"
    assert run.data.params["train.batch_size"] == "4"
    assert run.data.metrics["eval/val_bpb"] == result.val_bpb
    config = make_config(track="mlflow", train={"max_steps": 8})
    train(config, tmp_path / "data", tmp_path / "out", console=quiet(), resume=True)
    assert max(item.step for item in client.get_metric_history(number, "step/loss")) == 8


@pytest.mark.filterwarnings("ignore")
def test_wandb_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    console = quiet()
    train(make_config(track="wandb"), prepare_text(tmp_path), tmp_path / "out", console=console)
    assert "tracking stopped" not in told(console)
    files = list((tmp_path / "out" / "wandb").glob("offline-run-*/run-*.wandb"))
    assert len(files) == 1
    content = files[0].read_bytes()
    assert b"eval/val_bpb" in content
    assert (tmp_path / "out" / "wandb-run.txt").read_text().strip().encode() in content
    assert json.dumps("langwright").encode()[1:-1] in content
