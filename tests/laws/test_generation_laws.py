"""What must be equal however an answer is computed."""

from functools import cache
from pathlib import Path

import pytest
import torch

from langwright.infer.generate import generate, stream
from langwright.infer.row import Generation
from langwright.infer.sampling import SamplingConfig
from langwright.infer.scoring import continuations, predict
from langwright.model.attention import set_attention
from langwright.model.cache import KVCache
from langwright.model.checkpoint.catalogue import cached_path
from langwright.model.checkpoint.load import load_model
from langwright.model.config import LayerSpec, ModelConfig, Rope
from langwright.model.model import Model, build_model
from langwright.tokenizer.tokenizer import Tokenizer
from langwright.tokenizer.training import train_bpe

V = 300
SIZES = {
    "d_model": 32,
    "n_layers": 4,
    "n_heads": 4,
    "n_kv_heads": 2,
    "d_head": 8,
    "d_mlp": 48,
    "vocab_size": V,
    "max_positions": 64,
    "init_std": 0.4,  # wide enough that no two logits tie
}
KINDS = {
    "rotary": {"family": "llama"},
    "learned": {
        "family": "gpt2",
        "positions": "learned",
        "layer_specs": {"full": LayerSpec()},
        "norm": "layernorm",
        "norm_bias": True,
        "gated": False,
        "activation": "gelu_tanh",
    },
    "windowed": {
        "family": "gemma3_text",
        "layer_types": ("near", "full", "near", "full"),
        "layer_specs": {"near": LayerSpec(window=5, rope=Rope()), "full": LayerSpec(rope=Rope(theta=1e5))},
        "norm": "gemma_rmsnorm",
        "norm_slots": ("attn_in", "attn_out", "mlp_in", "mlp_out"),
        "qk_norm": True,
        "logit_softcap": 30.0,
    },
    "capped": {"family": "gemma2", "attn_softcap": 20.0},
}
GREEDY = SamplingConfig(temperature=0, max_new_tokens=12, ignore_eos=True)
DRAWN = SamplingConfig(
    temperature=0.9, top_k=40, top_p=0.95, repetition_penalty=1.2, frequency_penalty=0.3, seed=5, max_new_tokens=12
)


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Small models on several threads only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@cache
def small(kind: str) -> Model:
    return build_model(ModelConfig(**(SIZES | KINDS[kind])), seed=1).eval()


def prompts(count: int = 5, longest: int = 23) -> list[list[int]]:
    """Ragged: from 1 to ``longest`` tokens."""
    generator = torch.Generator().manual_seed(3)
    lengths = torch.linspace(1, longest, count).long().tolist()
    return [torch.randint(V, (length,), generator=generator).tolist() for length in lengths]


def tokens(answers: list[Generation]) -> list[list[int]]:
    return [answer.token_ids for answer in answers]


def one_by_one(model: Model, sampling: SamplingConfig) -> list[list[int]]:
    return [generate(model, [prompt], sampling)[0].token_ids for prompt in prompts()]


@torch.inference_mode()
def without_cache(model: Model, prompt: list[int], count: int) -> list[int]:
    """The naive twin: the whole sequence again for every token."""
    ids = list(prompt)
    for _ in range(count):
        ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
    return ids[len(prompt) :]


@pytest.mark.parametrize("kind", KINDS)
def test_cached_is_uncached(kind: str) -> None:
    model = small(kind)
    assert one_by_one(model, GREEDY) == [without_cache(model, prompt, 12) for prompt in prompts()]


@pytest.mark.parametrize("sampling", [GREEDY, DRAWN], ids=["greedy", "drawn"])
@pytest.mark.parametrize("kind", KINDS)
def test_batched_is_single(kind: str, sampling: SamplingConfig) -> None:
    model, alone = small(kind), one_by_one(small(kind), sampling)
    assert tokens(generate(model, prompts(), sampling)) == alone
    assert tokens(generate(model, prompts(), sampling, batch_size=2)) == alone
    assert tokens(generate(model, prompts()[::-1], sampling)) == alone[::-1]


