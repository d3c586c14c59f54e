"""Every decoder family against `transformers`, on random small models in float32."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from langwright.model.cache import KVCache
from langwright.model.checkpoint.load import load_model
from langwright.model.checkpoint.save import save_model
from tests.parity.draws import DRAWS
from tests.parity.reference import (
    Pair,
    assert_close,
    assert_gradients_close,
    carry,
    hidden_states,
    make_pair,
    numbered,
    pad,
    random_ids,
)

EVERY = pytest.mark.parametrize("draw", DRAWS)
LENGTH = 13


def _pair(draw: str) -> Pair:
    return make_pair(DRAWS[draw], seed=len(draw))


def _outputs(pair: Pair, ids, mask=None, positions=None):
    """Logits and hidden states of both, theirs with its positions spelled out."""
    with hidden_states(pair.ours) as ours, torch.no_grad():
        logits = pair.ours(ids, attention_mask=mask, positions=positions)
    given = positions if mask is None else numbered(mask)
    with torch.no_grad():
        reference = pair.theirs(
            ids,
            attention_mask=mask if mask is None else mask.long(),
            position_ids=given,
            output_hidden_states=True,
        )
    return logits, ours, reference.logits, reference.hidden_states


@EVERY
def test_logits_and_hidden_states(draw):
    pair = _pair(draw)
    logits, ours, expected, theirs = _outputs(pair, random_ids(pair.config, 2, LENGTH))
    assert len(ours) == len(theirs)
    for number, (mine, reference) in enumerate(zip(ours, theirs, strict=True)):
        assert_close(mine, reference, f"hidden state {number}")
    assert_close(logits, expected, "logits")
    assert expected.std() > 0.05, "the draw is too tame to show a mistake"


@EVERY
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding(draw, side):
    pair = _pair(draw)
    ids, mask = pad(random_ids(pair.config, 3, LENGTH), [LENGTH, 4, 9], side)
    logits, ours, expected, theirs = _outputs(pair, ids, mask)
    for number, (mine, reference) in enumerate(zip(ours, theirs, strict=True)):
        assert_close(mine[mask], reference[mask], f"hidden state {number}")
    assert_close(logits[mask], expected[mask], "logits")


@EVERY
def test_explicit_positions(draw):
    pair = _pair(draw)
    positions = torch.arange(LENGTH) + torch.tensor([[3], [17]])
    logits, _, expected, _ = _outputs(pair, random_ids(pair.config, 2, LENGTH), positions=positions)
    assert_close(logits, expected, "logits")


@EVERY
def test_gradients(draw):
    pair = _pair(draw)
    ids, mask = pad(random_ids(pair.config, 2, LENGTH), [LENGTH, 8], "right")
    weights = torch.randn(int(mask.sum()), pair.config.vocab_size, generator=torch.Generator().manual_seed(1))
    logits = pair.theirs(ids, attention_mask=mask.long(), position_ids=numbered(mask)).logits
    (logits[mask] * weights).sum().backward()
    (pair.ours(ids, attention_mask=mask)[mask] * weights).sum().backward()
    gradients = {name: parameter.grad for name, parameter in pair.theirs.named_parameters()}
    assert_gradients_close(pair.ours, carry(gradients, pair.rules, pair.ours))


@EVERY
@pytest.mark.parametrize("kind", ["growing", "static"])
@pytest.mark.parametrize("padded", [False, True], ids=["even", "padded"])
def test_cache(draw, kind, padded):
    """A prompt, then three single tokens, then two at once; theirs with its own cache."""
    pair = _pair(draw)
    ids = random_ids(pair.config, 2, LENGTH)
    mask = torch.ones_like(ids, dtype=torch.bool)
    if padded:
        ids, mask = pad(ids, [LENGTH, 9], "left")
    positions = numbered(mask)
    cache = KVCache.growing(pair.config)
    if kind == "static":
        cache = KVCache.static(pair.config, 2, LENGTH, torch.float32, "cpu")
    past, start = None, 0
    for stop in (8, 9, 10, 11, LENGTH):
        step = slice(start, stop)
        with torch.no_grad():
            reference = pair.theirs(
                ids[:, step],
                attention_mask=mask[:, :stop].long(),
                position_ids=positions[:, step],
                past_key_values=past,
                use_cache=True,
            )
            logits = pair.ours(ids[:, step], attention_mask=mask[:, step] if padded else None, cache=cache)
        real = mask[:, step]
        assert_close(logits[real], reference.logits[real], f"logits of {start}:{stop}")
        past, start = reference.past_key_values, stop


@EVERY
def test_their_folder_opens_here(draw, tmp_path):
    pair = _pair(draw)
    pair.theirs.save_pretrained(tmp_path)
    opened = load_model(tmp_path)
    assert opened.config == pair.config
    ids = random_ids(pair.config, 2, LENGTH)
    with torch.no_grad():
        assert torch.equal(opened(ids), pair.ours(ids))


@EVERY
def test_our_folder_opens_there(draw, tmp_path):
    pair = _pair(draw)
    save_model(pair.ours, tmp_path)
    opened = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager")
    ids = random_ids(pair.config, 2, LENGTH)
    with torch.no_grad():
        assert_close(opened(ids).logits, pair.theirs(ids).logits)
