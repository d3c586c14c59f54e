"""The classifier heads of decoders against the reference library: which token is read, the logits, the gradients."""

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification

from tests.parity.draws import DRAWS
from tests.parity.reference import (
    Pair,
    assert_close,
    assert_gradients_close,
    carry,
    make_pair,
    numbered,
    pad,
    random_ids,
)

LENGTHS = [11, 4, 7]
SCORED = ("gpt2", "llama", "mistral-window", "qwen2", "qwen3", "gemma2", "gpt_neox")


def run(pair: Pair, side: str) -> tuple[Tensor, Tensor, Tensor]:
    """Our logits, theirs, and the mask of real tokens, for a batch padded on one side."""
    ids, mask = pad(random_ids(pair.config, len(LENGTHS), max(LENGTHS)), LENGTHS, side)
    theirs = pair.theirs(ids, attention_mask=mask.long(), position_ids=numbered(mask)).logits
    return pair.ours(ids, attention_mask=mask), theirs, mask


def compare_gradients(pair: Pair, ours: Tensor, theirs: Tensor) -> None:
    """One random direction of the logits, followed back to every weight."""
    direction = torch.randn(ours.shape, generator=torch.Generator().manual_seed(1))
    (ours * direction).sum().backward()
    (theirs * direction).sum().backward()
    gradients = {name: weight.grad for name, weight in pair.theirs.named_parameters(remove_duplicate=False)}
    assert_gradients_close(pair.ours, carry(gradients, pair.rules, pair.ours))


@pytest.mark.parametrize("labels", [1, 4])
@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("draw", [*SCORED, "gemma3"])
def test_score_reads_the_last_real_token(draw: str, side: str, labels: int):
    pair = make_pair(DRAWS[draw] | {"num_labels": labels}, build=AutoModelForSequenceClassification.from_config)
    ours, theirs, _ = run(pair, side)
    assert ours.shape == (len(LENGTHS), labels)
    assert_close(ours.detach(), theirs.detach())
    compare_gradients(pair, ours, theirs)


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("draw", SCORED)
def test_token_classifier_with_padding(draw: str, side: str):
    pair = make_pair(DRAWS[draw] | {"num_labels": 3}, build=AutoModelForTokenClassification.from_config)
    ours, theirs, mask = run(pair, side)
    assert ours.shape == (*mask.shape, 3)
    assert_close(ours[mask].detach(), theirs[mask].detach())
    compare_gradients(pair, ours[mask], theirs[mask])


def test_without_padding_the_last_column_is_read():
    pair = make_pair(DRAWS["llama"] | {"num_labels": 2}, build=AutoModelForSequenceClassification.from_config)
    ids = random_ids(pair.config, 2, 9)
    with torch.no_grad():
        assert_close(pair.ours(ids), pair.theirs(ids).logits)
