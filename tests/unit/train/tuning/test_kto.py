"""Feedback: the loss against the paper's formula, the point between gain and loss, and a run."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

from langwright.core.errors import UserError
from langwright.core.json_text import read_json_object
from langwright.data.loader import IGNORED, Batch
from langwright.model.model import Model
from langwright.train.checkpoint import list_checkpoints
from langwright.train.compute import ComputeModel
from langwright.train.loop import accumulate
from langwright.train.metrics import read_metrics
from langwright.train.run import run_task
from langwright.train.session import TrainResult
from langwright.train.spread import AS_ONE
from langwright.train.tuning.config import TuneConfig, load_tuning
from langwright.train.tuning.kto import FEEDBACK, area, feedback_objective, learn_feedback, set_point
from langwright.train.tuning.preference_loss import kto
from tests.unit.train.on_ranks import on_ranks
from tests.unit.train.tuning.talk import make_base, write_lines

ROWS = [
    {"prompt": f"Say {number}", "completion": f"{'please' if good else 'no'} {number}", "label": good}
    for number in range(12)
    for good in (True, False)
]


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return make_base(tmp_path / "base")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_lines(tmp_path / "feedback.jsonl", ROWS)


def make(base: Path, **over: Any) -> TuneConfig:
    settings: dict[str, Any] = {
        "train.max_steps": 12,
        "train.batch_size": 4,
        "train.micro_batch_size": None,
        "train.context": 64,
        "train.lr": 1e-2,
        "train.warmup_steps": 0,
        "train.eval_every": 6,
        "train.save_every": 6,
        "train.dtype": "float32",
        "adapter.rank": 4,
        "device": "cpu",
        "threads": 1,
    }
    return load_tuning("kto", str(base), settings | over)


def tune(config: TuneConfig, data: Path, out: Path, *, resume: bool = False) -> TrainResult:
    return run_task(
        config,
        lambda spread, say: learn_feedback(config, [data], (), say, spread=spread),
        out,
        resume=resume,
        console=Console(quiet=True),
    )


def test_the_loss_is_the_formula():
    """As TRL computes it: 1 - sigmoid(beta (gain - KL)) of good answers, 1 - sigmoid(beta (KL - gain)) of bad ones."""
    policy, reference = np.array([-12.0, -3.5, -40.0, -7.0]), np.array([-13.0, -3.0, -41.0, -9.0])
    good, kl, beta = np.array([True, True, False, False]), 0.75, 0.3

    def sigmoid(x: np.ndarray) -> np.ndarray:
        return 1 / (1 + np.exp(-x))

    gain = policy - reference
    expected = np.where(good, 1.5 * (1 - sigmoid(beta * (gain - kl))), 0.5 * (1 - sigmoid(beta * (kl - gain))))
    weights = np.where(good, 1.5, -0.5)
    found = kto(torch.from_numpy(policy), torch.from_numpy(reference + kl), torch.from_numpy(weights), beta)
    assert found.tolist() == pytest.approx(expected.tolist(), rel=1e-12)


def test_learns_which_answers_are_good(base: Path, data: Path, tmp_path: Path):
    """And a run that was cut off ends as one that was not."""
    whole = tune(make(base), data, tmp_path / "whole")
    evals = [row for row in whole.history if row["event"] == "eval"]
    assert evals[0]["val_accuracy"] == 0  # nothing has moved, and a reward of 0 is neither
    assert evals[0]["val_loss"] == pytest.approx(0.5, abs=1e-5)
    assert whole.score.accuracy == 1
    assert whole.score.figures["val_auc"] == 1
    assert "auc 1.0000" in str(whole.score)
    about = read_json_object(tmp_path / "whole" / FEEDBACK)
    assert about["reward"]["good"] > 0 > about["reward"]["bad"]
    shutil.copytree(tmp_path / "whole", tmp_path / "cut", symlinks=True)
    for path in list_checkpoints(tmp_path / "cut")[1:]:
        shutil.rmtree(path)
    again = tune(make(base), data, tmp_path / "cut", resume=True)
    assert again.score == whole.score
    for name in ("adapter_model.safetensors", "optimizer.safetensors"):
        assert (tmp_path / "cut" / "last" / name).read_bytes() == (tmp_path / "whole" / "last" / name).read_bytes()


def run_here(base: str, data: str, out: str) -> None:
    """Two steps, on as many ranks as there are."""
    tune(make(Path(base), **{"train.max_steps": 2}), Path(data), Path(out))


@pytest.mark.slow
def test_two_processes_share_one_point(base: Path, data: Path, tmp_path: Path):
    run_here(str(base), str(data), str(tmp_path / "one"))
    on_ranks(2, "tests.unit.train.tuning.test_kto:run_here", base, data, tmp_path / "two")
    one, two = (read_metrics(tmp_path / name / "metrics.jsonl", 2) for name in ("one", "two"))
    losses = [[row["loss"] for row in rows if row["event"] == "step"] for rows in (one, two)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert one[-2]["val_loss"] == pytest.approx(two[-2]["val_loss"], rel=1e-4)


def moved(model: Model) -> Model:
    """With adapters that change something, so that answers have gained and lost."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("lora_b"):
                parameter.normal_(0, 0.2, generator=generator)
    return model


