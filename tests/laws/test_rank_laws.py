"""Laws of several ranks: whatever their number and layout, a run is the run of one process."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from langwright.data.loader import batch_at
from langwright.data.shards import TokenShards
from langwright.train.compute import pick_compute_dtype
from langwright.train.config import ParallelSettings, TrainConfig
from langwright.train.loop import TrainState, train_steps
from langwright.train.optimiser import build_optimiser
from langwright.train.ranks import joined_ranks
from langwright.train.spread import Spread, whole_model
from tests.unit.train.on_ranks import on_ranks
from tests.unit.train.tiny import make_config, make_model, make_shards

pytestmark = pytest.mark.xdist_group("rank laws")  # what the ranks leave is made once

STEPS = 3
SHAPE = {"d_model": 32, "n_heads": 4, "n_kv_heads": 2, "n_layers": 2}
MIXED = {"qk_norm": True, "family": "langwright", "o_bias": True, "qkv_bias": True, "tie_embeddings": False}
LAYOUTS: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "ddp": ({"kind": "ddp"}, {}, {}),
    "ddp, accumulated": ({"kind": "ddp"}, {}, {"micro_batch_size": 1}),
    "ddp in bfloat16": ({"kind": "ddp"}, {}, {"dtype": "bfloat16"}),
    "fsdp": ({"kind": "fsdp"}, {}, {}),
    "fsdp, accumulated, recomputed": (
        {"kind": "fsdp", "checkpoint_activations": True},
        MIXED,
        {"micro_batch_size": 1},
    ),
    "fsdp in bfloat16": ({"kind": "fsdp"}, {}, {"dtype": "bfloat16"}),
    "tensor": ({"kind": "fsdp", "tensor": 2}, MIXED, {}),
    "sgd": ({"kind": "fsdp"}, MIXED, {"optimiser": "sgd", "momentum": 0.9, "lr": 0.1}),
}


def config_of(name: str) -> TrainConfig:
    parallel, model, train = LAYOUTS[name]
    return make_config(SHAPE | model, {"batch_size": 8, "max_steps": STEPS} | train, parallel=parallel)


def advance(config: TrainConfig, shards: TokenShards, spread: Spread) -> tuple[TrainState, list[dict[str, float]]]:
    model = make_model(config)
    spread.place(model, torch.device("cpu"), pick_compute_dtype(config.train.dtype, torch.device("cpu")))
    state, settings = TrainState(model, build_optimiser(model, config.train)), config.train

    def batch(step: int):
        rows = spread.rows(settings.batch_size)
        return batch_at(shards, seed=0, step=step, batch_size=settings.batch_size, context=settings.context, rows=rows)

    steps = train_steps(state, config, batch, max_steps=STEPS, steps_per_epoch=5, spread=spread)
    return state, [{"loss": each.loss, "norm": each.grad_norm, "tokens": each.tokens} for each in steps]


def advance_layouts(shards: str, out: str) -> None:
    """What every rank does."""
    with joined_ranks("cpu") as ranks:
        for name in LAYOUTS:
            config = config_of(name)
            state, figures = advance(config, TokenShards.open(Path(shards)), Spread(config.parallel, ranks))
            every = ranks.texts(json.dumps(figures))
            assert len(set(every)) == 1, every  # all ranks know the same
            model = whole_model(state.model, ranks)
            assert (model is None) == (ranks.rank > 0)
            if model is not None:
                Path(out, f"{name}.json").write_text(every[0])
                save_file({key: value.detach() for key, value in model.named_parameters()}, Path(out, name))


@pytest.fixture(scope="module", params=[2, pytest.param(4, marks=pytest.mark.slow)])
def launched(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[TokenShards, Path]:
    folder = tmp_path_factory.mktemp("ranks")
    shards = make_shards(folder / "shards")
    on_ranks(request.param, "tests.laws.test_rank_laws:advance_layouts", folder / "shards", folder)
    return shards, folder


@pytest.mark.parametrize("name", LAYOUTS)
def test_ranks_are_one_process(name: str, launched: tuple[TokenShards, Path]):
    """Loss, gradient norm and tokens of every step, and the weights after the last."""
    shards, folder = launched
    config = config_of(name).replace(parallel=ParallelSettings())
    state, expected = advance(config, shards, Spread())
    exact = config.train.dtype == "float32"
    # AdamW divides a gradient by its size, so for gradients near zero it makes large steps of rounding errors.
    nearness = 3e-2 if not exact else 1e-6 if config.train.optimiser == "sgd" else 1e-4
    for one, other in zip(json.loads((folder / f"{name}.json").read_text()), expected, strict=True):
        assert one["tokens"] == other["tokens"]
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-6 if exact else 1e-3)
        assert one["norm"] == pytest.approx(other["norm"], rel=1e-5 if exact else 1e-2)
    weights = load_file(folder / name)
    for key, value in state.model.named_parameters():
        torch.testing.assert_close(weights.pop(key), value.detach(), rtol=0, atol=nearness)
    assert not weights
