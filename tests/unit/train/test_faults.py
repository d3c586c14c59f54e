"""Steps that must not be taken: found, written down, and skipped, gone back from, or stopped at."""

import json
import math
import re
import signal
from pathlib import Path

import pytest

from langwright.core.errors import UserError
from langwright.data.loader import batch_at, open_data
from langwright.train import loop
from langwright.train.checkpoint import list_checkpoints
from langwright.train.compute import ComputeModel
from langwright.train.config import LoopSettings, TrainConfig
from langwright.train.faults import Incident, find_fault, read_incident, read_incidents, remember
from langwright.train.interrupt import Interrupted
from langwright.train.loop import step_seed
from langwright.train.run import train
from tests.unit.train.tiny import CONTEXT, DROPOUT, make_config, prepare_text, quiet, told

TENSORS = ("model.safetensors", "optimizer.safetensors")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare_text(tmp_path_factory.mktemp("text"))


def loop_settings(**changes: object) -> LoopSettings:
    return make_config(train=changes).train


def settings(policy: str, **changes: object) -> TrainConfig:
    values = {"max_steps": 9, "save_every": 2, "eval_every": 3, "keep": 9, "log_every": 1, "on_bad_step": policy}
    return make_config(model=DROPOUT, train=values | changes, seed=3)


def spoil(monkeypatch: pytest.MonkeyPatch, *bad: bytes) -> None:
    """Make the loss of these batches infinite, whatever comes before them."""
    real = loop.accumulate

    def accumulate(compute: ComputeModel, batch, *rest):
        loss = real(compute, batch, *rest)
        return math.inf if loss is not None and batch.ids.tobytes() in bad else loss

    monkeypatch.setattr(loop, "accumulate", accumulate)


def batches_of(data: Path, config: TrainConfig, *numbers: int) -> list[bytes]:
    """The ids of steps, counted from 1."""
    shards = open_data(data).train
    return [
        batch_at(shards, seed=config.seed, step=n - 1, batch_size=4, context=CONTEXT).ids.tobytes() for n in numbers
    ]


def same(one: Path, other: Path) -> bool:
    return all((one / name).read_bytes() == (other / name).read_bytes() for name in TENSORS)


# find_fault


@pytest.mark.parametrize(("loss", "norm"), [(math.nan, 1.0), (math.inf, 1.0), (1.0, math.nan), (1.0, math.inf)])
def test_what_is_not_finite_is_a_fault_at_once(loss: float, norm: float):
    assert "loss" in (find_fault(loss, norm, (), loop_settings()) or "")


def test_nothing_leaps_by_default():
    recent = ((2.0, 1.0),) * 100
    assert find_fault(1e9, 1e9, recent, loop_settings()) is None
    assert remember(recent, 2.0, 1.0, loop_settings()) == ()


def test_a_leap_is_measured_by_the_median():
    rules = loop_settings(spike_norm=3.0, spike_loss=0.5, spike_window=4)
    recent = ((2.0, 1.0), (2.1, 1.2), (9.0, 50.0), (1.9, 0.8))  # medians 2.05 and 1.1, whatever one outlier says
    assert find_fault(2.55, 3.3, recent, rules) is None
    assert "the loss is 0.51 nats over the median of 4 steps" in (find_fault(2.56, 1.0, recent, rules) or "")
    assert "3.1 times the median of 4 steps" in (find_fault(2.0, 3.4, recent, rules) or "")
    assert find_fault(99.0, 99.0, recent[:3], rules) is None  # too few to tell


def test_only_the_window_is_remembered():
    rules, recent = loop_settings(spike_norm=3.0, spike_window=3), ()
    for number in range(5):
        recent = remember(recent, float(number), 1.0, rules)
    assert recent == ((2.0, 1.0), (3.0, 1.0), (4.0, 1.0))


class Impatient(type(quiet())):
    """A console that presses Ctrl-C once, when the first step of its session is told."""

    pressed = False

    def print(self, *objects: object, **options: object) -> None:
        if not self.pressed and re.match(r"step \d+/", str(objects[0] if objects else "")):
            self.pressed = True
            signal.raise_signal(signal.SIGINT)


# Policies


