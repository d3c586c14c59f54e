"""`ModelConfig`: what contradicts itself is refused with a reason."""

import pytest

from langwright.core.errors import UserError
from langwright.model.config import LayerSpec, ModelConfig, Rope
from langwright.model.flops import forward_flops, matmul_parameters, training_flops

TINY = {
    "family": "langwright",
    "d_model": 8,
    "n_layers": 4,
    "n_heads": 4,
    "n_kv_heads": 2,
    "d_head": 2,
    "d_mlp": 16,
    "vocab_size": 11,
    "max_positions": 32,
}


def parse(**changes) -> ModelConfig:
    return ModelConfig.parse(TINY | changes, "test")


def test_layers_are_full_unless_said():
    assert parse().layer_types == ("full",) * 4


def test_frozen_and_replaceable():
    config = parse()
    with pytest.raises(ValueError, match="frozen"):
        config.d_model = 9
    assert config.replace(d_mlp=5).d_mlp == 5
    with pytest.raises(ValueError, match="greater than 0"):
        config.replace(d_mlp=0)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"n_kv_heads": 3}, "must divide n_heads"),
        ({"layer_types": ("full",)}, "names 1 layers, n_layers is 4"),
        ({"layer_types": ("full", "full", "full", "wide")}, "'wide', which layer_specs does not describe"),
        ({"layer_specs": {"full": LayerSpec()}}, "exactly when positions is 'rotary'"),
        ({"positions": "learned"}, "exactly when positions is 'rotary'"),
        ({"d_head": 3}, "even number of rotated dimensions"),
        ({"layer_specs": {"full": LayerSpec(rope=Rope(fraction=0.5))}}, "even number of rotated dimensions"),
        ({"positions": "sinusoidal", "d_model": 7, "layer_specs": {"full": LayerSpec()}}, "even d_model"),
        ({"d_model": 0}, "greater than 0"),
        ({"dropout": 1.0}, "less than 1"),
        ({"activation": "tanh"}, "activation"),
        ({"width": 3}, "width: unknown key"),
        ({"n_layers": 10**12}, "names 10000 layers, n_layers is 1000000000000"),
    ],
)
def test_contradictions_are_refused(changes, reason):
    with pytest.raises(UserError, match=reason) as caught:
        parse(**changes)
    assert str(caught.value).startswith("test: ")
    assert "\n" not in str(caught.value)


def test_a_layer_type_may_fill_other_slots():
    specs = {"full": LayerSpec(rope=Rope()), "first": LayerSpec(rope=Rope(), norm_slots=("mlp_in",))}
    config = parse(layer_types=("first", "full", "full", "full"), layer_specs=specs)
    assert config.slots(0) == ("mlp_in",)
    assert config.slots(1) == ("attn_in", "mlp_in")


def test_flops_count_every_projection_and_only_visible_keys():
    config = parse()
    attention, mlp, head = 8 * (8 + 4 + 4) + 8 * 8, 3 * 8 * 16, 8 * 11
    assert matmul_parameters(config) == 4 * (attention + mlp) + head
    seen = (1 + 2 + 3 + 4 + 5) / 5
    assert forward_flops(config, 5) == 2 * matmul_parameters(config) + 4 * 4 * 8 * seen
    windowed = parse(layer_specs={"full": LayerSpec(window=2, rope=Rope())})
    seen = (1 + 2 + 2 + 2 + 2) / 5
    assert forward_flops(windowed, 5) == 2 * matmul_parameters(config) + 4 * 4 * 8 * seen
    assert training_flops(config, 5) == 3 * forward_flops(config, 5)
