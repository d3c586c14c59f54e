"""Laws of training: accumulated = large batch, resumed = uninterrupted."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from langwright.data.loader import batch_at, open_data
from langwright.data.shards import TokenShards
from langwright.train.checkpoint import list_checkpoints
from langwright.train.compute import ComputeModel
from langwright.train.loop import accumulate, micro_batches
from langwright.train.objective import CAUSAL_LM, IGNORED
from langwright.train.pretraining import resolve
from langwright.train.run import train
from langwright.train.session import TrainResult
from tests.unit.train.tiny import (
    CONTEXT,
    DROPOUT,
    make_batch,
    make_config,
    make_model,
    make_shards,
    prepare_text,
    quiet,
)

CLOCK = ("elapsed", "tokens_per_second")
GPT2 = {
    "positions": "learned",
    "norm": "layernorm",
    "norm_bias": True,
    "activation": "gelu_tanh",
    "gated": False,
    "qkv_bias": True,
    "o_bias": True,
    "mlp_bias": True,
    "tie_embeddings": False,
}


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def shards(tmp_path: Path) -> TokenShards:
    return make_shards(tmp_path / "shards")


@pytest.mark.parametrize("size", [1, 2, 4, 5])
def test_accumulated_gradients_are_those_of_the_large_batch(size: int):
    """Also where the pieces hold different numbers of targets, which means of means get wrong (transformers 34191)."""
    batch = make_batch(rows=6)
    rng = np.random.default_rng(2)
    batch.targets[rng.random(batch.targets.shape) < np.linspace(0, 0.9, 6)[:, None]] = IGNORED
    whole, pieces = (make_model(make_config(model={"positions": "learned"})) for _ in range(2))
    expected = accumulate(ComputeModel(whole, torch.float32), batch, CAUSAL_LM, None)
    found = accumulate(ComputeModel(pieces, torch.float32), batch, CAUSAL_LM, size)
    assert found == pytest.approx(expected, rel=1e-6)
    for one, other in zip(whole.parameters(), pieces.parameters(), strict=True):
        torch.testing.assert_close(other.grad, one.grad, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 8])
def test_any_number_of_ranks_sees_the_same_rows(shards: TokenShards, ranks: int):
    """Every step's rows, dealt to ranks and put back in order, over the end of an epoch."""
    for step in range(12):
        whole = batch_at(shards, seed=5, step=step, batch_size=8, context=CONTEXT)
        found = np.zeros_like(whole.ids)
        for rank in range(ranks):
            rows = range(rank, 8, ranks)
            part = batch_at(shards, seed=5, step=step, batch_size=8, context=CONTEXT, rows=rows)
            found[rows.start :: ranks] = part.ids
        assert found.tolist() == whole.ids.tolist()


def test_micro_batches_are_the_batch_in_order(shards: TokenShards):
    batch = batch_at(shards, seed=0, step=3, batch_size=7, context=CONTEXT)
    for size in (None, 1, 3, 7):
        parts = list(micro_batches(batch, size, torch.device("cpu")))
        assert max(len(part.ids) for part in parts) == (size or 7)
        assert torch.cat([part.ids for part in parts]).numpy().tolist() == batch.ids.tolist()
        assert torch.cat([part.targets for part in parts]).numpy().tolist() == batch.targets.tolist()


RUNS = {
    "float32": {"train": {"dtype": "float32"}},
    "bfloat16": {"train": {"dtype": "bfloat16"}},
    "dropout": {"model": DROPOUT},
    "dropout in bfloat16, accumulated": {"model": DROPOUT, "train": {"dtype": "bfloat16", "micro_batch_size": 3}},
    "accumulated": {"train": {"micro_batch_size": 1}},
    "documents": {"model": DROPOUT, "train": {"packing": "documents"}},
    "untied, learned positions": {"model": {"family": "gpt2", **GPT2}, "train": {"schedule": "wsd"}},
    "two loader workers, saved in the foreground": {"train": {"loader_workers": 2, "save_in_background": False}},
    "muon": {"train": {"optimiser": "muon", "schedule": "wsd", "vector_lr_ratio": 0.5}},
    "momentum": {"train": {"optimiser": "sgd", "momentum": 0.9, "lr": 0.1, "schedule": "step"}},
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Few enough tokens that a step is a fifth of an epoch."""
    return prepare_text(tmp_path_factory.mktemp("text"), words=60)


def trajectory(result: TrainResult) -> list[dict]:
    """Every loss, norm, rate and validation; not the clock."""
    rows = [row for row in result.history if row["event"] != "save"]
    return [{name: value for name, value in row.items() if name not in CLOCK} for row in rows]


@pytest.mark.parametrize("name", RUNS)
def test_resumed_is_uninterrupted(name: str, data: Path, tmp_path: Path):
    """Bit for bit: weights, optimiser, every loss and validation, over the end of two epochs (transformers 11323)."""
    changes = RUNS[name]
    settings = {"max_steps": 11, "save_every": 1, "keep": 99, "log_every": 1, "eval_every": 3, "warmup_steps": 2}
    config = make_config(changes.get("model"), settings | changes.get("train", {}), seed=7)
    assert 4 <= resolve(config, open_data(data))[1] <= 5  # steps an epoch
    whole = train(config, data, tmp_path / "whole", console=quiet())
    once = config.replace(train=config.train.replace(save_every=0))
    for killed_after in (1, 4, 5, 9):
        out = tmp_path / str(killed_after)
        out.mkdir()
        folder = list_checkpoints(tmp_path / "whole")[killed_after - 1]
        shutil.copytree(folder, out / folder.name)
        shutil.copy(tmp_path / "whole" / "metrics.jsonl", out)
        part = train(once, data, out, resume=True, console=quiet())
        for file in ("model.safetensors", "optimizer.safetensors"):
            assert (part.checkpoint / file).read_bytes() == (whole.checkpoint / file).read_bytes(), file
        assert trajectory(part) == trajectory(whole)
        assert part.val_bpb == whole.val_bpb
