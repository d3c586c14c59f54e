"""Who writes checkpoints, when, and which stay."""

import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from langwright.core.errors import UserError
from langwright.core.files import verify_folder
from langwright.data.loader import PreparedData, open_data
from langwright.model.model import Model
from langwright.train import saving
from langwright.train.card import RunFacts
from langwright.train.checkpoint import Snapshot, list_checkpoints, load_state, save_checkpoint
from langwright.train.config import TrainConfig
from langwright.train.loop import TrainState
from langwright.train.pretraining import collect_facts
from langwright.train.retention import best_step, to_delete
from langwright.train.run import train
from langwright.train.saving import Saver
from tests.unit.train.tiny import advance, assert_same_tensors, make_config, make_state, prepare_text, quiet, tensors_of


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> PreparedData:
    return open_data(prepare_text(tmp_path_factory.mktemp("text")))


CONFIG = make_config(train={"max_steps": 9, "keep": 9})


@pytest.fixture
def facts(data: PreparedData) -> RunFacts:
    return collect_facts(CONFIG, data)


@pytest.fixture
def state(data: PreparedData) -> TrainState:
    state = make_state(CONFIG, data.train.vocab_size)
    advance(state, CONFIG, data.train, 2)
    return state


class Slow:
    """Stands before `save_checkpoint`: waits for ``go``, and counts who is inside."""

    def __init__(self) -> None:
        self.go, self.entered = threading.Event(), threading.Event()
        self.inside, self.most = 0, 0

    def __call__(self, out: Path, snapshot: Snapshot, facts: RunFacts, *, prune: bool = True) -> Path:
        self.inside += 1
        self.most = max(self.most, self.inside)
        self.entered.set()
        assert self.go.wait(60)
        try:
            return save_checkpoint(out, snapshot, facts, prune=prune)
        finally:
            self.inside -= 1


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> Slow:
    slow = Slow()
    monkeypatch.setattr(saving, "save_checkpoint", slow)
    return slow


def test_what_is_saved_is_the_state_when_saving_began(
    data: PreparedData, facts: RunFacts, state: TrainState, slow: Slow, tmp_path: Path
):
    with Saver(tmp_path, facts, background=True) as saver:
        saver.begin(state)
        before = tensors_of(state)
        advance(state, CONFIG, data.train, 2)
        assert saver.committed(wait=False) == []
        assert list_checkpoints(tmp_path) == []
        slow.go.set()
        assert saver.committed(wait=True) == [tmp_path / "step-00000002"]
    assert any(not torch.equal(value, before[name]) for name, value in tensors_of(state).items())
    loaded = make_state(CONFIG, data.train.vocab_size)
    load_state(tmp_path / "step-00000002", loaded)
    assert loaded.step == 2
    for name, value in tensors_of(loaded).items():
        assert torch.equal(value, before[name]), name


def test_the_same_bytes_whoever_writes(facts: RunFacts, state: TrainState, tmp_path: Path):
    for background in (False, True):
        with Saver(tmp_path / str(background), facts, background=background) as saver:
            (tmp_path / str(background)).mkdir()
            saver.begin(state)
    one, other = (tmp_path / str(background) / "step-00000002" for background in (False, True))
    assert sorted(path.name for path in one.iterdir()) == sorted(path.name for path in other.iterdir())
    for path in one.iterdir():
        assert path.read_bytes() == (other / path.name).read_bytes(), path.name


def test_one_write_at_a_time(data: PreparedData, facts: RunFacts, state: TrainState, slow: Slow, tmp_path: Path):
    """A second save waits for the first: memory holds one copy, the disk one unfinished folder."""
    with Saver(tmp_path, facts, background=True) as saver:
        saver.begin(state)
        assert slow.entered.wait(60)
        advance(state, CONFIG, data.train, 1)
        timer = threading.Timer(0.2, slow.go.set)
        timer.start()
        saver.begin(state)
        assert timer.finished.wait(0)  # it did not begin before the first was let go
        assert [path.name for path in saver.committed(wait=True)] == ["step-00000002", "step-00000003"]
    assert slow.most == 1


def test_what_was_committed_meanwhile_is_not_forgotten(facts: RunFacts, state: TrainState, slow: Slow, tmp_path: Path):
    """Asking while a write goes on must not lose its answer."""
    with Saver(tmp_path, facts, background=True) as saver:
        saver.begin(state)
        assert slow.entered.wait(60)
        assert saver.committed(wait=False) == []
        slow.go.set()
        assert saver.committed(wait=True) == [tmp_path / "step-00000002"]
        assert saver.committed(wait=True) == []


