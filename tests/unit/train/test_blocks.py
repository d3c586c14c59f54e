"""Blocks computed twice, and compiled: the same numbers."""

import copy
from pathlib import Path

import pytest
import torch

from langwright.model.cache import KVCache
from langwright.train import spread
from langwright.train.blocks import compile_blocks, recompute_blocks
from langwright.train.compute import ComputeModel
from langwright.train.loop import accumulate
from langwright.train.objective import CAUSAL_LM
from langwright.train.run import train
from tests.unit.train.tiny import DROPOUT, make_batch, make_config, make_model, prepare_text, quiet


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_recomputed_gradients_are_the_same_bit_for_bit(dtype: torch.dtype):
    """With dropout as well: the second time draws the masks of the first."""
    plain, twice = (make_model(make_config(model=DROPOUT)) for _ in range(2))
    losses = []
    for model, doubled in ((plain, False), (twice, True)):
        compute = ComputeModel(model, dtype)
        if doubled:
            recompute_blocks(compute.model)
        torch.manual_seed(1)
        losses.append(accumulate(compute, make_batch(), CAUSAL_LM, 3))
    assert losses[0] == losses[1]
    for one, other in zip(plain.parameters(), twice.parameters(), strict=True):
        assert one.grad is not None
        assert other.grad is not None
        assert torch.equal(one.grad, other.grad)


def test_recomputing_keeps_less_for_the_backward():
    """What autograd holds on to between forward and backward."""
    held = []
    for doubled in (False, True):
        model = make_model(make_config(model={"d_model": 32, "n_layers": 4}))
        if doubled:
            recompute_blocks(model)
        kept: dict[int, int] = {}

        def keep(tensor: torch.Tensor, kept: dict[int, int] = kept) -> torch.Tensor:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        parameters = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            model(torch.from_numpy(make_batch(rows=32).ids)).sum()
        held.append(sum(size for place, size in kept.items() if place not in parameters))
    assert held[1] < held[0] / 2


def test_recomputed_blocks_generate_with_a_cache():
    model = make_model(make_config()).eval()
    expected = model(torch.arange(8)[None])
    recompute_blocks(model)
    with torch.no_grad():
        cache = KVCache.growing(model.config)
        found = torch.cat([model(torch.arange(8)[None, start : start + 4], cache=cache) for start in (0, 4)], 1)
    torch.testing.assert_close(found, expected)


def test_a_recomputed_model_can_be_copied():
    """The copy computes with its own weights."""
    model = make_model(make_config())
    expected = model(torch.arange(8)[None])
    copied = copy.deepcopy(model)
    recompute_blocks(copied)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    torch.testing.assert_close(copied(torch.arange(8)[None]), expected)


def test_a_run_with_recomputed_blocks_is_the_run_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    data, called = prepare_text(tmp_path), []
    monkeypatch.setattr(spread, "recompute_blocks", lambda model: called.append(recompute_blocks(model)))
    results = []
    for doubled in (False, True):
        config = make_config(model=DROPOUT, parallel={"checkpoint_activations": doubled})
        results.append(train(config, data, tmp_path / str(doubled), console=quiet()))
        assert len(called) == doubled
    assert results[0].val_bpb == results[1].val_bpb
    weights = [(result.checkpoint / "model.safetensors").read_bytes() for result in results]
    assert weights[0] == weights[1]


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("doubled", [False, True])
def test_compiled_blocks_give_the_same_gradients(doubled: bool):
    plain, compiled = (make_model(make_config()) for _ in range(2))
    expected = accumulate(ComputeModel(plain, torch.float32), make_batch(), CAUSAL_LM, None)
    compile_blocks(compiled)
    if doubled:
        recompute_blocks(compiled)
    found = accumulate(ComputeModel(compiled, torch.float32), make_batch(), CAUSAL_LM, None)
    assert found == pytest.approx(expected, rel=1e-5)
    for one, other in zip(plain.parameters(), compiled.parameters(), strict=True):
        torch.testing.assert_close(other.grad, one.grad, rtol=1e-4, atol=1e-5)