@pytest.mark.parametrize("kind", KINDS)
def test_rows_that_end_early_leave_the_others_alone(kind: str) -> None:
    """Each row ends at an end token of its own choosing; the rest goes on as if it were still there."""
    model = small(kind)
    alone = one_by_one(model, GREEDY)
    ends = (alone[0][3], alone[2][6])
    ending = Model(model.config.replace(eos_ids=ends), "causal_lm")
    ending.load_state_dict(model.state_dict())
    answers = generate(ending, prompts(), GREEDY.replace(ignore_eos=False))
    for answer, whole in zip(answers, alone, strict=True):
        stop = next((number + 1 for number, token in enumerate(whole) if token in ends), len(whole))
        assert answer.token_ids == whole[:stop]
        assert answer.finish_reason == ("stop" if set(whole) & set(ends) else "length")


@pytest.mark.parametrize("kind", KINDS)
def test_a_full_context_ends_a_row_and_leaves_the_others_alone(kind: str) -> None:
    model = small(kind)
    pair = [prompts()[1], prompts(longest=60)[-1]]
    answers = generate(model, pair, GREEDY.replace(max_new_tokens=30))
    assert [len(answer.token_ids) for answer in answers] == [30, 4]
    assert [answer.finish_reason for answer in answers] == ["length", "length"]
    for prompt, answer in zip(pair, answers, strict=True):
        assert answer.token_ids == without_cache(model, prompt, len(answer.token_ids))


@pytest.mark.parametrize("kind", ["rotary", "learned", "windowed"])
def test_eager_is_sdpa(kind: str) -> None:
    expected = tokens(generate(small(kind), prompts(), GREEDY))
    model = Model(small(kind).config)
    model.load_state_dict(small(kind).state_dict())
    set_attention(model, model.config, "eager")
    assert tokens(generate(model, prompts(), GREEDY)) == expected


@torch.inference_mode()
@pytest.mark.parametrize("kind", KINDS)
def test_static_cache_is_growing_cache(kind: str) -> None:
    model, ids = small(kind), torch.tensor([prompts()[-1], prompts()[-1][::-1]])
    found = []
    for kv in (KVCache.growing(model.config), KVCache.static(model.config, 2, 40, torch.float32, "cpu")):
        logits = [model(ids, cache=kv)[:, -1:]]
        for _ in range(10):
            logits.append(model(logits[-1].argmax(-1), cache=kv))
        found.append(torch.cat(logits, 1))
    torch.testing.assert_close(*found, atol=1e-5, rtol=1e-5)


@cache
def small_tokenizer() -> Tokenizer:
    text = "The tide came in, and the tide went out; 潮来潮去。 Nobody minded 🌊!"
    return train_bpe([text] * 3, 280, pre_tokenizer="gpt2")


@pytest.mark.parametrize("sampling", [GREEDY, DRAWN], ids=["greedy", "drawn"])
@pytest.mark.parametrize("stop", [(), ("e",), ("\ufffd", "tide")], ids=["", "e", "two"])
@pytest.mark.parametrize("kind", KINDS)
def test_streamed_is_whole(kind: str, sampling: SamplingConfig, stop: tuple[str, ...]) -> None:
    model, tokenizer, sampling = small(kind), small_tokenizer(), sampling.replace(stop=stop, max_new_tokens=30)
    whole = generate(model, prompts(), sampling, tokenizer=tokenizer)
    for prompt, expected in zip(prompts(), whole, strict=True):
        flow = stream(model, prompt, sampling, tokenizer=tokenizer)
        assert "".join(flow) == expected.text
        assert flow.result == expected
        plain = tokenizer.decode(expected.token_ids, skip_special_tokens=True)
        assert plain.startswith(expected.text)
        assert plain == expected.text or expected.stop in stop


