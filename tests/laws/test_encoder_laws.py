"""What must hold for every encoder: batching, padding, order and the two attentions may not change a result."""

from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from langwright.core.errors import UserError
from langwright.model.attention import set_attention
from langwright.model.config import ModelConfig
from langwright.model.families import find_family
from langwright.model.heads import HeadKind
from langwright.model.model import Model, build_model

SIZES = {
    "vocab_size": 40,
    "hidden_size": 24,
    "intermediate_size": 20,
    "num_hidden_layers": 4,
    "num_attention_heads": 3,
    "pad_token_id": 1,
    "id2label": {"0": "a", "1": "b", "2": "c"},
}
ENCODERS: dict[str, dict[str, Any]] = {
    "bert": SIZES | {"model_type": "bert", "max_position_embeddings": 16},
    "roberta": SIZES | {"model_type": "roberta", "max_position_embeddings": 18},
    "modernbert": SIZES | {"model_type": "modernbert", "local_attention": 4, "attention_bias": True},
}
HEADS: tuple[HeadKind, ...] = ("masked_lm", "sequence_classifier", "token_classifier", "embedding")
EVERY = pytest.mark.parametrize("name", ENCODERS)
EVERY_HEAD = pytest.mark.parametrize("head", HEADS)
lengths_of_rows = st.lists(st.integers(1, 12), min_size=1, max_size=4)


@cache
def make(name: str, head: HeadKind = "token_classifier", **changes: Any) -> Model:
    """A small encoder whose weights, norms included, are all random."""
    values = ENCODERS[name]
    return randomised(find_family(values).config_from_hf(values).replace(**changes), head)


def randomised(config: ModelConfig, head: HeadKind) -> Model:
    model, generator = build_model(config, head).eval(), torch.Generator().manual_seed(3)
    with torch.no_grad():
        for weight in model.parameters():
            weight += torch.randn(weight.shape, generator=generator) * 0.2
    return model


