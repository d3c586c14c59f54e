"""What 8 and 4 bits cost a pretrained model, on text that it is scored on whole."""

import pytest
import torch

from langwright.data.corpus import corpus_path
from langwright.infer import quantised
from langwright.infer.lm import LM, load
from langwright.infer.native.library import library
from langwright.model.checkpoint.catalogue import cached_path
from langwright.model.checkpoint.save import save_model
from tests.unit.infer.test_native import without_core

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]
NAME = "smollm2-135m-instruct"


@pytest.fixture(scope="module")
def text() -> str:
    return corpus_path("shakespeare").read_text(encoding="utf-8")[-6_000:]


def perplexity(lm: LM, text: str) -> float:
    return lm.score(text, context=1024).perplexity


@pytest.fixture(scope="module")
def plain(text) -> float:
    if cached_path(NAME) is None:
        pytest.skip(f"{NAME} is not in the cache; langwright models pull {NAME} fetches it")
    return perplexity(load(NAME, device="cpu"), text)


def test_perplexity_of_eight_bits_is_within_one_per_cent(plain, text):
    assert perplexity(load(NAME, quantise="int8"), text) == pytest.approx(plain, rel=0.01)


def test_perplexity_of_blocks_taken_as_they_are_is_that_of_their_numbers(plain, text, monkeypatch):
    """The file is Q4_1 with an embedding of Q8_0: weights lose nothing; the rest is the rounding of activations."""
    lm = load(NAME, quantise="int4")
    assert perplexity(lm, text) == pytest.approx(plain, rel=0.01)
    monkeypatch.setattr(quantised, "round_activations", lambda x: x)
    with without_core():
        assert perplexity(lm, text) == pytest.approx(plain, rel=1e-5)


@pytest.mark.xfail(
    strict=True, reason="rounding to the nearest of 4 bits costs this small model a fifth: 33.76, not 27.68"
)
def test_perplexity_of_our_own_four_bits_is_within_three_per_cent(plain, text, tmp_path):
    """Of a checkpoint of floats with its features in another order, so that the file's groups of 32 are no help."""
    lm = load(NAME, device="cpu")
    made = torch.Generator().manual_seed(0)
    stream = torch.randperm(lm.config.d_model, generator=made)
    inner = torch.randperm(lm.config.d_mlp, generator=made)
    with torch.no_grad():
        for name, weight in lm.model.named_parameters():
            if weight.shape[-1] == lm.config.d_model and not name.endswith("o_proj.weight"):
                weight.copy_(weight[..., stream])
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                weight.copy_(weight[stream])
            if name.endswith(("gate_proj.weight", "up_proj.weight")):
                weight.copy_(weight[inner])
            if name.endswith("down_proj.weight"):
                weight.copy_(weight[:, inner])
    assert perplexity(lm, text) == pytest.approx(plain, rel=1e-3)
    save_model(lm.model, tmp_path)
    lm.tokenizer.save(tmp_path)
    assert perplexity(load(tmp_path, quantise="int4"), text) == pytest.approx(plain, rel=0.03)


def test_the_native_step_writes_what_torch_writes():
    if library() is None or cached_path(NAME) is None:
        pytest.skip("needs the native core and the pulled model")
    lm = load(NAME, quantise="int8")
    chat = [{"role": "user", "content": "What is the capital of France? Answer in one sentence."}]
    found = lm.generate(chat, temperature=0, max_new_tokens=24)
    assert "Paris" in found.text
    ids = [*found.prompt_ids, *found.token_ids]
    native = lm.logits(ids)
    with without_core():
        twin = lm.logits(ids)
        answer = lm.generate(chat, temperature=0, max_new_tokens=24)
    assert answer.token_ids == found.token_ids
    # Sums differ in the last digit; what then rounds to the other of two activations spreads to the noise of 8 bits.
    assert float((native - twin).abs().mean()) < 0.1 * float(twin.std())
    assert float((native.argmax(-1) == twin.argmax(-1)).float().mean()) > 0.9