@pytest.mark.parametrize("ask", ["begin", "committed", "exit"])
def test_a_failed_write_is_raised_by_the_next_call(
    facts: RunFacts, state: TrainState, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, ask: str
):
    def full(*_: object, **__: object) -> Path:
        raise UserError("the disk is full")

    monkeypatch.setattr(saving, "save_checkpoint", full)
    calls: dict[str, Callable[[Saver], object]] = {
        "begin": lambda saver: saver.begin(state),
        "committed": lambda saver: saver.committed(wait=True),
        "exit": lambda saver: None,
    }

    def save() -> None:
        with Saver(tmp_path, facts, background=True) as saver:
            saver.begin(state)
            calls[ask](saver)

    with pytest.raises(UserError, match="the disk is full"):
        save()


def test_a_failed_write_does_not_hide_another_error(
    facts: RunFacts, state: TrainState, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    def full(*_: object, **__: object) -> Path:
        raise UserError("the disk is full")

    monkeypatch.setattr(saving, "save_checkpoint", full)
    said: list[str] = []

    def save() -> None:
        with Saver(tmp_path, facts, background=True, say=said.append) as saver:
            saver.begin(state)
            raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        save()
    assert said == ["the disk is full"]


def test_a_write_that_fails_in_the_background_stops_the_run(
    data: PreparedData, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    def full(out: Path, snapshot: Snapshot, facts: RunFacts, *, prune: bool = True) -> Path:
        if snapshot.state.step == 4:
            raise UserError("the disk is full")
        return save_checkpoint(out, snapshot, facts, prune=prune)

    monkeypatch.setattr(saving, "save_checkpoint", full)
    with pytest.raises(UserError, match="the disk is full"):
        train(CONFIG.replace(train=CONFIG.train.replace(save_every=2)), data.folder, tmp_path, console=quiet())
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-00000002"]
    verify_folder(tmp_path / "last")


def test_frozen_parameters_are_saved_and_loaded(data: PreparedData, tmp_path: Path):
    """What asks for no gradient (an adapter's base) has no state in the optimiser, before and after."""
    states = []
    for _ in range(2):
        state = make_state(CONFIG, data.train.vocab_size)
        frozen = state.model.get_parameter("backbone.layers.0.mlp.up_proj.weight").requires_grad_(False)
        for group in state.optimiser.param_groups:
            group["params"] = [each for each in group["params"] if each is not frozen]
        states.append(state)
    advance(states[0], CONFIG, data.train, 3)
    with Saver(tmp_path, collect_facts(CONFIG, data), background=True) as saver:
        saver.begin(states[0])
    load_state(tmp_path / "step-00000003", states[1])
    assert_same_tensors(*states)
    for state in states:
        advance(state, CONFIG, data.train, 2)
    assert_same_tensors(*states)


def settings_of(**changes: object) -> TrainConfig:
    return make_config(train=changes)


@pytest.mark.parametrize(
    ("changes", "gone"),
    [
        ({"keep": 9}, []),
        ({"keep": 1}, [10, 20, 30, 40]),
        ({"keep": 2}, [10, 20, 30]),
        ({"keep": 1, "keep_every": 20}, [10, 30]),
        ({"keep": 1, "keep_best": True}, [10, 30, 40]),
        ({"keep": 2, "keep_every": 30, "keep_best": True}, [10]),
    ],
)
def test_retention(changes: dict, gone: list[int]):
    scores = {10: None, 20: 1.5, 30: 1.6, 40: 1.5, 50: None}
    assert to_delete(scores, settings_of(**changes).train) == gone


def test_the_best_is_the_first_of_equals():
    assert best_step({1: None, 2: 2.0, 3: 1.0, 4: 1.0}) == 3
    assert best_step({1: None}) is None


def test_the_best_checkpoint_stays_and_is_named(data: PreparedData, tmp_path: Path):
    """A model that is spoilt after step 4 was best before."""

    def spoil(model: Model, _: str) -> str:
        with torch.no_grad():
            model.get_parameter("backbone.embed.tokens.weight").neg_()
        return ""

    settings = {"max_steps": 7, "save_every": 1, "eval_every": 1, "keep": 1, "keep_best": True, "sample_every": 4}
    result = train(make_config(train=settings), data.folder, tmp_path, sampler=spoil, console=quiet())
    scores = {row["step"]: row["val_bpb"] for row in result.history if row["event"] == "eval" and row["step"]}
    best = min(scores, key=lambda step: scores[step])
    assert best < 7
    assert (tmp_path / "best").resolve().name == f"step-{best:08d}"
    assert [path.name for path in list_checkpoints(tmp_path)] == [f"step-{best:08d}", "step-00000007"]
