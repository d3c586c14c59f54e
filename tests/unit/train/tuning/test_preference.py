"""Preferences: the losses against their papers' formulas, and a run."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import Tensor

import langwright as lw
from langwright.core.errors import UserError
from langwright.core.json_text import read_json_object
from langwright.data.loader import IGNORED
from langwright.model.checkpoint.load import load_model
from langwright.train.run import run_task
from langwright.train.session import TrainResult
from langwright.train.tuning.config import TuneConfig, load_tuning
from langwright.train.tuning.divergence import mean_divergence
from langwright.train.tuning.likelihood import log_likelihoods
from langwright.train.tuning.parts import ShuffledBatches
from langwright.train.tuning.preference import PREFERENCES, prefer
from langwright.train.tuning.preference_loss import Worth, dpo, ipo, log1mexp, orpo, simpo
from tests.unit.train.tuning.talk import make_base, write_lines


def worth() -> Worth:
    """Three pairs: fixed numbers."""
    values = [
        [-12.0, -3.5, -40.0],
        [-15.0, -2.0, -38.0],
        [4, 2, 10],
        [5, 1, 8],
        [-13.0, -3.0, -41.0],
        [-14.0, -2.5, -39.0],
    ]
    return Worth(*(torch.tensor(each, dtype=torch.float64) for each in values))


def by_hand(formula: Any) -> list[float]:
    found = worth()
    names = ("chosen", "rejected", "chosen_tokens", "rejected_tokens", "chosen_reference", "rejected_reference")
    return [formula(*(getattr(found, name)[at].item() for name in names)) for at in range(3)]


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def same(found: Tensor, expected: list[float]) -> None:
    assert found.tolist() == pytest.approx(expected, rel=1e-9)


def test_dpo():
    same(dpo(worth(), 0.1), by_hand(lambda c, r, nc, nr, rc, rr: -math.log(sigmoid(0.1 * ((c - r) - (rc - rr))))))
    same(
        dpo(worth(), 0.3, 0.1),
        by_hand(
            lambda c, r, nc, nr, rc, rr: (
                -0.9 * math.log(sigmoid(0.3 * ((c - r) - (rc - rr))))
                - 0.1 * math.log(sigmoid(-0.3 * ((c - r) - (rc - rr))))
            )
        ),
    )


def test_ipo():
    same(ipo(worth(), 0.2), by_hand(lambda c, r, nc, nr, rc, rr: ((c - rc) / nc - (r - rr) / nr - 2.5) ** 2))


def test_simpo():
    same(simpo(worth(), 2.0, 1.0), by_hand(lambda c, r, nc, nr, rc, rr: -math.log(sigmoid(2 * (c / nc - r / nr) - 1))))


def test_orpo():
    def formula(c: float, r: float, nc: float, nr: float, rc: float, rr: float) -> float:
        p, q = math.exp(c / nc), math.exp(r / nr)
        return -c / nc - 0.1 * math.log(sigmoid(math.log(p / (1 - p)) - math.log(q / (1 - q))))

    same(orpo(worth(), 0.1), by_hand(formula))


def test_ln_of_one_minus_exp_is_exact_at_both_ends():
    x = torch.tensor([-1e-12, -0.1, -1.0, -50.0], dtype=torch.float64, requires_grad=True)
    found = log1mexp(x)
    assert found.tolist() == pytest.approx([math.log(-math.expm1(each)) for each in x.tolist()], rel=1e-9)
    found.sum().backward()
    assert x.grad is not None
    assert bool(x.grad.isfinite().all())


PAIRS = [
    {
        "prompt": [{"role": "user", "content": f"Say {number}"}],
        "chosen": [{"role": "assistant", "content": f"please {number}"}],
        "rejected": [{"role": "assistant", "content": f"no {number}!"}],
    }
    for number in range(24)
]


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return make_base(tmp_path / "base")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_lines(tmp_path / "pairs.jsonl", PAIRS)


def make(base: Path, method: str = "dpo", **over: Any) -> TuneConfig:
    settings: dict[str, Any] = {
        "train.max_steps": 12,
        "train.batch_size": 4,
        "train.micro_batch_size": None,
        "train.context": 64,
        "train.lr": 1e-2,
        "train.warmup_steps": 0,
        "train.eval_every": 6,
        "train.save_every": 4,
        "train.dtype": "float32",
        "adapter.rank": 4,
        "device": "cpu",
        "threads": 1,
    }
    return load_tuning(method, str(base), settings | over)


def tune(config: TuneConfig, data: Path, out: Path, *, resume: bool = False) -> TrainResult:
    return run_task(
        config,
        lambda spread, say: prefer(config, [data], (), say, spread=spread),
        out,
        resume=resume,
        console=Console(quiet=True),
    )


@pytest.mark.parametrize("method", ["dpo", "ipo", "orpo", "simpo"])
def test_learns_what_is_preferred(method: str, base: Path, data: Path, tmp_path: Path):
    result = tune(make(base, method), data, tmp_path / "out")
    evals = [row for row in result.history if row["event"] == "eval"]
    assert result.score.accuracy == 1.0
    assert evals[-1]["val_loss"] < evals[0]["val_loss"]
    about = read_json_object(tmp_path / "out" / PREFERENCES)
    assert about["accuracy"] == 1.0
    assert about["kl"]["nats_a_token"] > 0
    assert lw.load(tmp_path / "out" / "last").generate("x", max_new_tokens=1).token_ids


def test_before_the_first_step_nothing_is_preferred(base: Path, data: Path, tmp_path: Path):
    """The model is its own reference, so every margin is 0 and the loss is ln 2."""
    result = tune(make(base), data, tmp_path / "out")
    first = next(row for row in result.history if row["event"] == "eval")
    assert first["val_loss"] == pytest.approx(math.log(2), abs=1e-4)


def test_resumed_is_uninterrupted(base: Path, data: Path, tmp_path: Path):
    whole = tune(make(base), data, tmp_path / "whole")
    tune(make(base, **{"train.max_steps": 12}), data, tmp_path / "cut")
    import shutil

    for step in (8, 12):
        shutil.rmtree(tmp_path / "cut" / f"step-{step:08d}", ignore_errors=True)
    again = tune(make(base), data, tmp_path / "cut", resume=True)
    assert again.score == whole.score
    for name in ("adapter_model.safetensors", "optimizer.safetensors"):
        assert (tmp_path / "cut" / "last" / name).read_bytes() == (tmp_path / "whole" / "last" / name).read_bytes()


def test_micro_batches_keep_pairs_together(base: Path, data: Path, tmp_path: Path):
    one = tune(make(base), data, tmp_path / "one")
    pieces = tune(make(base, **{"train.micro_batch_size": 1}), data, tmp_path / "pieces")
    assert pieces.score.loss == pytest.approx(one.score.loss, rel=1e-3)


def test_likelihoods_do_not_depend_on_padding(base: Path, data: Path):
    task = prefer(make(base), [data])
    batches = task.batches(None)
    assert isinstance(batches, ShuffledBatches)
    batch = batches(0)
    model = load_model(base, dtype=torch.float32).eval()
    ids, targets = torch.from_numpy(batch.ids).flatten(0, 1), torch.from_numpy(batch.targets).flatten(0, 1)
    with torch.no_grad():
        sums, counts = log_likelihoods(model, ids, targets)
        for row in range(len(ids)):
            end = int((targets[row] != IGNORED).nonzero().max()) + 1
            logits = torch.log_softmax(model(ids[row : row + 1, :end])[0], -1)
            kept = targets[row, :end] != IGNORED
            alone = logits[kept].gather(1, targets[row, :end][kept][:, None]).sum()
            assert sums[row].item() == pytest.approx(alone.item(), rel=1e-5)
            assert counts[row] == kept.sum()
    assert batch.reference is not None
    assert np.allclose(batch.reference.reshape(-1), sums.numpy(), rtol=1e-4)


def test_a_model_does_not_diverge_from_itself(base: Path):
    model = load_model(base, dtype=torch.float32)
    found = mean_divergence(model, load_model(base, dtype=torch.float32), [[1, 2, 3]], tokens=8, seed=0)
    assert found.a_token == pytest.approx(0, abs=1e-9)
    with torch.no_grad():
        model.get_parameter("backbone.final_norm.weight").mul_(3)
    assert mean_divergence(model, load_model(base, dtype=torch.float32), [[1, 2, 3]], tokens=8, seed=0).a_token > 0.01


def test_refusals(base: Path, data: Path, tmp_path: Path):
    chats = tmp_path / "chats.jsonl"
    chats.write_text(json.dumps({"prompt": "a", "completion": "b"}) + "\n")
    with pytest.raises(UserError, match="dpo learns pairs"):
        prefer(make(base), [chats])
    with pytest.raises(UserError, match="batch_size"):
        prefer(make(base, **{"train.batch_size": 100}), [data])
