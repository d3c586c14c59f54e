"""The backward passes by hand against autograd's."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from langwright.model.adapters import AdapterConfig, add_adapters
from langwright.model.config import Activation, ModelConfig, Rope
from langwright.model.kernels import ReluSquared, RMSScale, Rotation, by_hand
from langwright.model.mlp import ACTIVATIONS
from langwright.model.model import build_model
from langwright.model.norm import RMSNorm
from langwright.model.positions import rotary_tables, rotate

DTYPES = [torch.float32, torch.bfloat16]


def rms(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    wide = x.float()
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)).to(x.dtype) * weight


def gradients(function: Callable[..., Tensor], *inputs: Tensor) -> list[Tensor]:
    """The output, then a gradient by each input, for one fixed direction."""
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    out = function(*leaves)
    out.backward(torch.linspace(-1, 1, out.numel()).view(out.shape).to(out.dtype))
    found = [leaf.grad for leaf in leaves]
    assert all(grad is not None and grad.dtype == x.dtype for grad, x in zip(found, inputs, strict=True))
    return [out.detach(), *[grad for grad in found if grad is not None]]


def close(ours: list[Tensor], plain: list[Tensor], dtype: torch.dtype) -> None:
    assert torch.equal(ours[0], plain[0])  # forward is the same, bit for bit
    tolerance = 2e-6 if dtype == torch.float32 else 2e-2
    for one, other in zip(ours[1:], plain[1:], strict=True):
        assert (one - other).abs().max() <= tolerance * other.abs().max()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(16,), (3, 16), (2, 5, 3, 16)])
def test_rms_norm_has_autograds_gradients(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(shape).to(dtype), torch.randn(16).to(dtype)
    ours = gradients(lambda x, weight: RMSScale.apply(x, weight, 1e-6), x, weight)
    close(ours, gradients(lambda x, weight: rms(x, weight, 1e-6), x, weight), dtype)


@pytest.mark.parametrize("plus_one", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_norms_module_is_the_same_with_and_without_gradients(plus_one: bool, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    norm = RMSNorm(16, 1e-5, plus_one).to(dtype)
    torch.nn.init.normal_(norm.weight)
    x = torch.randn(4, 16).to(dtype)
    with torch.no_grad():
        assert torch.equal(norm(x), norm(x.clone().requires_grad_()))
    assert torch.equal(norm(x).detach(), norm(x.clone().requires_grad_()).detach())
    with torch.no_grad():
        plain = norm(x)
    assert torch.equal(plain, norm(x).detach())


@pytest.mark.parametrize("dtype", DTYPES)
def test_relu_squared_has_autograds_gradients(dtype: torch.dtype) -> None:
    x = torch.linspace(-2, 2, 33).to(dtype)  # zero is among them
    close(gradients(ReluSquared.apply, x), gradients(lambda x: F.relu(x).square(), x), dtype)
    with torch.no_grad():
        assert torch.equal(ACTIVATIONS["relu2"](x), ReluSquared.apply(x))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("fraction", [1.0, 0.5])
def test_rotation_has_autograds_gradients(dtype: torch.dtype, fraction: float) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 5, 3, 8).transpose(1, 2).to(dtype)  # (B, H, T, E), laid out as attention has it
    cos, sin = rotary_tables(Rope(theta=100.0, fraction=fraction), 8, torch.tensor([[0, 1, 2, 5, 9]]), 10)
    with torch.no_grad():
        plain = rotate(x, cos, sin)
    ours = gradients(lambda x: rotate(x, cos, sin), x)
    tolerance = 1e-6 if dtype == torch.float32 else 2e-2
    assert (ours[0] - plain).abs().max() <= tolerance * plain.abs().max()
    assert (rotate(plain, cos, -sin) - x).abs().max() <= tolerance * x.abs().max()
    # The gradient of a rotation is the direction, turned back.
    turned = rotate(torch.linspace(-1, 1, x.numel()).view(x.shape).to(dtype), cos, -sin)
    assert (ours[1] - turned).abs().max() <= tolerance


def test_second_derivatives_are_autograds() -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(3, 4), torch.randn(4)
    cos, sin = torch.randn(2, 1, 2).repeat(1, 1, 2)  # (1, 4) each, both halves alike as in the rotary tables

    def swapped(x: Tensor) -> Tensor:
        first, second = x.chunk(2, dim=-1)
        return torch.cat((-second, first), dim=-1)

    def penalty(function: Callable[..., Tensor]) -> list[Tensor]:
        leaf, scale = x.clone().requires_grad_(), weight.clone().requires_grad_()
        grads = torch.autograd.grad(function(leaf, scale).square().sum(), (leaf, scale), create_graph=True)
        return list(torch.autograd.grad(sum(grad.square().sum() for grad in grads), (leaf, scale)))

    pairs: list[tuple[Callable[..., Tensor], Callable[..., Tensor]]] = [
        (lambda x, w: RMSScale.apply(x, w, 1e-6), lambda x, w: rms(x, w, 1e-6)),
        (lambda x, w: ReluSquared.apply(x * w), lambda x, w: F.relu(x * w).square()),
        (lambda x, w: Rotation.apply(x, cos, sin) * w, lambda x, w: (x * cos + swapped(x) * sin) * w),
    ]
    for ours, plain in pairs:
        for one, other in zip(penalty(ours), penalty(plain), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("adapted", [False, True])
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("activation", ["gelu", "gelu_tanh", "quick_gelu", "silu", "relu2", "relu"])
def test_an_mlp_that_makes_again_is_the_same(
    activation: Activation, gated: bool, adapted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Values, gradients and second derivatives, with and without adapters."""
    torch.manual_seed(0)
    shape = {"d_model": 8, "d_head": 4, "n_layers": 1, "n_heads": 2, "n_kv_heads": 2, "d_mlp": 16, "vocab_size": 9}
    config = ModelConfig(family="langwright", max_positions=4, activation=activation, gated=gated, **shape)
    model = build_model(config)
    if adapted:
        add_adapters(model, AdapterConfig(rank=2))
    mlp, x = model.backbone.layers[0].mlp, torch.randn(2, 4, 8)
    weights = [each for each in mlp.parameters() if each.requires_grad]
    for weight in weights:
        weight.data.normal_()

    def results() -> list[Tensor]:
        leaf = x.clone().requires_grad_()
        out = mlp(leaf)
        first = torch.autograd.grad(out.square().sum(), [leaf, *weights], create_graph=True)
        second = torch.autograd.grad(sum(each.square().sum() for each in first), [leaf, *weights])
        return [out, *first, *second]

    plain = results()
    monkeypatch.setattr("langwright.model.mlp.LARGE", 1)
    for ours, theirs in zip(results(), plain, strict=True):
        assert torch.equal(ours, theirs)


def test_by_hand_only_where_gradients_are_wanted() -> None:
    x = torch.ones(2)
    assert by_hand(x)
    with torch.no_grad():
        assert not by_hand(x)
    assert not by_hand(torch.ones(2, device="meta"))
    assert Rotation.turn(torch.ones(1, 1, 1, 2), torch.zeros(2), torch.ones(2), 1).tolist() == [[[[-1.0, 1.0]]]]
