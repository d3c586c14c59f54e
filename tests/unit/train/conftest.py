"""A tiny model, a tiny stream of tokens, and settings for both."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from langwright.data.loader import Batch
from langwright.data.shards import ShardWriter, TokenShards
from langwright.model.model import Model, build_model
from langwright.train.config import TrainConfig

VOCAB, CONTEXT = 29, 12


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def make_config() -> Callable[..., TrainConfig]:
    """A `TrainConfig` with some fields changed: ``make_config(model={...}, train={...}, seed=1)``."""

    def make(model: dict[str, Any] | None = None, train: dict[str, Any] | None = None, **top: Any) -> TrainConfig:
        shape = {"d_model": 16, "n_layers": 2, "n_heads": 2}
        settings = {"max_steps": 6, "batch_size": 4, "context": CONTEXT, "lr": 1e-2, "dtype": "float32"}
        values = {"model": shape | (model or {}), "train": settings | (train or {}), "device": "cpu", "threads": 1}
        return TrainConfig.parse(values | top, "test")

    return make


@pytest.fixture
def make_model() -> Callable[..., Model]:
    """A model for the vocabulary of these tests."""

    def make(config: TrainConfig) -> Model:
        shape = config.model.build(vocab_size=VOCAB, context=config.train.context)
        return build_model(shape, seed=config.seed)

    return make


@pytest.fixture
def shards(tmp_path: Path) -> TokenShards:
    """Forty documents of random letters: 1,000 tokens in all, ids 1 to 28 between end-of-text ids 0."""
    rng = np.random.default_rng(0)
    with ShardWriter(tmp_path / "shards", vocab_size=VOCAB, eos_id=0) as writer:
        for _ in range(40):
            writer.add(rng.integers(1, VOCAB, 24), n_bytes=24)
    return TokenShards.open(tmp_path / "shards")


@pytest.fixture
def batch() -> Batch:
    """Six rows of a fixed random batch."""
    windows = np.random.default_rng(1).integers(0, VOCAB, (6, CONTEXT + 1))
    return Batch(np.ascontiguousarray(windows[:, :-1]), np.ascontiguousarray(windows[:, 1:]))
