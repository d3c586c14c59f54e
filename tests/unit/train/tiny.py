"""A tiny model, a tiny stream of tokens, and settings for both."""

import io
from collections.abc import Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from langwright.data.loader import Batch, batch_at
from langwright.data.prepare import prepare
from langwright.data.shards import ShardWriter, TokenShards
from langwright.model.model import Model, build_model
from langwright.train.config import TrainConfig
from langwright.train.loop import StepResult, TrainState, train_steps
from langwright.train.optimiser import build_optimiser

VOCAB, CONTEXT = 29, 12
DROPOUT = {"dropout": 0.2, "attn_dropout": 0.1, "mlp_dropout": 0.1}


def make_config(model: dict[str, Any] | None = None, train: dict[str, Any] | None = None, **top: Any) -> TrainConfig:
    """Two layers of 16 for six steps of four rows, in float32 on one thread, with some fields changed."""
    shape = {"d_model": 16, "n_layers": 2, "n_heads": 2}
    settings = {"max_steps": 6, "batch_size": 4, "context": CONTEXT, "lr": 1e-2, "dtype": "float32"}
    values = {"model": shape | (model or {}), "train": settings | (train or {}), "device": "cpu", "threads": 1}
    return TrainConfig.parse(values | top, "test")


def make_model(config: TrainConfig, vocab_size: int = VOCAB) -> Model:
    """Fresh weights for the vocabulary of these tests."""
    return build_model(config.model.build(vocab_size=vocab_size, context=config.train.context), seed=config.seed)


def make_state(config: TrainConfig, vocab_size: int = VOCAB) -> TrainState:
    """A run that has not begun."""
    model = make_model(config, vocab_size)
    return TrainState(model, build_optimiser(model, config.train))


def make_shards(folder: Path, documents: int = 40) -> TokenShards:
    """Documents of 24 random ids from 1 to 28, each closed by the end-of-text id 0."""
    rng = np.random.default_rng(0)
    with ShardWriter(folder, vocab_size=VOCAB, eos_id=0) as writer:
        for _ in range(documents):
            writer.add(rng.integers(1, VOCAB, 24), n_bytes=24)
    return TokenShards.open(folder)


def make_batch(rows: int = 6) -> Batch:
    """Random ids, and the ids that follow them."""
    windows = np.random.default_rng(1).integers(0, VOCAB, (rows, CONTEXT + 1))
    return Batch(np.ascontiguousarray(windows[:, :-1]), np.ascontiguousarray(windows[:, 1:]))


def steps_of(state: TrainState, config: TrainConfig, shards: TokenShards, **more: Any) -> Iterator[StepResult]:
    """The steps of a run that are left, with five steps an epoch."""
    settings = config.train
    batches = partial(batch_at, shards, seed=config.seed, batch_size=settings.batch_size, context=settings.context)
    assert settings.max_steps is not None
    return train_steps(
        state, config, lambda step: batches(step=step), max_steps=settings.max_steps, steps_per_epoch=5, **more
    )


def advance(state: TrainState, config: TrainConfig, shards: TokenShards, count: int) -> list[StepResult]:
    """Take ``count`` steps."""
    return list(islice(steps_of(state, config, shards), count))


def tensors_of(state: TrainState) -> dict[str, torch.Tensor]:
    """Copies of all weights and of everything the optimiser holds, by name."""
    found = {}
    for name, parameter in state.model.named_parameters():
        found[name] = parameter.detach().clone()
        for key, value in state.optimiser.state.get(parameter, {}).items():
            if isinstance(value, torch.Tensor):
                found[f"{key}:{name}"] = value.clone()
    return found


def assert_same_tensors(one: TrainState, other: TrainState) -> None:
    """Equal bit for bit: weights and optimiser."""
    left, right = tensors_of(one), tensors_of(other)
    assert left.keys() == right.keys()
    for name in left:
        assert torch.equal(left[name], right[name]), name


def write_text(folder: Path, name: str = "text.txt", words: int = 900, seed: int = 0) -> Path:
    """A file of made-up sentences, about five letters a word."""
    rng = np.random.default_rng(seed)
    vocabulary = ["the", "cat", "sat", "on", "a", "mat", "and", "saw", "some", "small", "birds", "sing"]
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text(" ".join(rng.choice(vocabulary, words)) + ".\n", encoding="utf-8")
    return path


def prepare_text(folder: Path, words: int = 900, documents: int = 1, **options: Any) -> Path:
    """A prepared folder of characters, or as ``options`` of `prepare` say."""
    texts = [write_text(folder, f"text{number or ''}.txt", words, number) for number in range(documents)]
    prepare(texts, folder / "data", **{"tokenizer": "char"} | options)
    return folder / "data"


def quiet() -> Console:
    """A console that keeps its text for `told`."""
    return Console(file=io.StringIO())


def told(console: Console) -> str:
    """What was printed on a `quiet` console."""
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()
