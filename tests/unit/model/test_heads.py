"""Heads on hand-made hidden states: what is pooled, what shape comes out, which padding may not matter."""

from typing import Any, get_args

import pytest
import torch
from torch.nn import functional as F

from langwright.model.config import LayerSpec, ModelConfig
from langwright.model.heads import HEADS, EmbeddingHead, HeadKind, SequenceClassifierHead, TokenClassifierHead, pool
from langwright.model.model import build_model

HIDDEN = torch.arange(24.0).view(2, 4, 3)  # (B, T, D): row 0 holds 0..11, row 1 holds 12..23
RIGHT = torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0]]).bool()
LEFT = torch.tensor([[0, 1, 1, 1], [0, 0, 1, 1]]).bool()


def encoder(**changes: Any) -> ModelConfig:
    values: dict[str, Any] = {
        "family": "langwright",
        "d_model": 3,
        "n_layers": 1,
        "n_heads": 1,
        "n_kv_heads": 1,
        "d_head": 3,
        "d_mlp": 5,
        "vocab_size": 7,
        "max_positions": 9,
        "causal": False,
        "positions": "learned",
        "layer_specs": {"full": LayerSpec()},
    }
    return ModelConfig(**values | changes)


def test_every_head_kind_has_a_module():
    assert set(HEADS) == set(get_args(HeadKind))


@pytest.mark.parametrize(
    ("mask", "how", "rows"),
    [
        (None, "cls", [0, 0]),
        (None, "last", [3, 3]),
        (RIGHT, "cls", [0, 0]),
        (RIGHT, "last", [2, 1]),
        (LEFT, "cls", [1, 2]),
        (LEFT, "last", [3, 3]),
        (LEFT.long(), "cls", [1, 2]),
    ],
)
def test_pool_one_token(mask, how, rows):
    assert torch.equal(pool(HIDDEN, mask, how), torch.stack([HIDDEN[b, t] for b, t in enumerate(rows)]))


@pytest.mark.parametrize("mask", [RIGHT, LEFT, RIGHT.long()])
def test_pool_mean_of_real_tokens(mask):
    expected = torch.stack([HIDDEN[b, mask[b].bool()].mean(0) for b in range(2)])
    assert torch.equal(pool(HIDDEN, mask, "mean"), expected)
    assert torch.equal(pool(HIDDEN, None, "mean"), HIDDEN.mean(1))


def test_mean_is_not_touched_by_what_stands_in_padding():
    spoilt = HIDDEN.masked_fill(~RIGHT[..., None], float("nan"))
    assert torch.equal(pool(spoilt, RIGHT, "mean"), pool(HIDDEN, RIGHT, "mean"))


def test_a_row_without_tokens_is_finite():
    mask = torch.tensor([[0, 0, 0, 0], [1, 1, 1, 1]])
    assert torch.equal(pool(HIDDEN, mask, "mean")[0], torch.zeros(3))
    assert all(pool(HIDDEN, mask, how).isfinite().all() for how in ("cls", "last"))
    assert EmbeddingHead(encoder())(HIDDEN, mask).isfinite().all()


def test_embeddings_have_length_one_and_are_float32():
    half = EmbeddingHead(encoder())(HIDDEN.bfloat16(), LEFT)
    assert half.dtype == torch.float32
    assert torch.allclose(half.norm(dim=-1), torch.ones(2))


@pytest.mark.parametrize(
    ("causal", "pooling", "used"), [(True, None, "last"), (False, None, "mean"), (True, "cls", "cls")]
)
def test_how_an_embedding_is_pooled(causal, pooling, used):
    head = EmbeddingHead(encoder(causal=causal, pooling=pooling))
    assert torch.equal(head(HIDDEN, LEFT), F.normalize(pool(HIDDEN, LEFT, used), dim=-1))


@pytest.mark.parametrize(("causal", "used"), [(True, "last"), (False, "cls")])
def test_which_token_a_classifier_reads(causal, used):
    head = SequenceClassifierHead(encoder(causal=causal)).eval()
    assert torch.equal(head(HIDDEN, LEFT), head.proj(pool(HIDDEN, LEFT, used)))


@pytest.mark.parametrize("classifier", ["linear", "tanh", "act_norm"])
@pytest.mark.parametrize("labels", [None, 1, 4])
def test_classifier_shapes(labels, classifier):
    config = encoder(n_labels=labels, classifier=classifier)
    assert SequenceClassifierHead(config)(HIDDEN, RIGHT).shape == (2, labels or 2)
    assert TokenClassifierHead(config)(HIDDEN, RIGHT).shape == (2, 4, labels or 2)


@pytest.mark.parametrize("head", [SequenceClassifierHead, TokenClassifierHead])
def test_dropout_before_the_last_layer(head):
    assert head(encoder(dropout=0.1)).dropout == 0.1
    module = head(encoder(dropout=0.1, head_dropout=0.5))
    assert module.dropout == 0.5
    torch.manual_seed(0)
    assert not torch.equal(module.train()(HIDDEN), module(HIDDEN))
    assert torch.equal(module.eval()(HIDDEN), module(HIDDEN))


def test_a_masked_lm_is_tied_unless_told_otherwise():
    tied, untied = build_model(encoder()), build_model(encoder(tie_embeddings=False))
    assert tied.head_kind == "masked_lm"
    assert tied.get_parameter("head.proj.weight") is tied.backbone.embed.tokens.weight
    assert untied.get_parameter("head.proj.weight") is not untied.backbone.embed.tokens.weight
    assert tied(torch.tensor([[1, 2, 3]])).shape == (1, 3, 7)
