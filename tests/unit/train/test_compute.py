"""The bfloat16 copy: what it shares with the masters, and what comes back to them."""

import pytest
import torch

from langwright.train.compute import ComputeModel, MasterTable, pick_compute_dtype
from langwright.train.objective import CAUSAL_LM, Piece
from tests.unit.train.tiny import make_batch, make_config, make_model

BF16 = torch.bfloat16


def piece() -> Piece:
    batch = make_batch()
    return Piece(torch.from_numpy(batch.ids), torch.from_numpy(batch.targets))


def test_float32_computes_on_the_master_itself():
    master = make_model(make_config())
    compute = ComputeModel(master, torch.float32)
    assert compute.model is master
    CAUSAL_LM.loss(compute.model, piece()).backward()
    gradient = master.backbone.embed.tokens.weight.grad
    compute.collect()
    compute.refresh()
    assert master.backbone.embed.tokens.weight.grad is gradient


@pytest.mark.parametrize("tied", [True, False])
def test_copy_is_the_rounded_master_and_leaves_it_alone(tied: bool):
    master = make_model(make_config(model={"tie_embeddings": tied}))
    compute = ComputeModel(master, BF16)
    masters = dict(master.named_parameters(remove_duplicate=False))
    copies = dict(compute.model.named_parameters())
    assert "head.proj.weight" in copies
    assert not any("embed" in name for name in copies)
    for name, parameter in copies.items():
        assert parameter.dtype == BF16
        assert torch.equal(parameter, masters[name].to(BF16))
    assert {parameter.dtype for parameter in master.parameters()} == {torch.float32}
    with torch.no_grad():
        for parameter in master.parameters():
            parameter.add_(1.0)
    compute.refresh()
    assert all(torch.equal(parameter, masters[name].to(BF16)) for name, parameter in copies.items())


@pytest.mark.parametrize("tied", [True, False])
def test_gradients_are_close_to_float32_and_add_up(tied: bool):
    shape = {"tie_embeddings": tied, "positions": "learned", "norm": "layernorm", "norm_bias": True, "o_bias": True}
    plain, master = (make_model(make_config(model=shape)) for _ in range(2))
    CAUSAL_LM.loss(plain, piece()).backward()
    compute = ComputeModel(master, BF16)
    for _ in range(2):
        CAUSAL_LM.loss(compute.model, piece()).backward()
        compute.collect()
    for (name, expected), found in zip(plain.named_parameters(), master.parameters(), strict=True):
        assert expected.grad is not None
        assert found.grad is not None
        assert found.grad.dtype == torch.float32
        off = (found.grad / 2 - expected.grad).norm() / expected.grad.norm()
        assert off < 0.03, (name, off)
    assert all(parameter.grad is None for parameter in compute.model.parameters())


def test_table_adds_up_in_float32():
    """Four thousand times the same token: bfloat16 alone would stop growing at a few hundred."""
    table = torch.nn.Embedding(2, 3)
    ids = torch.zeros(64, 64, dtype=torch.long)
    rows = MasterTable(table, BF16)(ids)
    assert rows.dtype == BF16
    rows.float().sum().backward()
    assert table.weight.grad is not None
    assert table.weight.grad[0].tolist() == [4096.0] * 3


def test_dropout_draws_the_same_masks_whatever_the_copy():
    config = make_config(model={"dropout": 0.5})
    compute = ComputeModel(make_model(config), BF16)
    compute.model.train()
    losses = []
    for _ in range(2):
        torch.manual_seed(3)
        losses.append(CAUSAL_LM.loss(compute.model, piece()).item())
    assert losses[0] == losses[1]


def test_dtype_by_name():
    cpu = torch.device("cpu")
    assert pick_compute_dtype("float32", cpu) == torch.float32
    assert pick_compute_dtype("bfloat16", cpu) == BF16
    assert pick_compute_dtype("auto", cpu) in (torch.float32, BF16)
    assert pick_compute_dtype("auto", torch.device("mps")) == torch.float32
