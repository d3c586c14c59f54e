"""What decays and what does not."""

from torch import nn
from torch.optim import SGD, AdamW

from langwright.train.optimiser import build_optimiser, decay_groups, set_lr
from tests.unit.train.tiny import make_config, make_model

LAYER_MATRICES = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


def names_of(model: nn.Module, group: dict) -> set[str]:
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {names[id(parameter)] for parameter in group["params"]}


def test_matrices_and_a_tied_head_decay():
    model = make_model(make_config())
    decayed, kept = decay_groups(model, 0.1)
    assert (decayed["weight_decay"], kept["weight_decay"]) == (0.1, 0.0)
    assert "backbone.embed.tokens.weight" in names_of(model, decayed)
    matrices = {name.split(".")[-2] for name in names_of(model, decayed)} - {"tokens"}
    assert matrices == LAYER_MATRICES
    assert all(parameter.ndim == 1 for parameter in kept["params"])


def test_tables_that_are_not_the_head_do_not_decay():
    shape = {"tie_embeddings": False, "positions": "learned", "norm": "layernorm", "qkv_bias": True}
    model = make_model(make_config(model=shape))
    decayed, kept = (names_of(model, group) for group in decay_groups(model, 0.1))
    assert "head.proj.weight" in decayed
    assert {"backbone.embed.tokens.weight", "backbone.embed.positions.weight"} <= kept
    assert "backbone.layers.0.attn.q_proj.bias" in kept


def test_every_parameter_is_in_one_group_and_frozen_ones_in_none():
    model = make_model(make_config())
    model.backbone.layers[0].requires_grad_(False)
    grouped = [id(p) for group in decay_groups(model, 0.1) for p in group["params"]]
    assert len(grouped) == len(set(grouped))
    assert set(grouped) == {id(p) for p in model.parameters() if p.requires_grad}


def test_settings_reach_the_optimiser():
    config = make_config(train={"betas": [0.8, 0.9], "eps": 1e-6, "weight_decay": 0.3})
    adamw = build_optimiser(make_model(config), config.train)
    assert isinstance(adamw, AdamW)
    assert adamw.defaults["betas"] == (0.8, 0.9)
    assert adamw.defaults["eps"] == 1e-6
    config = make_config(train={"optimiser": "sgd", "momentum": 0.5, "weight_decay": 0.0})
    sgd = build_optimiser(make_model(config), config.train)
    assert isinstance(sgd, SGD)
    assert sgd.defaults["momentum"] == 0.5
    set_lr(sgd, 0.25)
    assert {group["lr"] for group in sgd.param_groups} == {0.25}
