"""Adapters on a model: what they change, what they leave alone, what is trained."""

import copy
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from langwright.core.errors import UserError
from langwright.model.adapters import (
    AdapterConfig,
    LoRALinear,
    adapter_config,
    adapter_parameters,
    add_adapters,
    has_adapters,
    quantise_base,
)
from langwright.model.checkpoint.save import save_model
from tests.unit.model.adapters.small import GPT2, KINDS, config, gap, make, shake, some_ids

EVERY = pytest.mark.parametrize("kind", KINDS)


def layer(kind: str, *, bias: bool = True, **changes: Any) -> LoRALinear:
    """One adapted layer, 12 -> 10, with an update in it."""
    torch.manual_seed(3)
    adapted = LoRALinear.from_base(
        nn.Linear(12, 10, bias=bias), config(**KINDS[kind], **changes), torch.Generator().manual_seed(0)
    )
    with torch.no_grad():
        for parameter in (adapted.lora_a, adapted.lora_b, adapted.magnitude):
            if parameter is not None:
                parameter.add_(torch.randn_like(parameter) * 0.3)
    return adapted


@EVERY
@pytest.mark.parametrize("bias", [True, False])
def test_the_forward_is_the_formula(kind: str, bias: bool):
    adapted, x = layer(kind, bias=bias), torch.randn(3, 5, 12)
    scale = {"lora": 6 / 4, "rslora": 6 / 2, "dora": 6 / 4}[kind]
    weight = adapted.base.weight + scale * adapted.lora_b @ adapted.lora_a
    if adapted.magnitude is not None:
        weight = weight * (adapted.magnitude / weight.norm(dim=1))[:, None]
    torch.testing.assert_close(adapted(x), F.linear(x, weight, adapted.base.bias), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(adapted(x[0, 0]), adapted(x)[0, 0], atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(adapted.merged_weight(), weight.detach(), atol=1e-6, rtol=1e-5)


def test_doras_norm_gets_no_gradient():
    adapted, x = layer("dora"), torch.randn(7, 12)
    direction = torch.randn(7, 10)
    (adapted(x) * direction).sum().backward()
    a, b = (each.detach().clone().requires_grad_() for each in (adapted.lora_a, adapted.lora_b))
    assert adapted.magnitude is not None
    m = adapted.magnitude.detach().clone().requires_grad_()
    weight = adapted.base.weight.detach() + 1.5 * b @ a
    (F.linear(x, (m / weight.detach().norm(dim=1))[:, None] * weight) * direction).sum().backward()
    for found, expected in ((adapted.lora_a, a), (adapted.lora_b, b), (adapted.magnitude, m)):
        torch.testing.assert_close(found.grad, expected.grad, atol=1e-5, rtol=1e-4)


@EVERY
def test_dropout_is_on_what_the_adapter_reads_and_only_in_training(kind: str):
    adapted, x = layer(kind, dropout=0.5), torch.randn(64, 12)
    plain = layer(kind)
    torch.testing.assert_close(adapted.eval()(x), plain.eval()(x))
    adapted.train()
    torch.manual_seed(1)
    found = adapted(x)
    torch.manual_seed(1)
    read = F.dropout(x, 0.5)
    update = F.linear(read, plain.config.scale * plain.lora_b @ plain.lora_a)
    if plain.magnitude is None:
        expected = plain.base(x) + update
    else:
        ratio = plain.magnitude / plain.row_norms()
        expected = plain.base(x) + (ratio - 1) * F.linear(read, plain.base.weight) + ratio * update
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(found, plain(x))


@EVERY
@pytest.mark.parametrize(
    "changes", [{}, GPT2, {"tie_embeddings": False, "qkv_bias": True}], ids=["llama", "gpt2", "qkv"]
)
def test_fresh_adapters_change_nothing(kind: str, changes: dict[str, Any]):
    plain = make(**changes)
    model = add_adapters(copy.deepcopy(plain), config(**KINDS[kind]), seed=2)
    assert gap(plain, model) < 1e-5
    assert gap(plain, shake(model)) > 1e-2


def test_the_seed_draws_the_adapters():
    one, same, other = (add_adapters(make(), config(), seed) for seed in (3, 3, 4))
    a, b, c = ([p for name, p in adapter_parameters(m).items() if name.endswith("lora_a")] for m in (one, same, other))
    assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
    assert not any(torch.equal(x, y) for x, y in zip(a, c, strict=True))
    assert all(float(x.detach().abs().max()) <= x.shape[1] ** -0.5 for x in a)


@EVERY
@pytest.mark.parametrize("tied", [True, False])
def test_only_adapters_get_gradients(kind: str, tied: bool):
    model = shake(add_adapters(make(tie_embeddings=tied), config(**KINDS[kind])))
    trained = adapter_parameters(model)
    assert len(trained) == 2 * 7 * (3 if kind == "dora" else 2)
    model(some_ids(model)).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == (name in trained), name
        assert (parameter.grad is not None) == (name in trained), name
        if name in trained:
            assert parameter.grad is not None
            assert float(parameter.grad.abs().sum()) > 0, name
    if tied:
        assert model.head.proj.weight is model.backbone.embed.tokens.weight


def test_a_classifiers_head_is_trained_beside_them():
    model = add_adapters(make("sequence_classifier", n_labels=3), config(train_head=True, targets=("q_proj", "v_proj")))
    assert sorted({name.rpartition(".")[0] for name in adapter_parameters(model)}) == [
        *(f"backbone.layers.{i}.attn.{name}" for i in (0, 1) for name in ("q_proj", "v_proj")),
        "head.proj",
    ]
    assert all(parameter.requires_grad for parameter in model.head.parameters())
    frozen = add_adapters(make("sequence_classifier"), config())
    assert not any(parameter.requires_grad for parameter in frozen.head.parameters())


def test_targets_are_those_there_are():
    model = add_adapters(make(), config(targets=("v_proj", "q_proj")))
    found = adapter_config(model)
    assert found is not None
    assert found.targets == ("q_proj", "v_proj")
    assert not isinstance(model.get_submodule("backbone.layers.0.mlp.up_proj"), LoRALinear)
    every = adapter_config(add_adapters(make(**GPT2), config()))
    assert every is not None
    assert every.targets == ("q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj")
    assert not has_adapters(make())
    assert adapter_config(make()) is None
    assert not adapter_parameters(make())


def test_what_cannot_be_adapted_says_why():
    for values, message in (
        ({"targets": ("c_attn",)}, r"targets: no projection is called 'c_attn'; there are q_proj, .*down_proj"),
        ({"rank": 0}, "rank: .*greater than 0"),
        ({"alpha": 0}, "alpha"),
        ({"dropout": 1.0}, "dropout"),
        ({"ranks": 3}, "ranks: unknown key"),
    ):
        with pytest.raises(UserError, match=message):
            AdapterConfig.parse(values, "adapter")
    for changes, settings, message in (
        (GPT2, {"targets": ("gate_proj",)}, "this gpt2 model has no gate_proj; it has q_proj, k_proj"),
        ({}, {"rank": 33}, r"rank: 33 is larger than the model's width \(32\)"),
        ({}, {"train_head": True}, "only a classifier's head .* this is a causal_lm head"),
    ):
        model = make(**changes)
        with pytest.raises(UserError, match=message):
            add_adapters(model, config(**settings))
        assert not has_adapters(model)
        assert all(parameter.requires_grad for parameter in model.parameters())
    with pytest.raises(ValueError, match="has adapters already"):
        add_adapters(add_adapters(make(), config()), config())


def test_only_a_plain_model_is_saved_as_one(tmp_path):
    for model in (add_adapters(make(), config()), quantise_base(make(), "int8")):
        with pytest.raises(ValueError, match="has adapters or a quantised base; use save_adapter"):
            save_model(model, tmp_path)
    assert not list(tmp_path.iterdir())


@EVERY
def test_a_bfloat16_copy_is_trained(kind: str):
    """What `train.compute` does: a deep copy in bfloat16 runs, and its adapters have gradients close to float32's."""
    model = shake(add_adapters(make(), config(**KINDS[kind])))
    rounded = copy.deepcopy(model).to(torch.bfloat16)
    for each in (model, rounded):
        each(some_ids(each)).float().logsumexp(-1).sum().backward()
    for (name, exact), found in zip(model.named_parameters(), rounded.parameters(), strict=True):
        assert found.dtype == torch.bfloat16
        assert (found.grad is None) == (exact.grad is None), name
        if exact.grad is not None and found.grad is not None:
            off = (found.grad.float() - exact.grad).norm() / exact.grad.norm()
            assert off < 0.1, (name, off)


@EVERY
def test_adapters_of_a_bfloat16_base_are_float32(kind: str):
    model = add_adapters(make().to(torch.bfloat16), config(**KINDS[kind]))
    assert {parameter.dtype for parameter in adapter_parameters(model).values()} == {torch.float32}
    out = shake(model)(some_ids(model))
    assert out.dtype == torch.bfloat16
    out.float().square().sum().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in adapter_parameters(model).values())
