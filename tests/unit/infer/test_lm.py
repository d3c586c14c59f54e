"""The face of a model: loading, prompts of every kind, scores, likelihoods, embeddings."""

import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import langwright
from langwright.core.errors import UserError
from langwright.infer.lm import LM, load
from langwright.model.checkpoint.save import save_model
from langwright.model.model import Model
from tests.unit.infer.small import BOS, EOS, TEMPLATE, V, byte_tokenizer, random_model, scripted


def lm(*, template: str | None = None, bos: bool = True, **settings) -> LM:
    return LM(random_model(**settings), byte_tokenizer(bos=bos, chat_template=template), name="small")


def options(**values: Any) -> dict[str, Any]:
    return values


def logprobs(model: Model, ids: list[int]) -> torch.Tensor:
    """Of each id after the first, (N,), from one plain forward."""
    with torch.inference_mode():
        found = model(torch.tensor([ids[:-1]]))[0].double().log_softmax(-1)
    return found.gather(1, torch.tensor(ids[1:])[:, None])[:, 0]


def test_the_package_is_imported_without_torch():
    code = (
        "import sys, langwright as lw; assert not {'torch', 'pydantic', 'numpy'} & set(sys.modules); "
        "assert callable(lw.load) and 'torch' in sys.modules; print(lw.LM.__name__, lw.__version__)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["LM", langwright.__version__]
    with pytest.raises(AttributeError, match="no attribute 'lod'"):
        _ = langwright.lod


def test_the_version_is_the_projects():
    project = Path(__file__).parents[3] / "pyproject.toml"
    assert f'version = "{langwright.__version__}"' in project.read_text(encoding="utf-8")


def test_a_saved_folder_is_loaded_whole(tmp_path: Path):
    original = lm(template=TEMPLATE)
    save_model(original.model, tmp_path)
    original.tokenizer.save(tmp_path)
    loaded = load(tmp_path, device="cpu")
    ids = loaded.tokenizer.encode("The sea.")
    assert ids == [*b"The sea."]
    torch.testing.assert_close(loaded.logits(ids), original.logits(ids), atol=0, rtol=0)
    chat = [{"role": "user", "content": "Hello"}]
    settings = options(temperature=0, max_new_tokens=8)
    assert loaded.generate(chat, **settings) == original.generate(chat, **settings)
    assert load(str(tmp_path), device="cpu", dtype="bfloat16").model.dtype == torch.bfloat16
    for bad in ({"dtype": "float8"}, {"device": "abacus"}):
        with pytest.raises(UserError):
            load(tmp_path, **bad)


def test_a_missing_model_is_one_line(tmp_path: Path):
    with pytest.raises(UserError) as caught:
        load(tmp_path / "nowhere")
    assert "\n" not in str(caught.value)


def test_a_vocabulary_larger_than_the_embedding_is_refused():
    with pytest.raises(UserError, match="ids up to 258 and the model only 100 embeddings"):
        LM(random_model(vocab_size=100), byte_tokenizer())


def test_logits_are_the_models():
    small = lm()
    found = small.logits([1, 2, 3])
    assert found.shape == (3, V)
    assert found.dtype == torch.float32
    with torch.inference_mode():
        torch.testing.assert_close(found, small.model(torch.tensor([[1, 2, 3]]))[0])
    assert lm(causal=False).logits([1, 2]).shape == (2, V)
    for ids, message in (
        ([], "has no tokens"),
        ([V], "outside the vocabulary"),
        ([1] * 49, "has 49 tokens and .* is 48"),
    ):
        with pytest.raises(UserError, match=message):
            small.logits(ids)


def test_prompts_may_be_text_ids_or_messages_and_lists_of_those():
    small, settings = lm(template=TEMPLATE), options(temperature=0, max_new_tokens=4)
    chat = [{"role": "user", "content": "a"}]
    rendered = small.chat_template.render(chat, add_generation_prompt=True).ids
    assert small.generate("ab", **settings).prompt_ids == [*b"ab"]
    assert small.generate([97, 98], **settings) == small.generate("ab", **settings)
    assert small.generate((97, 98), **settings) == small.generate("ab", **settings)
    assert small.generate(chat, **settings).prompt_ids == rendered
    assert small.generate(["ab", "c"], **settings) == [
        small.generate("ab", **settings),
        small.generate("c", **settings),
    ]
    assert small.generate([[97, 98]], **settings) == [small.generate("ab", **settings)]
    assert small.generate([chat, chat], **settings) == [small.generate(chat, **settings)] * 2
    assert small.generate([], **settings) == []
    assert small.generate("", **settings).prompt_ids == [BOS]


def test_text_is_never_a_special_token_unless_allowed():
    small, settings = lm(template=TEMPLATE), options(max_new_tokens=0)
    assert small.generate("<|im_end|>", **settings).prompt_ids == [*b"<|im_end|>"]
    assert small.generate("<|im_end|>", allow_special=True, **settings).prompt_ids == [258]
    forged = small.generate([{"role": "user", "content": "<|im_end|>"}], **settings).prompt_ids
    assert forged.count(258) == 1


def test_a_stream_is_the_answer():
    small, settings = lm(), options(temperature=0.9, seed=3, max_new_tokens=20)
    flow = small.stream("The", **settings)
    assert "".join(flow) == small.generate("The", **settings).text
    assert flow.result == small.generate("The", **settings)


def test_what_cannot_be_generated_says_why():
    small = lm()
    cases: list[tuple[Any, dict[str, Any], str]] = [
        ([{"role": "user", "content": "hi"}], {}, "small: this model has no chat template"),
        ("x", {"temprature": 1}, "temprature: unknown key"),
        ("x", {"temperature": -1}, "temperature"),
        ("x" * 49, {}, "the prompt has 49 tokens and this model's context is 48"),
        ([300], {}, "token id 300 is outside"),
        (7, {}, "not int"),
        (["a", [1], 3], {}, "not a token id"),
    ]
    for prompt, settings, message in cases:
        with pytest.raises(UserError, match=message):
            small.generate(prompt, **settings)
    with pytest.raises(UserError, match="cannot generate"):
        lm(causal=False).generate("x")


def test_a_score_is_what_a_plain_forward_says():
    small, text = lm(), "Grün ist 绿."
    score = small.score(text)
    expected = logprobs(small.model, [BOS, *text.encode()])
    assert score.nll == pytest.approx(-float(expected.sum()), rel=1e-5)
    assert score.tokens == score.bytes == len(text.encode())
    assert (score.context, score.stride) == (48, 24)
    assert score.bits_per_byte == pytest.approx(score.nll / math.log(2) / score.bytes)
    assert score.perplexity == pytest.approx(math.exp(score.nll / score.tokens))


def test_without_a_beginning_token_the_first_token_is_only_read():
    small, text = lm(bos=False), "plain"
    score = small.score(text)
    assert (score.tokens, score.bytes) == (4, 4)
    assert score.nll == pytest.approx(-float(logprobs(small.model, [*b"plain"]).sum()), rel=1e-5)
    for short in ("", "p"):
        with pytest.raises(UserError, match="too short"):
            small.score(short)


def test_a_long_text_is_scored_in_windows():
    small, ids = lm(), [BOS, *(b"0123456789" * 10)]
    score = small.score("0123456789" * 10, context=16, stride=8)
    expected = logprobs(small.model, ids[:17]).sum()
    for end in range(24, 101, 8):
        expected += logprobs(small.model, ids[end - 16 : end + 1])[-8:].sum()
    expected += logprobs(small.model, ids[100 - 16 : 101])[-4:].sum()
    assert score.nll == pytest.approx(-float(expected), rel=1e-5)
    assert score.tokens == 100
    assert small.loglikelihood_rolling(["0123456789" * 10])[0] == pytest.approx(-small.score("0123456789" * 10).nll)


def test_likelihoods_are_what_a_plain_forward_says():
    small = lm()
    greedy = small.generate("The", temperature=0, max_new_tokens=3).token_ids
    pairs = [("The sea", " is"), ("", "x"), ("A", "bcdefgh"), ("The", bytes(token % 128 for token in greedy).decode())]
    found = small.loglikelihood(pairs, batch_size=2)
    for (context, continuation), (total, is_greedy) in zip(pairs, found, strict=True):
        before = [*context.encode()] or [BOS]
        ids = [*before, *continuation.encode()]
        assert total == pytest.approx(float(logprobs(small.model, ids)[len(before) - 1 :].sum()), rel=1e-4)
        choice = small.generate(before, temperature=0, max_new_tokens=len(ids) - len(before), ignore_eos=True).token_ids
        assert is_greedy == (choice == ids[len(before) :])
    yes = LM(scripted([*b"xyz"]), byte_tokenizer()).loglikelihood([("a", "xyz"), ("a", "xyy")])
    assert [likelihood.is_greedy for likelihood in yes] == [True, False]


def test_a_pair_over_the_context_is_refused_or_cut_at_its_beginning():
    small, ids = lm(), [*(b"0123456789" * 6)]
    assert small.loglikelihood([("x" * 46, "abc")])[0].logprob < 0  # 49 tokens, of which 48 are read
    with pytest.raises(UserError, match="have 60 tokens and this model reads 48"):
        small.loglikelihood([("0123456789" * 5, "0123456789")])
    found = small.loglikelihood([("0123456789" * 5, "0123456789")], truncate=True)[0].logprob
    assert found == pytest.approx(float(logprobs(small.model, ids[-49:])[-10:].sum()), rel=1e-4)
    with pytest.raises(UserError, match="reads 48"):
        small.loglikelihood([("a", "b" * 49)], truncate=True)


@pytest.mark.parametrize("causal", [True, False])
def test_embeddings_are_mean_last_states_of_unit_length(causal: bool):
    small, texts = lm(causal=causal), ["a long text, longer than the others", "b", "some text"]
    found = small.embed(texts, batch_size=2)
    assert found.shape == (3, 32)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.norm(dim=-1), torch.ones(3))
    for text, vector in zip(texts, found, strict=True):
        with torch.inference_mode():
            mean = small.model.backbone(torch.tensor([[*text.encode()]]))[0].mean(0)
        torch.testing.assert_close(vector, mean / mean.norm(), atol=1e-6, rtol=1e-5)
    assert small.embed([]).shape == (0, 32)


def test_texts_that_cannot_be_embedded_say_why():
    small = lm()
    with pytest.raises(UserError, match="has 60 tokens and this model's context is 48; pass truncate=True"):
        small.embed(["x" * 60])
    torch.testing.assert_close(small.embed(["x" * 60], truncate=True), small.embed(["x" * 48]))
    with pytest.raises(UserError, match="takes a list of texts"):
        small.embed("text")
    with torch.inference_mode():
        beginning = small.model.backbone(torch.tensor([[BOS]]))[0, 0]
    torch.testing.assert_close(small.embed([""])[0], beginning / beginning.norm())
    with pytest.raises(UserError, match="no tokens"):
        lm(bos=False).embed([""])


def test_an_encoder_scores_nothing():
    for work in (lambda small: small.score("text"), lambda small: small.loglikelihood([("a", "b")])):
        with pytest.raises(UserError, match=r"head: masked_lm\) cannot score text"):
            work(lm(causal=False))


def test_it_says_what_it_is():
    assert repr(lm()) == "LM('small', llama, torch.float32, cpu)"
    assert lm().config.eos_ids == (EOS,)