def test_micro_batches_share_one_point(base: Path, data: Path):
    """The estimate of the KL divergence is the whole step's, so a step is the same however it is cut."""
    task = learn_feedback(make(base), [data])
    batch, found = task.batches(None)(0), []
    for size in (4, 1):
        model = moved(task.build())
        objective = feedback_objective(0.1, size)
        prepared = objective.prepare(model, batch, AS_ONE)
        loss = accumulate(ComputeModel(model, torch.float32), prepared, objective, size)
        found.append((loss, {name: each.grad for name, each in model.named_parameters() if each.grad is not None}))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-6)
    for name, grad in found[0][1].items():
        torch.testing.assert_close(found[1][1][name], grad, rtol=1e-4, atol=1e-7)


def test_the_point_is_the_mean_gain_of_strange_answers(base: Path, data: Path):
    task = learn_feedback(make(base), [data])
    batch, model = task.batches(None)(0), moved(task.build()).train()
    assert batch.reference is not None
    prepared = set_point(model, batch, AS_ONE, size=3)
    assert model.training
    gains = []
    for row in range(len(batch.ids)):
        ids, targets = (torch.from_numpy(part[row, 1]) for part in (batch.ids, batch.targets))
        kept = targets != IGNORED
        with torch.no_grad():
            logits = torch.log_softmax(model.eval()(ids[None])[0].double(), -1)
        gains.append(logits[kept].gather(1, targets[kept][:, None]).sum().item() - batch.reference[row, 1])
    assert prepared.reference is not None
    expected = batch.reference[:, 0] + max(0.0, np.mean(gains).item())
    assert np.allclose(prepared.reference, expected, rtol=1e-5)
    lost = batch._replace(
        reference=batch.reference + np.array([0, 1e3], dtype=np.float32)
    )  # as if the strange answers became rarer
    point = set_point(model, lost, AS_ONE, size=4).reference
    assert point is not None
    assert np.array_equal(point, batch.reference[:, 0])


def test_strange_answers_are_of_other_prompts(base: Path, data: Path):
    task = learn_feedback(make(base), [data])
    batch: Batch = task.batches(None)(0)
    for ids, targets in zip(batch.ids, batch.targets, strict=True):
        begins = int((targets[0] != IGNORED).argmax())
        assert np.array_equal(ids[0, : begins + 1], ids[1, : begins + 1])
        own, other = (side[side != IGNORED] for side in targets)
        prompt = ids[0, : begins + 1]
        number = bytes(prompt[prompt < 256].astype("u1")).split(b"Say ")[1].removesuffix(b"assistant: ")
        assert number in bytes(own[:-1].astype("u1"))
        assert not bytes(other[:-1].astype("u1")).endswith(b" " + number)


def test_a_pair_is_a_good_and_a_bad_answer(base: Path, tmp_path: Path):
    pairs = [{"prompt": f"Say {n}", "chosen": f"please {n}", "rejected": f"no {n}"} for n in range(12)]
    said: list[str] = []
    one = learn_feedback(make(base), [write_lines(tmp_path / "pairs.jsonl", pairs)], (), said.append)
    about = one.facts.data.model_dump(mode="json")
    assert about["good"] == about["bad"] == 11
    assert about["val"] == 2
    assert not any("weigh" in line for line in said)


def test_area_under_the_curve():
    assert area(np.array([3.0, 2.0]), np.array([1.0, 2.0])) == pytest.approx(3.5 / 4)
    assert area(np.array([1.0]), np.array([1.0])) == 0.5


def test_refusals_and_warnings(base: Path, tmp_path: Path):
    good = [row for row in ROWS if row["label"]]
    with pytest.raises(UserError, match="so give bad ones too"):
        learn_feedback(make(base), [write_lines(tmp_path / "good.jsonl", good)])
    alike = [row | {"prompt": "Say it"} for row in ROWS]
    other = write_lines(tmp_path / "val.jsonl", ROWS)
    with pytest.raises(UserError, match="same prompt"):
        learn_feedback(make(base), [write_lines(tmp_path / "alike.jsonl", alike)], [other])
    with pytest.raises(UserError, match="kto learns answers"):
        learn_feedback(make(base), [write_lines(tmp_path / "chats.jsonl", [{"prompt": "a", "completion": "b"}])])
    said: list[str] = []
    rare = [*good, *[row for row in ROWS if not row["label"]][:4]]
    learn_feedback(make(base), [write_lines(tmp_path / "rare.jsonl", rare)], [other], said.append)
    assert any("--preference.desirable-weight 0.33 to 0.44" in line for line in said)
    with pytest.raises(UserError, match="chat template"):
        learn_feedback(make(make_base(tmp_path / "bare", template=None)), [other])
    short = make_base(tmp_path / "short", context=64)
    long = write_lines(
        tmp_path / "long.jsonl", [row | {"prompt": f"{row['prompt']} {'very ' * 8}long"} for row in ROWS]
    )
    with pytest.raises(UserError, match="has positions for 64"):
        learn_feedback(make(short, **{"train.context": 90}), [long])
