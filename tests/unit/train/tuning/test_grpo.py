"""GRPO: the loss and its gradient, and a model that learns what is rewarded."""

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
from langwright.infer.generate import generate
from langwright.infer.sampling import SamplingConfig
from langwright.model.adapters import without_adapters
from langwright.model.checkpoint.load import load_model
from langwright.model.model import Model
from langwright.train.checkpoint import list_checkpoints
from langwright.train.compute import ComputeModel
from langwright.train.loop import accumulate
from langwright.train.objective import to_device
from langwright.train.run import run_task
from langwright.train.session import TrainResult
from langwright.train.spread import AS_ONE
from langwright.train.task import Task
from langwright.train.tuning.config import TuneConfig, load_tuning
from langwright.train.tuning.grpo import ANSWERS, grpo, k3, normalise
from tests.unit.train.tuning.talk import make_base, write_lines
from tests.unit.train.tuning.test_kto import moved

ROWS = [{"question": f"Say {number}", "answer": f"{number}"} for number in range(12)]


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return make_base(tmp_path / "base")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_lines(tmp_path / "problems.jsonl", ROWS)


def make(base: Path, **over: Any) -> TuneConfig:
    settings: dict[str, Any] = {
        "train.max_steps": 3,
        "train.batch_size": 4,
        "train.micro_batch_size": None,
        "train.context": 64,
        "train.lr": 1e-2,
        "train.warmup_steps": 0,
        "train.eval_every": 0,
        "train.save_every": 1,
        "train.dtype": "float32",
        "grpo.group": 4,
        "grpo.max_new_tokens": 4,
        "grpo.rewards": {"format": 1.0},
        "grpo.pattern": "[a-m]",
        "adapter.rank": 4,
        "device": "cpu",
        "threads": 1,
    }
    return load_tuning("grpo", str(base), settings | over)


def tune(config: TuneConfig, data: Path, out: Path, *, resume: bool = False) -> TrainResult:
    return run_task(
        config,
        lambda spread, say: grpo(config, [data], (), say, spread=spread),
        out,
        resume=resume,
        console=Console(quiet=True),
    )


def test_learns_to_answer_with_a_letter(base: Path, data: Path, tmp_path: Path):
    over = {"train.max_steps": 25, "train.lr": 2e-2, "grpo.pattern": "e", "grpo.group": 8, "grpo.beta": 0.0}
    result = tune(make(base, **over), data, tmp_path / "out")
    first, last = (row["val_reward"] for row in result.history if row["event"] == "eval")
    assert first == 0
    assert last == 1
    assert result.score.figures["val_reward"] == 1
    assert result.score.figures["val_reward_low"] == 1
    about = read_json_object(tmp_path / "out" / ANSWERS)
    assert "e" in about["answers"][0]["said"]
    assert about["kl"]["nats_a_token"] > 0
    assert "format x 1" in (tmp_path / "out" / "last" / "README.md").read_text()


@pytest.mark.parametrize("over", [{}, {"adapter": None, "train.micro_batch_size": 3}])
def test_resumed_is_uninterrupted(over: dict[str, Any], base: Path, data: Path, tmp_path: Path):
    """What is drawn is a function of seed and step."""
    config = make(base, **over)
    whole = tune(config, data, tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "cut", symlinks=True)
    for path in list_checkpoints(tmp_path / "cut")[1:]:
        shutil.rmtree(path)
    again = tune(config, data, tmp_path / "cut", resume=True)
    steps = [[row["loss"] for row in each.history if row["event"] == "step"] for each in (whole, again)]
    assert steps[0] == steps[1]
    for name in ("adapter_model.safetensors", "model.safetensors", "optimizer.safetensors"):
        one, other = (tmp_path / side / "last" / name for side in ("whole", "cut"))
        assert one.exists() == other.exists()
        assert not one.exists() or one.read_bytes() == other.read_bytes()


def prepared(task: Task, model: Model) -> Batch:
    assert task.objective is not None
    torch.manual_seed(0)
    return task.objective.prepare(model, task.batches(None)(0), AS_ONE)


