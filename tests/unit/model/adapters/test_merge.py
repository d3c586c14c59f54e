"""Adapters folded into the weights: the same function in a plain model."""

import copy
import math

import pytest
import torch
from torch import nn

from langwright.model.adapters import add_adapters, fuse, has_adapters, merge_error, quantise_base
from langwright.model.adapters.merge import fold
from langwright.model.checkpoint.load import load_model
from langwright.model.checkpoint.save import save_model
from tests.unit.model.adapters.small import GPT2, KINDS, config, gap, make, shake, some_ids

EVERY = pytest.mark.parametrize("kind", KINDS)


@EVERY
@pytest.mark.parametrize(
    "changes", [{}, GPT2, {"tie_embeddings": False, "mlp_bias": True}], ids=["llama", "gpt2", "bias"]
)
def test_merged_is_unmerged(kind: str, changes: dict):
    plain = make(**changes)
    model = shake(add_adapters(copy.deepcopy(plain), config(**KINDS[kind], dropout=0.3))).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    fused = fuse(model)
    assert merge_error(model, fused, some_ids(model)) < 1e-5
    assert gap(fused.eval(), plain) > 1e-2
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not has_adapters(fused)
    assert [*dict(fused.named_parameters())] == [*dict(plain.named_parameters())]
    assert all(parameter.requires_grad for parameter in fused.parameters())
    assert not {id(p) for p in fused.parameters()} & {id(p) for p in model.parameters()}
    projection = fused.get_submodule("backbone.layers.0.mlp.up_proj")
    assert isinstance(projection, nn.Linear)
    assert (projection.out_features, projection.in_features) == projection.weight.shape


def test_tied_embeddings_stay_tied(tmp_path):
    model = shake(add_adapters(make(), config()))
    fused = fuse(model)
    assert fused.head.proj.weight is fused.backbone.embed.tokens.weight
    assert torch.equal(fused.backbone.embed.tokens.weight, model.backbone.embed.tokens.weight)
    save_model(fused, tmp_path)
    assert gap(load_model(tmp_path), fused) == 0


@EVERY
def test_a_bfloat16_model_is_merged_in_float32_and_rounded_once(kind: str):
    exact = shake(add_adapters(make().to(torch.bfloat16), config(**KINDS[kind])))
    name = "backbone.layers.1.attn.o_proj"
    expected = exact.get_submodule(name).merged_weight()
    fused = fuse(exact)
    assert {parameter.dtype for parameter in fused.parameters()} == {torch.float32}
    torch.testing.assert_close(fused.get_parameter(f"{name}.weight").detach(), expected, atol=1e-6, rtol=1e-6)
    folded = fold(exact)
    assert {parameter.dtype for parameter in folded.parameters()} == {torch.bfloat16}
    assert torch.equal(folded.get_parameter(f"{name}.weight").detach(), expected.to(torch.bfloat16))


@EVERY
@pytest.mark.parametrize("bits", ["int8", "int4"])
def test_a_quantised_base_is_merged_as_it_was_trained(kind: str, bits):
    model = shake(
        add_adapters(quantise_base(make(mlp_bias=True), bits), config(**KINDS[kind], targets=("q_proj", "up_proj")))
    )
    fused = fuse(model)
    assert merge_error(model, fused, some_ids(model)) < 1e-5
    assert type(fused.get_submodule("backbone.layers.0.attn.k_proj")) is nn.Linear
    assert [*dict(fused.named_parameters())] == [*dict(make(mlp_bias=True).named_parameters())]


def test_the_error_is_found():
    model = shake(add_adapters(make(), config()))
    fused = fuse(model)
    with torch.no_grad():
        fused.backbone.layers[1].get_submodule("mlp.down_proj").get_parameter("weight")[0] += 0.01
    assert 1e-4 < merge_error(model, fused, some_ids(model)) < 1
    with torch.no_grad():
        fused.backbone.final_norm.get_parameter("weight")[0] = math.nan
    assert merge_error(model, fused, some_ids(model)) == math.inf
