"""What decays and what does not."""

from torch import nn
from torch.optim import SGD, AdamW

from langwright.model.adapters import AdapterConfig, add_adapters
from langwright.train.optimiser import build_optimiser, parameter_groups, set_lr
from tests.unit.train.tiny import make_config, make_model

LAYER_MATRICES = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


def names_of(model: nn.Module, group: dict) -> set[str]:
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {names[id(parameter)] for parameter in group["params"]}


def groups_of(shape: dict | None = None, **settings: object) -> dict[str, tuple[set[str], dict]]:
    """The names in every group and the group, under the kind of its first parameter."""
    config = make_config(model=shape or {}, train={"weight_decay": 0.1, **settings})
    model = make_model(config)
    return {
        kind: (names_of(model, group), group)
        for group in parameter_groups(model, config.train)
        for kind in [_kind(sorted(names_of(model, group))[0], group)]
    }


def _kind(name: str, group: dict) -> str:
    if group["params"][0].ndim == 1:
        return "vectors"
    return "head" if name.startswith("head") else "tables" if "embed" in name else "matrices"


def test_matrices_and_a_tied_head_decay():
    groups = groups_of()
    assert {kind: group["weight_decay"] for kind, (_, group) in groups.items()} == {
        "matrices": 0.1,
        "tables": 0.1,  # tied: it is the head
        "vectors": 0.0,
    }
    assert groups["tables"][0] == {"backbone.embed.tokens.weight"}
    assert {name.split(".")[-2] for name in groups["matrices"][0]} == LAYER_MATRICES


def test_tables_that_are_not_the_head_do_not_decay():
    shape = {"tie_embeddings": False, "positions": "learned", "norm": "layernorm", "qkv_bias": True}
    groups = groups_of(shape)
    assert groups["head"][0] == {"head.proj.weight"}
    assert groups["head"][1]["weight_decay"] == 0.1
    assert groups["tables"][0] == {"backbone.embed.tokens.weight", "backbone.embed.positions.weight"}
    assert groups["tables"][1]["weight_decay"] == 0.0
    assert "backbone.layers.0.attn.q_proj.bias" in groups["vectors"][0]


def test_every_parameter_is_in_one_group_and_frozen_ones_in_none():
    config = make_config()
    model = make_model(config)
    model.backbone.layers[0].requires_grad_(False)
    grouped = [id(p) for group in parameter_groups(model, config.train) for p in group["params"]]
    assert len(grouped) == len(set(grouped))
    assert set(grouped) == {id(p) for p in model.parameters() if p.requires_grad}


def test_muon_takes_the_matrices_of_the_layers_alone():
    groups = groups_of({"tie_embeddings": False}, optimiser="muon", embed_lr_ratio=3.0, head_lr_ratio=0.5)
    assert {kind: group["kind"] for kind, (_, group) in groups.items()} == {
        "matrices": "muon",
        "head": "adamw",
        "tables": "adamw",
        "vectors": "adamw",
    }
    config = make_config(model={"tie_embeddings": False}, train={"optimiser": "muon", "embed_lr_ratio": 3.0})
    optimiser = build_optimiser(make_model(config), config.train)
    set_lr(optimiser, 0.5)
    assert sorted(group["lr"] for group in optimiser.param_groups) == [0.5, 0.5, 0.5, 1.5]


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


def test_adapters_b_has_a_rate_of_its_own():
    """LoRA+."""
    config = make_config(train={"lora_b_lr_ratio": 16.0, "weight_decay": 0.1})
    model = add_adapters(make_model(config), AdapterConfig(rank=2))
    optimiser = build_optimiser(model, config.train)
    set_lr(optimiser, 0.5)
    rates = {
        name.rpartition(".")[2]: (group["lr"], group["weight_decay"])
        for group in optimiser.param_groups
        for name in names_of(model, group)
    }
    assert rates == {"lora_a": (0.5, 0.1), "lora_b": (8.0, 0.1)}