def test_skip_leaves_the_step_out_and_keeps_its_batch(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    config = settings("skip")
    spoil(monkeypatch, *batches_of(data, config, 4))
    result = train(config, data, tmp_path, console=quiet())
    incident = read_incident(tmp_path / "incidents" / "step-00000004.json")
    batch = batch_at(open_data(data).train, seed=3, step=3, batch_size=4, context=CONTEXT)
    assert (incident.step, incident.policy, incident.loss) == (4, "skip", None)
    assert math.isfinite(incident.grad_norm or math.nan)
    assert incident.step_seed == step_seed(3, 3)
    assert [list(row.ids) for row in incident.rows] == batch.ids.tolist()
    assert [list(row.targets) for row in incident.rows] == batch.targets.tolist()
    stream, documents = open_data(data).train.tokens, open_data(data).train.documents
    for row in incident.rows:
        assert stream[row.start : row.start + CONTEXT].tolist() == list(row.ids)
        assert int(documents[row.document]) + row.offset == row.start
    assert incident.config == config.replace(threads=1).model_dump(mode="json")
    assert result.steps == 9
    assert [row["step"] for row in result.history if row["event"] == "skip"] == [4]


def test_stop_saves_the_state_before_the_step(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    config = settings("stop")
    with monkeypatch.context() as patch:
        spoil(patch, *batches_of(data, config, 4))
        with pytest.raises(UserError, match=r"step 4 could not be taken .*is stop; the state before it is in"):
            train(config, data, tmp_path / "stopped", console=quiet())
    assert list_checkpoints(tmp_path / "stopped")[-1].name == "step-00000003"
    whole = train(config, data, tmp_path / "whole", console=quiet())  # nothing is wrong with the step any more
    rest = train(config, data, tmp_path / "stopped", resume=True, console=quiet())
    assert same(rest.checkpoint, whole.checkpoint)


def test_rewind_goes_back_and_passes_over(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """As if the step had never been asked for: the result is that of a run that passes it over from the start."""
    config, console = settings("rewind"), quiet()
    spoil(monkeypatch, *batches_of(data, config, 6))
    result = train(config, data, tmp_path / "one", console=console)
    assert "went back to step-00000004; the data of step 6 will be passed over" in told(console)
    [incident] = read_incidents(tmp_path / "one")
    assert (incident.went_back_to, incident.passed_over) == ("step-00000004", (5,))
    trainer = json.loads((result.checkpoint / "trainer.json").read_text())
    assert trainer["passed_over"] == [5]
    assert [(row["event"], row["step"]) for row in result.history if row["event"] == "step"] == [
        ("step", step) for step in (1, 2, 3, 4, 5, 7, 8, 9)
    ]
    other = train(settings("skip"), data, tmp_path / "other", console=quiet())
    assert same(result.checkpoint, other.checkpoint)  # one bad step: both policies leave out exactly that one


def test_rewind_passes_over_the_steps_before_as_well(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    config = settings("rewind", pass_over=3)
    spoil(monkeypatch, *batches_of(data, config, 6))
    result = train(config, data, tmp_path, console=quiet())
    [incident] = read_incidents(tmp_path)
    assert incident.went_back_to == "step-00000002"
    assert incident.passed_over == (3, 4, 5)
    assert [row["step"] for row in result.history if row["event"] == "step"] == [1, 2, 3, 7, 8, 9]


def test_rewind_that_does_not_help_ends(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    config = settings("rewind")
    spoil(monkeypatch, *batches_of(data, config, *range(4, 10)))
    with pytest.raises(UserError, match="going back 3 times did not help"):
        train(config, data, tmp_path, console=quiet())
    assert len(read_incidents(tmp_path)) == 4


@pytest.mark.parametrize("policy", ["skip", "rewind"])
def test_an_interrupted_run_with_bad_steps_is_the_uninterrupted_one(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, policy: str
):
    """Stopped at every step in turn, before and after two bad ones."""
    config = settings(policy, spike_norm=50.0, spike_window=3)
    spoil(monkeypatch, *batches_of(data, config, 4, 7))
    whole = train(config, data, tmp_path / "whole", console=quiet())

    out, stops = tmp_path / "parts", 0
    while True:
        try:
            part = train(config, data, out, resume=stops > 0, console=Impatient())
        except Interrupted:
            stops += 1
            assert stops < 40
            continue
        break
    assert stops >= 6
    assert same(part.checkpoint, whole.checkpoint)
    rows = [[row for row in r.history if row["event"] in ("step", "skip", "eval")] for r in (part, whole)]
    clock = {"elapsed", "tokens_per_second"}
    left, right = ([{k: v for k, v in row.items() if k not in clock} for row in each] for each in rows)
    assert [(row["event"], row["step"]) for row in left] == [(row["event"], row["step"]) for row in right]
    assert left == right


def test_a_damaged_incident_is_named(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    config = settings("rewind")
    spoil(monkeypatch, *batches_of(data, config, 4))
    train(config, data, tmp_path, console=quiet())
    (tmp_path / "incidents" / "step-00000004.json").write_text("{")
    with pytest.raises(UserError, match=r"step-00000004\.json"):
        train(config, data, tmp_path, resume=True, console=quiet())


def test_incidents_have_a_form(tmp_path: Path):
    path = tmp_path / "one.json"
    path.write_text('{"step": 1}')
    with pytest.raises(UserError, match="fault"):
        read_incident(path)
    assert Incident.model_fields.keys() >= {"rows", "step_seed", "recent", "passed_over"}
