"""Distillation: the loss against its plain twin, a run, and what is no teacher."""

from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor

from langwright.core.errors import UserError
from langwright.model.checkpoint.load import load_model
from langwright.model.heads import CausalLMHead
from langwright.train import linear_nll
from langwright.train.linear_nll import head_loss
from langwright.train.objective import to_device
from langwright.train.run import run_task
from langwright.train.session import TrainResult
from langwright.train.tuning.config import TuneConfig, load_tuning
from langwright.train.tuning.distil import distil, distil_loss_naive, distil_objective, distil_rule
from langwright.train.tuning.sft import sft
from tests.unit.infer.small import random_model
from tests.unit.train.tuning.talk import chats, make_base, make_tuning, write_lines


def make(base: Path, teacher: Path | str, **over: Any) -> TuneConfig:
    settings = make_tuning(base).model_dump(exclude={"method", "base", "examples", "sft", "preference", "distil"})
    return load_tuning("distil", str(base), settings | {"distil": {"teacher": str(teacher)}} | over)


def tune(config: TuneConfig, data: Path, out: Path, said: list[str]) -> TrainResult:
    return run_task(
        config,
        lambda spread, say: distil(config, [data], (), said.append, spread=spread),
        out,
        console=Console(quiet=True),
    )


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_lines(tmp_path / "chats.jsonl", chats())


@pytest.mark.parametrize("cap", [None, 5.0])
@pytest.mark.parametrize(("temperature", "share"), [(1.0, 1.0), (2.0, 0.3), (3.0, 0.0)])
def test_chunks_are_the_plain_formula(
    cap: float | None, temperature: float, share: float, monkeypatch: pytest.MonkeyPatch
):
    """Loss and gradients, though never more than 4 rows of logits exist at once."""
    monkeypatch.setattr(linear_nll, "FEWEST_ROWS", 4)
    monkeypatch.setattr(linear_nll, "CHUNK", 1)
    head, generator = CausalLMHead(random_model(vocab_size=37).config), torch.Generator().manual_seed(0)
    head.cap = cap
    drawn = torch.randn(10, 32, generator=generator)
    theirs = torch.randn(10, 37, generator=generator)
    targets = torch.randint(37, (10,), generator=generator)
    asked: list[int] = []

    def teacher(rows: slice) -> Tensor:
        asked.append(len(theirs[rows]))
        return theirs[rows]

    found: list[tuple[Tensor, ...]] = []
    for naive in (True, False):
        hidden = drawn.clone().requires_grad_()
        head.zero_grad()
        if naive:
            loss = distil_loss_naive(head(hidden), theirs, targets, temperature, share)
        else:
            loss = head_loss(head, hidden, distil_rule(targets, teacher, temperature, share))
        (loss * 0.5).backward()
        assert hidden.grad is not None
        assert head.proj.weight.grad is not None
        found.append((loss.detach(), hidden.grad, head.proj.weight.grad.clone()))
    assert max(asked) == 4
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_a_model_has_nothing_to_learn_from_itself(tmp_path: Path, data: Path):
    base = make_base(tmp_path / "base")
    config = make(base, base, distil={"teacher": str(base), "share": 1.0})
    task = distil(config, [data])
    model = task.build()
    assert task.objective is not None
    assert task.objective.weight(task.batches(None)(0)) > 0
    piece = to_device(task.batches(None)(0), torch.device("cpu"))
    loss = task.objective.loss(model, piece)
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-3)
    assert all(each.grad is None or each.grad.abs().max() < 1e-4 for each in model.parameters())
    teacher = load_model(base, dtype=torch.float32)
    for each in teacher.parameters():
        each.requires_grad_(False)
    distil_objective(teacher, config.distil).loss(model, piece).backward()
    assert all(each.grad is None for each in teacher.parameters())


def test_learns_from_a_teacher(tmp_path: Path, data: Path):
    """One that was tuned before, whose adapter is all that is given."""
    base, said = make_base(tmp_path / "base"), []
    config = make_tuning(base, **{"train.max_steps": 30, "train.lr": 3e-2, "train.eval_every": 0})
    run_task(config, lambda spread, say: sft(config, [data]), tmp_path / "teacher", console=Console(quiet=True))
    teacher = tmp_path / "teacher" / "last"
    over = {"train.max_steps": 30, "train.lr": 3e-2, "distil": {"teacher": str(teacher), "share": 1.0}}
    result = tune(make(base, teacher, **over), data, tmp_path / "out", said)
    evals = [row["val_bpb"] for row in result.history if row["event"] == "eval"]
    assert evals[-1] < 0.95 * evals[0]
    assert any(line.startswith("teacher:") for line in said)
    assert "as last would, its teacher" in (tmp_path / "out" / "last" / "README.md").read_text()


def test_what_is_no_teacher(tmp_path: Path, data: Path):
    base = make_base(tmp_path / "base")
    with pytest.raises(UserError, match=r"--distil.teacher REF"):
        distil(make(base, ""), [data])
    other = make_base(tmp_path / "other")
    text = (other / "tokenizer.json").read_text()
    (other / "tokenizer.json").write_text(text.replace("</s>", "</z>"))
    config = (other / "tokenizer_config.json").read_text()
    (other / "tokenizer_config.json").write_text(config.replace("</s>", "</z>"))
    with pytest.raises(UserError, match=r"another tokenizer .* id 257 is not the same"):
        distil(make(base, other), [data])
    short = make_base(tmp_path / "short", context=64)
    with pytest.raises(UserError, match=r"--train.context 64"):
        distil(make(base, short), [data])
