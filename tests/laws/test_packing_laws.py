"""Documents packed into one row give what each gives alone: logits and gradients, in every kind of model."""

import copy
import functools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from langwright.model.attention import set_attention
from langwright.model.cache import KVCache
from langwright.model.model import Model
from langwright.model.transformer import find_runs
from tests.laws import test_encoder_laws as encoders
from tests.laws import test_model_laws as decoders

LENGTH = 12
NAMES = [*(name for name in decoders.NAMES if not decoders.is_dynamic(name)), *encoders.ENCODERS]
EVERY = pytest.mark.parametrize("name", NAMES)


@functools.cache
def model_of(name: str) -> Model:
    made = encoders.make(name, "masked_lm") if name in encoders.ENCODERS else decoders.model_of(name)
    return copy.deepcopy(made).requires_grad_(True)


def numbers_of(rows: list[list[int]]) -> Tensor:
    """Document numbers (B, LENGTH) of rows whose documents begin after so many tokens each, until the row is full."""
    documents = torch.zeros(len(rows), LENGTH, dtype=torch.long)
    for row, lengths in zip(documents, rows, strict=True):
        for place in torch.tensor(lengths).cumsum(0):
            row[place:] += 1
    return documents


def alone(model: Model, ids: Tensor, documents: Tensor) -> list[Tensor]:
    """Logits (n, V) of every document, computed by itself."""
    runs, _ = find_runs(documents)
    return [model(part[None])[0] for part in ids.flatten().split(runs)]


def gradients(model: Model, loss: Tensor) -> dict[str, Tensor]:
    found = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
    return {name: grad for (name, _), grad in zip(model.named_parameters(), found, strict=True) if grad is not None}


def loss_of(logits: Tensor) -> Tensor:
    """Weighs every logit differently, and the same wherever it stands."""
    weights = torch.linspace(-1, 1, logits.shape[-1])
    return (logits.log_softmax(-1) * weights).sum()


@EVERY
@settings(max_examples=8, deadline=None)
@given(rows=st.lists(st.lists(st.integers(1, 9), min_size=0, max_size=5), min_size=1, max_size=3))
def test_packed_is_alone(name: str, rows: list[list[int]]):
    model, documents = model_of(name), numbers_of(rows)
    ids = decoders.ids_of(model, len(rows), LENGTH)
    packed, single = model(ids, documents=documents), torch.cat(alone(model, ids, documents))
    torch.testing.assert_close(packed.flatten(0, 1), single, rtol=1e-5, atol=1e-5)
    expected = gradients(model, loss_of(single))
    for key, grad in gradients(model, loss_of(packed)).items():
        assert (grad - expected[key]).abs().max() <= 1e-5 * expected[key].abs().max().clamp(min=1), key


@EVERY
@torch.no_grad()
def test_document_by_document_is_one_masked_attention(name: str):
    """The fast path against its plain twin, which computes all pairs and masks those of two documents."""
    model, documents = model_of(name), numbers_of([[5, 3], [1, 1, 9], []])
    ids = decoders.ids_of(model, 3, LENGTH)
    fast = model(ids, documents=documents)
    set_attention(model, model.config, "eager")
    torch.testing.assert_close(fast, model(ids, documents=documents), rtol=1e-5, atol=1e-5)
    if model.config.attn_softcap is None:
        set_attention(model, model.config, "sdpa")


@EVERY
@torch.no_grad()
def test_one_document_is_none(name: str):
    model = model_of(name)
    ids = decoders.ids_of(model, 3, LENGTH)
    torch.testing.assert_close(model(ids, documents=torch.full((3, LENGTH), 7)), model(ids), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_nothing_leaks_between_documents():
    """Bit for bit: other tokens in one document change nothing in another."""
    model, documents = model_of("llama"), numbers_of([[4, 5]])
    ids = decoders.ids_of(model, 1, LENGTH)
    before = model(ids, documents=documents)
    ids[:, :4] = (ids[:, :4] + 1) % model.config.vocab_size
    after = model(ids, documents=documents)
    assert torch.equal(before[:, 4:], after[:, 4:])
    assert not torch.equal(before[:, :4], after[:, :4])


def test_any_change_of_number_begins_a_document():
    runs, places = find_runs(torch.tensor([[3, 3, 0, 3], [3, 3, 3, 3]]))
    assert runs == (2, 1, 1, 4)
    assert places.tolist() == [[0, 1, 0, 0], [0, 1, 2, 3]]


def test_documents_stand_alone_among_the_arguments():
    model = decoders.model_of("llama")
    ids, documents = decoders.ids_of(model, 1), torch.zeros(1, decoders.LENGTH, dtype=torch.long)
    for more in (
        {"cache": KVCache.growing(model.config)},
        {"positions": documents},
        {"attention_mask": torch.ones_like(ids, dtype=torch.bool)},
    ):
        with pytest.raises(ValueError, match="documents decide mask and positions, and take no cache"):
            model(ids, documents=documents, **more)
