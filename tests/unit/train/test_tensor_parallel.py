"""What is divided, by name."""

import pytest
from torch import nn

from langwright.core.errors import UserError
from langwright.model.config import ModelConfig
from langwright.train.tensor_parallel import DIVIDED, STYLES, check_divisible, plan_of
from tests.unit.train.tiny import make_config, make_model


@pytest.mark.parametrize("gated", [True, False])
def test_every_matrix_of_a_block_has_a_plan(gated: bool):
    block = make_model(make_config(model={"gated": gated})).backbone.layers[0]
    plan = plan_of(block)
    assert set(plan) == {name for name, module in block.named_modules() if isinstance(module, nn.Linear)}
    for name, style in plan.items():
        assert type(style) is STYLES[DIVIDED[name.split(".")[-1]]]


def test_an_unknown_matrix_is_refused():
    block = make_model(make_config()).backbone.layers[0]
    block.attn.router_proj = nn.Linear(4, 4)
    with pytest.raises(UserError, match=r"does not know how to divide 'attn\.router_proj'"):
        plan_of(block)


@pytest.mark.parametrize(("change", "named"), [({"n_heads": 3}, "n_heads"), ({"n_kv_heads": 1}, "n_kv_heads")])
def test_heads_must_be_divisible(change: dict, named: str):
    shape = {"d_model": 24, "d_head": 8, "n_heads": 4, "n_layers": 1} | change
    config: ModelConfig = make_config(model=shape).model.build(vocab_size=9, context=12)
    with pytest.raises(UserError, match=rf"parallel\.tensor is 2, which does not divide model\.{named}"):
        check_divisible(config, 2)
