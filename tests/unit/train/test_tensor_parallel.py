"""What is divided, by name."""

import pytest
from torch import nn

from langwright.core.errors import UserError
from langwright.train.tensor_parallel import DIVIDED, STYLES, plan_of
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
    block.get_submodule("attn").register_module("router_proj", nn.Linear(4, 4))
    with pytest.raises(UserError, match=r"does not know how to divide 'attn\.router_proj'"):
        plan_of(block)