def test_logprobs_are_those_of_a_full_forward() -> None:
    model, sampling = small("windowed"), DRAWN.replace(logprobs=3)
    for prompt, answer in zip(prompts(), generate(model, prompts(), sampling), strict=True):
        assert answer.logprobs is not None
        with torch.inference_mode():
            logits = model(torch.tensor([prompt + answer.token_ids]))[0, len(prompt) - 1 : -1]
        expected = logits.log_softmax(-1)  # (N, V)
        best = expected.topk(3)
        assert [entry.token_id for entry in answer.logprobs] == answer.token_ids
        assert [[token for token, _ in entry.top] for entry in answer.logprobs] == best.indices.tolist()
        ours = torch.tensor([[entry.logprob, *(value for _, value in entry.top)] for entry in answer.logprobs])
        theirs = torch.cat((expected.gather(1, torch.tensor(answer.token_ids)[:, None]), best.values), 1)
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_scores_are_those_of_a_full_forward(kind: str) -> None:
    model, long = small(kind), prompts(2, 60)[-1]
    with torch.inference_mode():
        logprobs = model(torch.tensor([long]))[0, :-1].double().log_softmax(-1)
    expected = logprobs.gather(1, torch.tensor(long)[1:, None])[:, 0]
    torch.testing.assert_close(predict(model, long, 64, 32), expected, atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(predict(model, long, 20, 7)[:20], expected[:20], atol=1e-4, rtol=1e-5)
    pairs = [(long[:10], long[10:14]), (long[:1], long[1:]), (long[:30], long[30:31])]
    for (before, after), likelihood in zip(pairs, continuations(model, pairs), strict=True):
        span = slice(len(before) - 1, len(before) + len(after) - 1)
        assert likelihood.logprob == pytest.approx(float(expected[span].sum()), abs=1e-3)
        assert likelihood.is_greedy == (logprobs[span].argmax(-1).tolist() == after)


def assert_same_choices(ours: list[int], theirs: list[int], logits: torch.Tensor) -> None:
    """Equal, or parted where the two choices tie: ``logits`` (N, V) are the reference's along its own choices."""
    for step, (mine, other) in enumerate(zip(ours, theirs, strict=False)):
        if mine != other:
            difference = float(logits[step, other] - logits[step, mine])
            assert difference < 1e-4, f"step {step}: {mine} instead of {other}, {difference} less"
            return
    assert len(ours) == len(theirs)


@torch.inference_mode()
def reference_greedy(reference, prompts: list[list[int]], count: int) -> list[tuple[list[int], torch.Tensor]]:
    """Greedy answers of a transformers model and the logits (N, V) they were chosen from, padded on the left."""
    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    out = reference.generate(
        ids,
        attention_mask=mask,
        max_new_tokens=count,
        do_sample=False,
        return_dict_in_generate=True,
        output_logits=True,
    )
    logits = torch.stack(out.logits, 1).float()  # (B, N, V)
    return [(row, logits[number]) for number, row in enumerate(out.sequences[:, longest:].tolist())]


def test_greedy_is_that_of_transformers_on_a_small_llama(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    reference = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=V,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=128,
            initializer_range=0.3,
            bos_token_id=None,
            eos_token_id=None,
        )
    ).eval()
    reference.save_pretrained(tmp_path)
    model = load_model(tmp_path)
    sampling = SamplingConfig(temperature=0, max_new_tokens=40)
    ours = generate(model, prompts(20), sampling)
    for answer, (theirs, logits) in zip(ours, reference_greedy(reference, prompts(20), 40), strict=True):
        assert_same_choices(answer.token_ids, theirs, logits)


TEXTS = [
    "The capital of France is",
    "Once upon a time, in a village by the sea,",
    "def fibonacci(n):\n    ",
    "Water boils at",
    "To make a good cup of tea, first",
    "1, 2, 3, 4,",
    "The three laws of motion state that",
    "Dear Sir or Madam,\n\nI am writing to",
    "SELECT name FROM customers WHERE",
    "光合作用是",
    "Photosynthesis is the process by which",
    "The opposite of hot is",
    "In 1969, Neil Armstrong",
    "import numpy as np\n\nx = np.",
    "Q: What is the largest planet?\nA:",
    "It was a bright cold day in April, and",
    "La tour Eiffel se trouve",
    "Shakespeare wrote",
    "🌊 The ocean covers",
    "A list of fruits:\n- apple\n-",
]


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_greedy_is_that_of_transformers_on_smollm2() -> None:
    """Both read the same GGUF, each with its own dequantisation; 20 prompts, 64 new tokens."""
    transformers = pytest.importorskip("transformers")
    from langwright.tokenizer.load import load_tokenizer

    path = cached_path("smollm2-135m-instruct")
    if path is None:
        pytest.skip("smollm2-135m-instruct is not in the cache; langwright models pull fetches it")
    model, tokenizer = load_model(path, dtype=torch.float32), load_tokenizer(path)
    ids = [tokenizer.encode(text) for text in TEXTS]
    sampling = SamplingConfig(temperature=0, max_new_tokens=64, ignore_eos=True)
    ours = generate(model, ids, sampling, tokenizer=tokenizer, batch_size=20)
    reference = transformers.AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32
    ).eval()
    reference.generation_config = transformers.GenerationConfig(pad_token_id=0)
    for answer, (theirs, logits) in zip(ours, reference_greedy(reference, ids, 64), strict=True):
        assert_same_choices(answer.token_ids, theirs, logits)
