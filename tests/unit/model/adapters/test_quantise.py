"""Frozen weights in 8 and 4 bits: how far they are off, and that adapters train through them."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from langwright.core.errors import UserError
from langwright.model.adapters import adapter_parameters, add_adapters, quantise_base
from langwright.model.adapters.quantise import LEVELS, Kind, QuantisedLinear
from tests.unit.model.adapters.small import GPT2, KINDS, config, gap, make, shake, some_ids

BITS = pytest.mark.parametrize("bits", LEVELS)
RELATIVE: dict[Kind, float] = {"int8": 0.01, "int4": 0.09}
"""Root mean square of what is lost of normal weights: a step is 1/255 of 6 sigma, or 1/15 of 4."""


def linear(width: int = 96, rows: int = 64, **options) -> nn.Linear:
    torch.manual_seed(4)
    return nn.Linear(width, rows, **options)


@BITS
@pytest.mark.parametrize("spread", ["uniform", "normal", "outliers", "shifted", "constant"])
def test_no_weight_is_off_by_more_than_half_a_step(bits: Kind, spread: str):
    base = linear()
    with torch.no_grad():
        weight = base.weight
        if spread != "uniform":
            weight.normal_(0, 0.3)
        if spread == "outliers":
            weight[::7, ::11] *= 50
        if spread == "shifted":
            weight += 3
        if spread == "constant":
            weight[:] = -0.7
            weight[0] = 0
    small = QuantisedLinear.from_linear(base, bits)
    assert small.weight.shape == weight.shape
    weight = weight.detach().view(64, small.step.shape[1], -1)
    off = (small.weight.view_as(weight) - weight).abs()
    assert bool((off <= small.step.float()[..., None] * 0.501 + 1e-6 * weight.abs()).all())
    if spread == "normal":
        assert float(off.square().mean().sqrt() / 0.3) < RELATIVE[bits]
        span = weight.amax(-1) - weight.amin(-1)
        assert bool((small.step <= span / LEVELS[bits] * 1.03).all())


@BITS
def test_it_is_small(bits: Kind):
    small = QuantisedLinear.from_linear(linear(), bits)
    assert small.codes.dtype == torch.uint8
    assert small.codes.nbytes == 64 * 96 // (1 if bits == "int8" else 2)
    assert small.step.nbytes == small.floor.nbytes == 2 * 64 * (1 if bits == "int8" else 3)
    assert (small.out_features, small.in_features) == (64, 96)
    assert [*dict(small.named_parameters())] == ["bias"]


@BITS
@pytest.mark.parametrize("bias", [True, False])
def test_forward_and_backward_are_those_of_the_dequantised_weight(bits: Kind, bias: bool):
    small = QuantisedLinear.from_linear(linear(bias=bias), bits)
    x = torch.randn(2, 5, 96, dtype=torch.float32, requires_grad=True)
    y = x.detach().clone().requires_grad_()
    direction = torch.randn(2, 5, 64)
    found, expected = small(x), F.linear(y, small.weight, small.bias)
    torch.testing.assert_close(found, expected, atol=0, rtol=0)
    (found * direction).sum().backward()
    (expected * direction).sum().backward()
    torch.testing.assert_close(x.grad, y.grad)
    assert small.bias is None or small.bias.grad is None


@BITS
def test_nothing_of_the_weight_is_kept_for_backward(bits: Kind):
    small, kept = QuantisedLinear.from_linear(linear(), bits), []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor.shape), lambda nothing: nothing):
        small(torch.randn(3, 96, requires_grad=True))
    assert not kept


@BITS
def test_a_cast_changes_no_weight(bits: Kind):
    small = QuantisedLinear.from_linear(linear(), bits)
    for dtype in (torch.float32, torch.bfloat16):
        cast = copy.deepcopy(small).to(dtype)
        assert cast.codes.dtype == torch.uint8
        assert cast.step.dtype == cast.floor.dtype == dtype
        assert torch.equal(cast.weight, small.weight)
    torch.testing.assert_close(small.dequantise(torch.bfloat16).float(), small.weight, atol=0, rtol=2**-8)


@BITS
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("changes", [{}, GPT2], ids=["llama", "gpt2"])
def test_adapters_train_on_it(bits: Kind, kind: str, changes: dict):
    plain = make(**changes)
    small = quantise_base(copy.deepcopy(plain), bits)
    assert 0 < gap(plain, small) < (0.3 if bits == "int8" else 5)
    model = add_adapters(copy.deepcopy(small), config(**KINDS[kind]))
    assert gap(small, model) < 1e-5
    shake(model)(some_ids(model)).square().sum().backward()
    trained = adapter_parameters(model)
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == (name in trained), name


def test_only_projections_are_quantised():
    model = quantise_base(make(), "int8")
    kinds = {name for name, module in model.named_modules() if isinstance(module, QuantisedLinear)}
    assert len(kinds) == 14
    assert all(name.startswith("backbone.layers.") for name in kinds)


def test_what_cannot_be_quantised_says_why():
    model = make(d_mlp=48)
    with pytest.raises(UserError, match=r"0\.mlp\.down_proj reads 48 features, which int4 .* groups of 32; use int8"):
        quantise_base(model, "int4")
    assert not any(isinstance(module, QuantisedLinear) for module in model.modules())
    with pytest.raises(ValueError, match="not a multiple"):
        QuantisedLinear.from_linear(linear(33), "int4")
    for bad in (add_adapters(make(), config()), quantise_base(make(), "int8")):
        with pytest.raises(ValueError, match="quantise a plain model, before adapters are added"):
            quantise_base(bad, "int8")
