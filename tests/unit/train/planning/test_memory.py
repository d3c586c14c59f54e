"""The plan's memory against the bytes that tensors of a real step hold."""

from typing import Any

import numpy as np
import pytest
import torch

from langwright.data.loader import Batch
from langwright.model import mlp
from langwright.model.config import LayerSpec
from langwright.model.model import build_model, count_parameters
from langwright.train.blocks import recompute_blocks
from langwright.train.compute import ComputeModel
from langwright.train.config import TrainConfig
from langwright.train.loop import TrainState, micro_batches
from langwright.train.objective import CAUSAL_LM
from langwright.train.optimiser import build_optimiser
from langwright.train.planning import activations
from langwright.train.planning.memory import Workload, count_weights, memory_use
from tests.unit.train.planning.live_bytes import LiveBytes
from tests.unit.train.tiny import make_config

VOCAB, CONTEXT, ROWS = 2000, 96, 6
NORMED = {"norm": "layernorm", "norm_bias": True}
GPT2 = NORMED | {
    "positions": "learned",
    "activation": "gelu_tanh",
    "gated": False,
    "qkv_bias": True,
    "o_bias": True,
    "mlp_bias": True,
}
SHAPES: dict[str, dict[str, Any]] = {
    "llama": {},
    "gpt2": GPT2,
    "untied": GPT2 | {"tie_embeddings": False, "head_bias": True},
    "grouped queries": {"n_kv_heads": 1},
    "qk norm": {"qk_norm": True},
    "gemma": {
        "norm": "gemma_rmsnorm",
        "norm_slots": ("attn_in", "attn_out", "mlp_in", "mlp_out"),
        "activation": "gelu_tanh",
        "logit_softcap": 30.0,
        "embed_scale": 8.0,
    },
    "neox": NORMED | {"parallel_residual": True, "gated": False, "activation": "gelu", "tie_embeddings": False},
    "2017": NORMED | {"norm_slots": ("attn_res", "mlp_res"), "final_norm": False, "gated": False, "activation": "relu"},
    "relu2": {"gated": False, "activation": "relu2"},
    "window": {
        "layer_types": ("near", "near", "far"),
        "layer_specs": {"near": LayerSpec(window=24), "far": LayerSpec()},
    },
    "dropout": GPT2 | {"dropout": 0.1, "mlp_dropout": 0.1},
    "pattern dropout": {"attn_dropout": 0.1},
    "value embeddings": {
        "layer_types": ("far", "far", "rich"),
        "layer_specs": {"far": LayerSpec(), "rich": LayerSpec(value_embed=True)},
    },
    "wide": {"d_mlp": 1024},
    "no layers to speak of": {"d_mlp": 32},
}


def configure(shape: dict[str, Any], **train: Any) -> TrainConfig:
    shape = {"d_model": 64, "n_layers": 3, "n_heads": 4, "norm_slots": ("attn_in", "mlp_in")} | shape
    if "layer_specs" in shape:
        shape = shape | {"positions": "none"}
    return make_config(model=shape, train={"batch_size": ROWS, "context": CONTEXT} | train)


def held_at_most(config: TrainConfig, *, recompute: bool = False) -> int:
    """The most bytes that tensors hold in the second step, when the optimiser has its state."""
    settings = config.train
    model = build_model(config.model.build(vocab_size=VOCAB, context=settings.context))
    compute = ComputeModel(model, getattr(torch, settings.dtype))
    compute.model.train()
    if recompute:
        recompute_blocks(compute.model)
    state = TrainState(model, build_optimiser(model, settings))
    ids = np.random.default_rng(0).integers(0, VOCAB, (ROWS, settings.context + 1))
    batch = Batch(np.ascontiguousarray(ids[:, :-1]), np.ascontiguousarray(ids[:, 1:]))
    with LiveBytes([*model.parameters(), *compute.model.parameters()]) as live:
        for _ in range(2):
            live.peak = live.now
            for piece in micro_batches(batch, settings.micro_batch_size, torch.device("cpu")):
                (CAUSAL_LM.loss(compute.model, piece) / batch.ids.size).backward()
                compute.collect()
            state.optimiser.step()
            state.optimiser.zero_grad(set_to_none=True)
            compute.refresh()
    return live.peak


def planned(config: TrainConfig, *, recompute: bool = False) -> int:
    settings = config.train
    rows = settings.micro_batch_size or ROWS
    shape = config.model.build(vocab_size=VOCAB, context=CONTEXT)
    work = Workload(
        shape,
        rows,
        -(-ROWS // rows),
        settings.context,
        getattr(torch, settings.dtype),
        settings.optimiser,
        settings.momentum,
        recompute=recompute,
    )
    moments = [moment for moment in memory_use(work).moments if moment.name != "validation"]
    return max(moment.bytes - moment.terms["process"] - moment.terms.get("fragments", 0) for moment in moments)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", SHAPES)
def test_is_what_a_step_holds(name: str, dtype: str):
    config = configure(SHAPES[name], dtype=dtype)
    assert planned(config) == pytest.approx(held_at_most(config), rel=0.03)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    "optimiser",
    [{"optimiser": "sgd"}, {"optimiser": "sgd", "momentum": 0.9}, {"optimiser": "adamw"}, {"optimiser": "muon"}],
)
def test_pieces_and_optimisers(optimiser: dict[str, Any], dtype: str):
    config = configure(GPT2, dtype=dtype, micro_batch_size=2, **optimiser)
    assert planned(config) == pytest.approx(held_at_most(config), rel=0.03)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_blocks_that_are_computed_again(name: str, dtype: str):
    config = configure(SHAPES[name] | {"n_layers": 8}, dtype=dtype)
    assert planned(config, recompute=True) == pytest.approx(held_at_most(config, recompute=True), rel=0.05)


@pytest.mark.parametrize("name", SHAPES)
def test_counts_weights_without_making_them(name: str):
    shape = configure(SHAPES[name]).model.build(vocab_size=VOCAB, context=CONTEXT)
    assert count_weights(shape).total == count_parameters(build_model(shape, seed=None))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("optimiser", ["adamw", "muon"])
def test_an_update_of_much_weight_and_little_text(optimiser: str, dtype: str):
    """Where the optimiser's own work is the fullest moment."""
    config = configure({"d_model": 256, "n_layers": 4}, dtype=dtype, micro_batch_size=1, optimiser=optimiser, context=8)
    assert planned(config) == pytest.approx(held_at_most(config), rel=0.06)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma", "relu2", "2017", "wide"])
def test_what_is_made_again_is_not_kept(name: str, dtype: str, monkeypatch: pytest.MonkeyPatch):
    config = configure(SHAPES[name], dtype=dtype)
    before = held_at_most(config)
    for module in (mlp, activations):
        monkeypatch.setattr(module, "LARGE", 1)
    held = held_at_most(config)
    assert held < before or name == "2017"
    assert planned(config) == pytest.approx(held, rel=0.03)