def test_a_step_holds_a_group_of_answers_to_every_prompt(base: Path, data: Path):
    task = grpo(make(base), [data])
    model = task.build().train()
    batch, prompts = prepared(task, model), task.batches(None)(0)
    assert model.training
    assert len(batch.ids) == 16
    assert batch.reward is not None
    assert prompts.mask is not None
    for row, (ids, targets) in enumerate(zip(batch.ids, batch.targets, strict=True)):
        prompt = prompts.ids[row // 4][prompts.mask[row // 4]]
        assert np.array_equal(ids[: len(prompt)], prompt)
        first = int((targets != IGNORED).argmax())
        assert first == len(prompt) - 1
        said = targets[targets != IGNORED]
        assert 1 <= len(said) <= 4
        good = any(97 <= token <= 109 for token in said)
        assert (batch.reward[row] > 0) <= good
    assert np.allclose(batch.reward.reshape(4, 4).sum(1), 0, atol=1e-5)
    again = prepared(task, model)
    assert np.array_equal(again.ids, batch.ids)


def test_the_gradient_is_the_advantage_times_that_of_ln_p(base: Path, data: Path):
    """And micro-batches give the same step."""
    task = grpo(make(base, **{"grpo.beta": 0.0}), [data])
    assert task.objective is not None
    model = moved(task.build())
    batch = prepared(task, model)
    piece = to_device(batch, torch.device("cpu"))
    assert piece.reward is not None
    logits = torch.log_softmax(model(piece.ids), -1)  # (N, T, V)
    kept = piece.targets != IGNORED
    own = logits.gather(-1, piece.targets.clamp(min=0)[..., None])[..., 0] * kept
    (-(own.sum(1) * piece.reward).sum() / kept.sum()).backward()
    expected = {name: each.grad.clone() for name, each in model.named_parameters() if each.grad is not None}
    for size in (None, 3):
        model.zero_grad()
        assert accumulate(ComputeModel(model, torch.float32), batch, task.objective, size) is not None
        for name, grad in expected.items():
            torch.testing.assert_close(model.get_parameter(name).grad, grad, rtol=1e-4, atol=1e-7)


def test_groups_that_are_all_alike_teach_nothing(base: Path, data: Path):
    task = grpo(make(base, **{"grpo.beta": 0.0, "grpo.pattern": "no such answer"}), [data])
    assert task.objective is not None
    model = task.build()
    batch = prepared(task, model)
    assert batch.reward is not None
    assert not batch.reward.any()
    accumulate(ComputeModel(model, torch.float32), batch, task.objective, None)
    assert all(each.grad is None or not each.grad.any() for each in model.parameters())
    assert not normalise(np.full((1, 3), 0.1)).any()  # though 0.1 + 0.1 + 0.1 is not 0.3
    assert normalise(np.array([[1.0, 0.0, 0.0, 1.0]])).tolist() == [[1, -1, -1, 1]]


@pytest.mark.parametrize("whole", [False, True])
def test_divergence_is_from_the_model_as_it_was(whole: bool, base: Path, data: Path):
    """Of adapters that is the model without them, of a whole model the base."""
    over = {"adapter": None} if whole else {}
    task = grpo(make(base, **{"grpo.beta": 1.0, "grpo.pattern": "no such answer"} | over), [data])
    assert task.objective is not None
    model = task.build()
    batch = prepared(task, model)
    piece = to_device(batch, torch.device("cpu"))
    assert task.objective.loss(model, piece).item() == pytest.approx(0, abs=1e-5)
    if whole:
        with torch.no_grad():
            model.get_parameter("backbone.final_norm.weight").mul_(1.5)
    else:
        moved(model)
    model.train()
    found = task.objective.loss(model, piece)
    assert model.training
    found.backward()
    gradients = {name: each.grad.clone() for name, each in model.named_parameters() if each.grad is not None}
    model.zero_grad()
    before, kept = load_model(base, dtype=torch.float32).eval(), piece.targets != IGNORED
    ours, theirs = (
        torch.log_softmax(each(piece.ids)[kept], -1).gather(1, piece.targets[kept][:, None])
        for each in (model.eval(), before)
    )
    expected = ((theirs.detach() - ours).exp() - (theirs.detach() - ours) - 1).sum()
    assert found.item() == pytest.approx(expected.item(), rel=1e-4)
    expected.backward()
    for name, grad in gradients.items():
        near = 1e-4 * max(1.0, grad.abs().max().item())
        torch.testing.assert_close(model.get_parameter(name).grad, grad, rtol=1e-3, atol=near)


def test_k3_is_unbiased_and_never_negative():
    generator = torch.Generator().manual_seed(0)
    p, q = (torch.randn(6, generator=generator).log_softmax(-1) for _ in range(2))
    assert (k3(q - p) >= 0).all()
    assert (p.exp() * k3(q - p)).sum().item() == pytest.approx((p.exp() * (p - q)).sum().item(), rel=1e-5)


def test_adapters_can_be_left_out_for_a_while(base: Path, data: Path):
    model, plain = moved(grpo(make(base), [data]).build()).eval(), load_model(base, dtype=torch.float32).eval()
    ids = torch.tensor([[1, 2, 3]])
    with torch.no_grad():
        adapted = model(ids)
        with without_adapters(model):
            assert torch.equal(model(ids), plain(ids))
        assert torch.equal(model(ids), adapted)
        assert not torch.equal(adapted, plain(ids))


def test_a_rounded_copy_can_write(base: Path):
    """What computes in bfloat16 looks its embeddings up in the masters."""
    copy = ComputeModel(load_model(base, dtype=torch.float32), torch.bfloat16).model
    assert (copy.dtype, copy.device.type) == (torch.bfloat16, "cpu")
    [answer] = generate(copy, [[1, 2, 3]], SamplingConfig(max_new_tokens=3, seed=0))
    assert answer.token_ids


def test_refusals(base: Path, data: Path, tmp_path: Path):
    with pytest.raises(UserError, match="chat template"):
        grpo(make(make_base(tmp_path / "bare", template=None)), [data])
    with pytest.raises(UserError, match=r"line 1: the prompt has \d+ tokens"):
        grpo(make(base), [write_lines(tmp_path / "long.jsonl", [{"question": "long " * 20, "answer": "1"}])])
    with pytest.raises(UserError, match="no room for a prompt"):
        grpo(make(base, **{"grpo.max_new_tokens": 64}), [data])
    with pytest.raises(UserError, match="has positions for 48"):
        grpo(make(make_base(tmp_path / "short", context=48)), [data])
    worded = write_lines(tmp_path / "words.jsonl", [{"question": "a", "answer": "eighteen"}])
    with pytest.raises(UserError, match="line 1: an answer without a number"):
        grpo(make(base, **{"grpo.rewards": {"arithmetic": 1.0}}), [worded])
    with pytest.raises(UserError, match="'answer'"):
        grpo(make(base), [write_lines(tmp_path / "chats.jsonl", [{"prompt": "a", "text": "b"}])])