def rows(lengths: list[int], side: str, seed: int) -> tuple[Tensor, Tensor]:
    """Random ids (B, T) and the mask of real tokens for rows of ``lengths``, padded on one side."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(2, SIZES["vocab_size"], (len(lengths), max(lengths)), generator=generator)
    columns, kept = torch.arange(max(lengths)), torch.tensor(lengths)[:, None]
    return ids, columns < kept if side == "right" else columns >= max(lengths) - kept


def close(a: Tensor, b: Tensor) -> bool:
    return bool(((a - b).abs() <= 1e-5 * b.abs().clamp(min=1)).all())


@EVERY
@EVERY_HEAD
@torch.no_grad()
@settings(max_examples=15, deadline=None)
@given(lengths=lengths_of_rows, side=st.sampled_from(["right", "left"]), seed=st.integers(0, 99))
def test_batched_is_single(name: str, head: HeadKind, lengths: list[int], side: str, seed: int):
    model, (ids, mask) = make(name, head), rows(lengths, side, seed)
    together = model(ids, attention_mask=mask)
    for row, real, out in zip(ids, mask, together, strict=True):
        alone = model(row[None, real])[0]
        assert close(out if out.ndim == 1 else out[real], alone)


@EVERY
@torch.no_grad()
@settings(max_examples=15, deadline=None)
@given(lengths=lengths_of_rows, side=st.sampled_from(["right", "left"]), seed=st.integers(0, 99))
def test_padding_content_never_matters(name: str, lengths: list[int], side: str, seed: int):
    model, (ids, mask) = make(name), rows(lengths, side, seed)
    other = torch.where(mask, ids, (ids + 7) % SIZES["vocab_size"])
    types = torch.zeros_like(ids) if model.config.n_types else None
    other_types = None if types is None else torch.where(mask, types, 1)
    first = model(ids, attention_mask=mask, type_ids=types)
    second = model(other, attention_mask=mask, type_ids=other_types)
    assert torch.equal(first[mask], second[mask])


@EVERY
@EVERY_HEAD
@torch.no_grad()
@settings(max_examples=10, deadline=None)
@given(lengths=lengths_of_rows, side=st.sampled_from(["right", "left"]), padded=st.booleans())
def test_eager_is_sdpa(name: str, head: HeadKind, lengths: list[int], side: str, padded: bool):
    model, (ids, mask) = make(name, head), rows(lengths, side, 0)
    chosen = mask if padded else None
    fused = model(ids, attention_mask=chosen)
    try:
        set_attention(model, model.config, "eager")
        plain = model(ids, attention_mask=chosen)
    finally:
        set_attention(model, model.config, "sdpa")
    real = mask if padded else torch.ones_like(mask)
    assert close(fused[real], plain[real]) if fused.ndim == 3 else close(fused, plain)


@EVERY
@torch.no_grad()
def test_order_is_told_by_positions_alone(name: str):
    """Tokens given in another order, each with its own position, give the same results in that order."""
    model, (ids, mask) = make(name), rows([12, 12], "right", 0)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    positions = torch.arange(12).expand_as(ids)
    straight = model(ids)
    assert close(model(ids, positions=positions), straight)
    assert close(model(ids[:, order], positions=positions[:, order]), straight[:, order])
    assert close(model(ids[:, order], positions=positions[:, order], attention_mask=mask), straight[:, order])


@EVERY
@torch.no_grad()
def test_every_token_sees_the_last_one(name: str):
    """Encoders look both ways; four layers, one of two global, carry the last token everywhere."""
    model, (ids, _) = make(name), rows([12], "right", 0)
    changed = ids.clone()
    changed[0, -1] = (ids[0, -1] + 1) % SIZES["vocab_size"]
    moved = (model(ids) - model(changed)).abs().amax(-1)
    assert (moved > 1e-4).all()


def windowed(window: int | None) -> Model:
    """A ModernBERT in which every layer is local (None: global), all with the same weights."""
    config = make("modernbert").config
    specs = {
        name: spec.replace(window=window, rope=config.layer_specs["sliding"].rope)
        for name, spec in config.layer_specs.items()
    }
    return randomised(config.replace(layer_specs=specs), "token_classifier")


@torch.no_grad()
@pytest.mark.parametrize("side", ["right", "left"])
def test_a_window_longer_than_the_text_is_no_window(side: str):
    ids, mask = rows([12, 5, 9], side, 0)
    full = windowed(None)
    for window in (12, 13, 100):
        local = windowed(window)
        assert close(local(ids), full(ids))
        assert close(local(ids, attention_mask=mask)[mask], full(ids, attention_mask=mask)[mask])
    assert not close(windowed(11)(ids), full(ids))


@torch.no_grad()
@pytest.mark.parametrize("window", [1, 2, 3])
def test_a_window_reaches_that_far_and_no_farther(window: int):
    """Four local layers carry a token (window - 1) places each, to both sides."""
    model, (ids, _) = windowed(window), rows([12], "right", 0)
    changed = ids.clone()
    changed[0, 5] = (ids[0, 5] + 1) % SIZES["vocab_size"]
    moved = (model(ids) != model(changed)).any(-1)[0]
    distance = (torch.arange(12) - 5).abs()
    assert torch.equal(moved, distance <= 4 * (window - 1))


@torch.no_grad()
def test_rotary_positions_count_from_anywhere():
    model, (ids, mask) = make("modernbert"), rows([12, 4], "right", 0)
    positions = torch.arange(12).expand_as(ids)
    here = model(ids, attention_mask=mask, positions=positions)
    there = model(ids, attention_mask=mask, positions=positions + torch.tensor([[3], [11]]))
    assert close(here[mask], there[mask])


@torch.no_grad()
@pytest.mark.parametrize("name", ["bert", "roberta"])
def test_learned_positions_run_out_with_a_mask_too(name: str):
    """Counted are tokens, not columns: padding may stand beyond the last position."""
    model = make(name)
    ids, mask = rows([20, 16], "right", 0)
    for given_mask in (None, mask):
        with pytest.raises(UserError, match="20 tokens were given and this model has positions for 16"):
            model(ids, attention_mask=given_mask)
    ids, mask = rows([16, 3], "left", 0)
    wide = torch.nn.functional.pad(ids, (4, 0)), torch.nn.functional.pad(mask, (4, 0))
    assert close(model(wide[0], attention_mask=wide[1])[:, 4:][mask], model(ids, attention_mask=mask)[mask])
