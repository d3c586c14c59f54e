"""Rename tables: complete, unambiguous, and the same in both directions."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from langwright.core.errors import FormatError
from langwright.model.families import FAMILIES
from langwright.model.model import Model
from langwright.model.rename import Rule, bind, check_shape, join, rule, split
from tests.parity.draws import DRAWS, vanilla_config

CONFIG = vanilla_config(family="langwright")
LAYOUTS = st.sampled_from(["same", "transposed", "by_head"])


@settings(max_examples=80, deadline=None)
@given(LAYOUTS, st.integers(1, 4), st.booleans(), st.integers(0, 2**16))
def test_split_undoes_join(layout, count, bias, seed):
    generator = torch.Generator().manual_seed(seed)
    shape = (CONFIG.n_heads * 4,) if bias else (CONFIG.n_heads * 4, 5)
    parts = [torch.randn(shape, generator=generator) for _ in range(count)]
    item = Rule("theirs", tuple("abcd"[:count]), layout)
    joined = join(item, parts, CONFIG)
    again = split(item, joined, [part.shape for part in parts], CONFIG)
    assert all(torch.equal(a, b) for a, b in zip(parts, again, strict=True))
    assert torch.equal(join(item, again, CONFIG), joined)
    assert joined.is_contiguous()


def test_parts_may_differ_in_size():
    wide, narrow = torch.randn(6, 5), torch.randn(2, 5)
    item = rule("qkv", "q", "k", "v")
    joined = join(item, [wide, narrow, narrow], CONFIG)
    assert joined.shape == (10, 5)
    q, k, v = split(item, joined, [wide.shape, narrow.shape, narrow.shape], CONFIG)
    assert torch.equal(q, wide)
    assert torch.equal(k, narrow)
    assert torch.equal(v, narrow)


def test_by_head_takes_turns():
    """Query, key and value of head 0, then of head 1, as GPT-NeoX stores them."""
    parts = [torch.arange(6.0) + 10 * number for number in range(3)]
    joined = join(rule("qkv", "q", "k", "v", layout="by_head"), parts, CONFIG)  # three heads of two
    assert joined.tolist()[:8] == [0, 1, 10, 11, 20, 21, 2, 3]


@pytest.mark.parametrize("layout", ["same", "transposed", "by_head"])
def test_a_misshapen_tensor_is_named(layout):
    item = rule("h.0.weight", "q", "k", layout=layout)
    shapes = [torch.Size((6, 5)), torch.Size((6, 5))]
    right = (5, 12) if layout == "transposed" else (12, 5)
    check_shape(item, right, shapes, "file")
    for shape in (right[::-1], (11, 5), (12, 4), (12,), (12, 5, 1), ()):
        with pytest.raises(FormatError, match=r"file: tensor 'h\.0\.weight' is .* the configuration needs"):
            check_shape(item, shape, shapes, "file")


def test_a_table_must_cover_everything_once():
    with pytest.raises(AssertionError, match="no rule for"):
        bind([rule("a", "x")], CONFIG, ["x", "y"])
    with pytest.raises(AssertionError, match="bound twice"):
        bind([rule("a", "x"), rule("b", "x")], CONFIG, ["x"])


def _models():
    for name, values in DRAWS.items():
        family = next(family for family in FAMILIES.values() if values["model_type"] in family.model_types)
        for head in family.heads:
            yield pytest.param(family, family.config_from_hf(values), head, id=f"{name}-{head}")
    yield pytest.param(FAMILIES["vanilla"], vanilla_config(), "causal_lm", id="vanilla")
    for head in FAMILIES["langwright"].heads:
        yield pytest.param(FAMILIES["langwright"], CONFIG, head, id=f"langwright-{head}")


@pytest.mark.parametrize(("family", "config", "head"), list(_models()))
def test_every_familys_table_is_complete_and_reversible(family, config, head):
    with torch.device("meta"):
        model = Model(config, head)
    parameters = dict(model.named_parameters())
    rules = bind(family.rules + family.heads[head], config, parameters)
    names = [item.theirs for item in rules]
    assert len(names) == len(set(names))
    generator = torch.Generator().manual_seed(0)
    for item in rules:
        parts = [torch.randn(parameters[name].shape, generator=generator) for name in item.ours]
        again = split(item, join(item, parts, config), [part.shape for part in parts], config)
        assert all(torch.equal(a, b) for a, b in zip(parts, again, strict=True))
