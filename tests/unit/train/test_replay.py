"""A step done again is the step that was done."""

import contextlib
import json
import math
import shutil
from pathlib import Path

import pytest

from langwright.cli.main import main
from langwright.core.errors import UserError
from langwright.data.loader import IGNORED, batch_at, open_data
from langwright.tokenizer.load import load_tokenizer
from langwright.train.batches import Batches
from langwright.train.config import TrainConfig
from langwright.train.faults import read_incidents
from langwright.train.replay import replay
from langwright.train.run import train
from tests.unit.train.tiny import CONTEXT, DROPOUT, make_config, prepare_text, quiet

SETTINGS = {"max_steps": 12, "save_every": 5, "keep": 9, "log_every": 1, "eval_every": 4, "micro_batch_size": 3}


def nothing(_: str) -> None:
    pass


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare_text(tmp_path_factory.mktemp("text"))


def make_run(out: Path, data: Path, **changes: object) -> TrainConfig:
    config = make_config(model=DROPOUT, train=SETTINGS | changes, seed=4)
    train(config, data, out, console=quiet())
    return config


@pytest.fixture(scope="module")
def out(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run")
    make_run(out, data)
    return out


@pytest.mark.parametrize(
    ("step", "start"), [(1, None), (4, None), (6, "step-00000005"), (10, "step-00000005"), (12, "step-00000010")]
)
def test_figures_are_those_of_the_log(out: Path, data: Path, step: int, start: str | None):
    """Bit for bit, with dropout and micro-batches, from a checkpoint and from the beginning."""
    before = sorted((path.name, path.stat().st_mtime_ns) for path in out.rglob("*"))
    found = replay(out, step, nothing)
    assert (found.start and found.start.name) == start
    assert found.logged is not None
    assert (found.loss, found.grad_norm) == (found.logged["loss"], found.logged["grad_norm"])
    assert found.is_as_logged is True
    for norms in (found.group_norms, found.parameter_norms):
        assert math.hypot(*norms.values()) == pytest.approx(found.grad_norm, rel=1e-5)
    assert sorted((path.name, path.stat().st_mtime_ns) for path in out.rglob("*")) == before


def test_rows_are_those_of_the_batch(out: Path, data: Path):
    found = replay(out, 7, nothing)
    batch = batch_at(open_data(data).train, seed=4, step=6, batch_size=4, context=CONTEXT)
    tokenizer = load_tokenizer(data)
    assert [row.loss for row in found.rows] == sorted((row.loss for row in found.rows), reverse=True)
    assert {row.row: row.text for row in found.rows} == {
        number: tokenizer.decode(ids) for number, ids in enumerate(batch.ids.tolist())
    }
    assert sum(row.loss for row in found.rows) / 4 == pytest.approx(found.loss, rel=0.2)  # which has dropout in it


def test_without_dropout_rows_are_parts_of_the_loss(data: Path, tmp_path: Path):
    config = make_config(train=SETTINGS)
    train(config, data, tmp_path, console=quiet())
    found = replay(tmp_path, 8, nothing)
    assert sum(row.loss for row in found.rows) / 4 == pytest.approx(found.loss, rel=1e-6)


@pytest.mark.parametrize("policy", ["skip", "rewind"])
def test_a_step_that_was_not_taken_comes_back(data: Path, tmp_path: Path, policy: str):
    """Leaps that happen by themselves, because hardly anything is allowed."""
    with contextlib.suppress(UserError):  # three in a row end the run, which may be replayed all the same
        make_run(tmp_path, data, on_bad_step=policy, spike_norm=1.05, spike_window=3, save_every=1, lr=1e-3)
    incidents = read_incidents(tmp_path)
    assert incidents
    for incident in incidents:
        found = replay(tmp_path, incident.step, nothing)
        assert (found.loss, found.grad_norm) == (incident.loss, incident.grad_norm)
        assert found.is_as_logged is True


def test_a_figure_that_differs_is_told(out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    shutil.copytree(out, tmp_path / "run", symlinks=True)
    log = tmp_path / "run" / "metrics.jsonl"
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    for row in rows:
        if row["event"] == "step" and row["step"] == 3:
            row["loss"] = math.nextafter(row["loss"], 9.0)
    log.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert replay(tmp_path / "run", 3, nothing).is_as_logged is False
    assert main(["replay", str(tmp_path / "run"), "--step", "3"]) == 0
    assert "NOT what the log says" in capsys.readouterr().out


def test_the_verb(out: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["replay", str(out), "--step", "9", "--rows", "2"]) == 0
    text = capsys.readouterr().out
    assert "(as logged, bit for bit)" in text
    assert text.count("\nrow ") == 2
    moved = shutil.copytree(data, tmp_path / "moved")
    assert main(["replay", str(out), "--step", "9", "--rows", "3", "--json", "--data", str(moved)]) == 0
    values = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert values["as_logged"] is True
    assert len(values["rows"]) == 3
    assert values["rows"][0]["place"].keys() == {"start", "document", "offset"}


@pytest.mark.parametrize(
    ("step", "message"), [(0, "step"), (13, "has no step 13; its newest checkpoint is of step 12")]
)
def test_a_step_that_the_run_has_not(out: Path, step: int, message: str, capsys: pytest.CaptureFixture[str]):
    assert main(["replay", str(out), "--step", str(step)]) == 2
    assert message in capsys.readouterr().err


def test_other_data_and_no_run_are_refused(out: Path, tmp_path: Path):
    other = prepare_text(tmp_path, words=500)
    with pytest.raises(UserError, match="not the data that the run learned from"):
        replay(out, 3, nothing, data_dir=other)
    with pytest.raises(UserError, match="the data of the run are not there any more"):
        replay(out, 3, nothing, data_dir=tmp_path / "gone")
    with pytest.raises(UserError, match="holds no checkpoint of a run"):
        replay(tmp_path, 3, nothing)


CHANGED = {
    "masked": ("bert", {"family": "langwright", "causal": False}, {}),
    "packed and rearranged": ("fim", {}, {"packing": "documents", "fim_rate": 0.5}),
}


@pytest.mark.parametrize("name", CHANGED)
def test_changed_batches_are_replayed_too(name: str, tmp_path: Path):
    """With their own objective; a row's loss is over what is predicted in it, and these give the batch's mean."""
    special, model, settings = CHANGED[name]
    data = prepare_text(tmp_path, words=30, documents=12, tokenizer="train", vocab_size=290, special_tokens=special)
    config = make_config(model=model, train=SETTINGS | {"context": 40} | settings)
    train(config, data, tmp_path / "run", console=quiet())
    found = replay(tmp_path / "run", 7, nothing)
    assert found.is_as_logged is True
    batch = Batches.of(config, open_data(data))(6)
    counts = (batch.targets != IGNORED).sum(1)
    assert counts.min() < 40 or name != "masked"
    mean = sum(row.loss * int(counts[row.row]) for row in found.rows) / int(counts.sum())
    assert mean == pytest.approx(found.loss, rel=1e-5)
