"""Bits per byte and perplexity against the same summed by hand."""

import math

import pytest
import torch

from langwright.data.shards import TokenShards
from langwright.train.validate import Validation, validate
from tests.unit.train.tiny import CONTEXT, make_config, make_model


def by_hand(model: torch.nn.Module, ids: list[int]) -> float:
    """Each token once, one window at a time, with what stands before it in its window; the stream begins after a 0."""
    stream, total = [0, *ids], 0.0
    for start in range(0, len(ids), CONTEXT):
        window = torch.tensor([stream[start : start + CONTEXT + 1]])
        log_p = torch.log_softmax(model(window[:, :-1]).double(), -1)
        total -= log_p.gather(-1, window[:, 1:, None]).sum().item()
    return total


@pytest.mark.parametrize(("limit", "tokens"), [(None, 1000), (60, 75), (1, 25)])
def test_sums_every_token_once(shards: TokenShards, limit: int | None, tokens: int):
    model = make_model(make_config(model={"dropout": 0.5}))
    found = validate(model, shards, context=CONTEXT, batch_size=5, limit=limit)
    assert not model.training
    assert (found.tokens, found.bytes) == (tokens, tokens // 25 * 24)
    assert found.nll == pytest.approx(by_hand(model, shards.tokens[:tokens].tolist()), rel=1e-6)
    other = validate(model, shards, context=CONTEXT, batch_size=1, limit=limit)
    assert other.nll == pytest.approx(found.nll, rel=1e-6)


def test_bits_per_byte_and_perplexity():
    score = Validation(nll=10 * math.log(8), tokens=10, bytes=15)
    assert score.bpb == pytest.approx(2.0)  # ten tokens of three bits each in fifteen bytes
    assert score.ppl == pytest.approx(8.0)
    assert math.isfinite(Validation(nll=1e9, tokens=1, bytes=1).ppl)
