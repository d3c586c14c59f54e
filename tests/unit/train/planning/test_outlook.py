"""What was planned stands beside what came, in every checkpoint, over all sessions of a run."""

import json
import signal
from pathlib import Path

import pytest

from langwright.core.errors import UserError
from langwright.core.json_text import read_json_object
from langwright.train.interrupt import Interrupted
from langwright.train.planning.outlook import Actual, Outlook, Predicted, recall
from langwright.train.run import train
from langwright.train.sessions import SESSIONS
from tests.unit.train.tiny import make_config, prepare_text, quiet


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare_text(tmp_path_factory.mktemp("text"))


def sessions(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / SESSIONS).read_text(encoding="utf-8").splitlines()]


def test_a_checkpoint_tells_what_was_planned_and_what_came(data: Path, tmp_path: Path):
    result = train(make_config(), data, tmp_path, console=quiet())
    outlook = Outlook.parse(read_json_object(result.checkpoint / "langwright.json")["plan"], "plan")
    assert outlook.predicted.tokens == outlook.actual.tokens == 6 * 4 * 12
    assert outlook.actual.steps == 6
    assert outlook.predicted.peak_memory_bytes == sum(outlook.predicted.memory.values())
    assert outlook.predicted.training_seconds is not None
    assert outlook.actual.training_seconds > 0
    assert outlook.actual.peak_memory_bytes
    begin, end = sessions(tmp_path)
    assert (begin["event"], begin["step"], end["event"], end["step"]) == ("begin", 0, "end", 6)
    assert end["reason"] == "finished"
    assert begin["machine"]["cores"]
    assert begin["process"] == end["process"]


def test_a_continued_run_keeps_its_plan_and_adds_a_session(data: Path, tmp_path: Path):
    def stop_here(*_: object) -> str:
        signal.raise_signal(signal.SIGTERM)
        return ""

    config = make_config(train={"sample_every": 4})
    with pytest.raises(Interrupted):
        train(config, data, tmp_path, sampler=stop_here, console=quiet())
    first = recall(tmp_path / "last")
    assert first is not None
    assert first.actual.steps == 4
    train(config, data, tmp_path, console=quiet(), resume=True)
    whole = recall(tmp_path / "last")
    assert whole is not None
    assert whole.predicted == first.predicted
    assert whole.actual.steps == 6
    assert [(row["event"], row["step"]) for row in sessions(tmp_path)] == [
        ("begin", 0),
        ("end", 4),
        ("begin", 4),
        ("end", 6),
    ]
    assert [row["reason"] for row in sessions(tmp_path) if row["event"] == "end"] == ["SIGTERM", "finished"]


def test_a_run_that_fails_says_why(data: Path, tmp_path: Path):
    settings = {"lr": 1e30, "optimiser": "sgd", "grad_clip": 0.0, "weight_decay": 0.0, "max_steps": 50}
    with pytest.raises(UserError):
        train(make_config(train=settings), data, tmp_path, console=quiet())
    assert sessions(tmp_path)[-1]["reason"].startswith("BadStep: ")


def test_what_cannot_fit_is_refused_before_anything_is_written(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("langwright.train.planning.advice.available_memory", lambda _: 1e6)
    with pytest.raises(UserError, match="add --force to try"):
        train(make_config(), data, tmp_path / "out", console=quiet())
    assert not (tmp_path / "out").exists()
    assert train(make_config(), data, tmp_path / "out", console=quiet(), force=True).steps == 6


def test_time_is_told_from_the_first_steps():
    predicted = Predicted(parameters=1, flops=1.0, tokens=1, peak_memory_bytes=1, memory={})
    outlook = Outlook(predicted=predicted).timed([5.0, 1.0, 1.2], 101)
    assert outlook.predicted.training_seconds == pytest.approx(5 + 100 * 1.1)
    assert outlook.actual == Actual()


def test_an_older_checkpoint_has_no_plan(tmp_path: Path):
    assert recall(None) is None
    assert recall(tmp_path) is None
    (tmp_path / "langwright.json").write_text('{"plan": {"predicted": 7}}')
    assert recall(tmp_path) is None
