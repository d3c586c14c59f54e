"""Prompts in, answers out: ends, stops, streams, and what is refused before work starts."""

from typing import Any

import numpy as np
import pytest
import torch

from langwright.core.errors import UserError
from langwright.infer.generate import generate, stream
from langwright.infer.sampling import SamplingConfig
from tests.unit.infer.small import BOS, END_OF_TURN, EOS, V, byte_tokenizer, random_model, scripted

GREEDY = SamplingConfig(temperature=0, max_new_tokens=20)


def answer(text: str | list[int], prompt: list[int] | None = None, *, model=None, **settings):
    """What a model that wants to say ``text`` says to a prompt of one token."""
    script = list(text.encode()) if isinstance(text, str) else text
    sampling = GREEDY.replace(**settings)
    return generate(model or scripted(script), [prompt or [65]], sampling, tokenizer=byte_tokenizer())[0]


def forwards(model) -> list[int]:
    """A list that grows by the number of tokens of every forward of ``model``."""
    seen: list[int] = []
    model.backbone.register_forward_pre_hook(lambda _, args: seen.append(args[0].shape[1]))
    return seen


def test_an_end_token_ends_the_answer_and_is_not_text():
    found = answer([*b"Hi!", EOS, *b"more"])
    assert (found.text, found.finish_reason, found.stop) == ("Hi!", "stop", None)
    assert found.token_ids == [*b"Hi!", EOS]
    assert found.prompt_ids == [65]


def test_the_limit_ends_the_answer():
    found = answer("abcdefgh", max_new_tokens=3)
    assert (found.text, found.finish_reason, found.token_ids) == ("abc", "length", [*b"abc"])


def test_no_tokens_asked_none_computed():
    model = scripted([1])
    seen = forwards(model)
    found = generate(model, [[65], list(range(64))], GREEDY.replace(max_new_tokens=0))
    assert [one.finish_reason for one in found] == ["length", "length"]
    assert [one.token_ids for one in found] == [[], []]
    assert seen == []


def test_the_context_ends_the_answer():
    found = answer("x" * 64, [65] * 60)
    assert (found.text, found.finish_reason) == ("xxxx", "length")


def test_stop_strings_are_found_across_tokens_and_cut_off():
    found = answer("one\n\nQ: two", stop="\n\nQ:")
    assert (found.text, found.finish_reason, found.stop) == ("one", "stop", "\n\nQ:")
    assert found.token_ids == [*b"one\n\nQ:"]


def test_a_stop_string_of_several_bytes_a_character():
    found = answer("潮🌊去", stop=["🌊", "x"])
    assert (found.text, found.stop) == ("潮", "🌊")


def test_an_unfinished_stop_string_is_text():
    assert answer("say EN", stop="END", max_new_tokens=6).text == "say EN"
    assert answer([*b"say EN", EOS, *b"D"], stop="END").text == "say EN"


def test_a_stop_string_that_is_a_special_token_stops_at_it():
    found = answer([*b"yes", END_OF_TURN, *b"no"], stop="<|im_end|>")
    assert (found.text, found.finish_reason) == ("yes", "stop")
    assert found.token_ids == [*b"yes", END_OF_TURN]
    assert answer([*b"yes", END_OF_TURN, *b"no"], max_new_tokens=6).text == "yesno"


def test_end_tokens_may_be_ignored():
    found = answer([*b"a", EOS, *b"b", EOS], ignore_eos=True, max_new_tokens=4)
    assert (found.text, found.finish_reason, found.token_ids) == ("ab", "length", [*b"a", EOS, *b"b", EOS])


def test_end_tokens_wait_for_the_minimum():
    found = answer([EOS] * 10, min_new_tokens=3)
    assert len(found.token_ids) == 4
    assert EOS not in found.token_ids[:3]


def test_end_tokens_of_the_tokenizer_count_too():
    model = scripted([*b"a", EOS, *b"b"], eos_ids=())
    assert answer("", model=model).token_ids == [*b"a", EOS]
    assert len(generate(model, [[65]], GREEDY)[0].token_ids) == 20


def test_ids_without_a_token_are_not_chosen():
    model = scripted([300, 301, *b"ok"], vocab_size=400)
    assert all(token < V for token in answer("", model=model, max_new_tokens=4).token_ids)


def test_an_empty_prompt_is_the_beginning_token():
    found = generate(scripted([*b"ab"]), [[]], GREEDY.replace(max_new_tokens=2), tokenizer=byte_tokenizer())[0]
    assert (found.prompt_ids, found.text) == ([BOS], "ab")
    with pytest.raises(UserError, match="no beginning token"):
        generate(scripted([1]), [[]], GREEDY, tokenizer=byte_tokenizer(bos=False))


def test_answers_come_in_the_order_of_their_prompts():
    model, prompts = random_model(), [[1] * 9, [2], [3] * 4, [4] * 2]
    seen: dict[int, list[int]] = {}
    found = generate(
        model,
        prompts,
        GREEDY,
        batch_size=2,
        on_token=lambda token: seen.setdefault(token.row, []).append(token.token_id),
    )
    assert [one.prompt_ids for one in found] == prompts
    assert [seen[row] for row in range(4)] == [one.token_ids for one in found]
    assert generate(model, [], GREEDY) == []


def test_a_stream_gives_whole_characters_and_then_the_result():
    text = "naïve 潮水 🌊👩‍👩‍👧!"
    model, sampling = scripted([*text.encode(), EOS]), GREEDY.replace(max_new_tokens=60)
    flow = stream(model, [65], sampling, tokenizer=byte_tokenizer())
    assert flow.result is None
    pieces = list(flow)
    assert "".join(pieces) == text
    assert all(pieces)
    assert not any("\ufffd" in piece for piece in pieces)
    assert flow.result == generate(model, [[65]], sampling, tokenizer=byte_tokenizer())[0]


def test_a_stream_holds_back_what_may_become_a_stop_string():
    flow = stream(scripted([*b"so ENough END"]), [65], GREEDY.replace(stop="END"), tokenizer=byte_tokenizer())
    pieces = list(flow)
    assert "".join(pieces) == "so ENough "
    assert "E" not in pieces
    assert "ENo" in pieces


def test_leaving_a_stream_stops_the_computation():
    model = scripted([*b"abcdefghijklmnop"])
    seen = forwards(model)
    with stream(model, [65, 66], GREEDY, tokenizer=byte_tokenizer()) as flow:
        assert seen == []
        assert [next(flow) for _ in range(3)] == ["b", "c", "d"]
        assert seen == [2, 1, 1]
    assert list(flow) == []
    assert seen == [2, 1, 1]
    assert flow.token_ids == [*b"bcd"]
    assert flow.result is None


def test_a_broken_character_at_the_end_is_shown_as_decode_shows_it():
    ids = [*b"ok ", *"🌊".encode()[:2]]
    found = answer(ids, max_new_tokens=5)
    assert found.text == byte_tokenizer().decode(ids) == "ok \ufffd"


def test_the_mode_of_the_model_is_put_back():
    model = random_model().train()
    generate(model, [[1]], GREEDY)
    assert model.training
    flow = stream(model, [1], GREEDY, tokenizer=byte_tokenizer())
    next(flow)
    flow.close()
    assert model.training
    assert model.backbone.layers[0].training


def test_without_a_seed_torchs_generator_decides():
    model, sampling = random_model(), SamplingConfig(temperature=5, max_new_tokens=16)
    runs = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        runs.append([one.token_ids for one in generate(model, [[1], [1]], sampling)])
    assert runs[0] == runs[1] != runs[2]
    assert runs[0][0] != runs[0][1]


def test_ids_may_be_numpys():
    model = random_model()
    ids: Any = np.array([1, 2, 3])
    assert generate(model, [ids], GREEDY) == generate(model, [[1, 2, 3]], GREEDY)


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ([1] * 65, "the prompt has 65 tokens and this model's context is 64"),
        ([1] * 64, "the prompt has 64 tokens and this model's context is 64, answer included"),
        ([1, V], f"token id {V} is outside the vocabulary; this model's ids are 0 to {V - 1}"),
        ([-1], "token id -1 is outside"),
        ([10**30], "is outside"),
        ([1.0], "1.0 is not a token id"),
        ([True], "True is not a token id"),
        (["a"], "'a' is not a token id"),
    ],
)
def test_prompts_that_cannot_run_are_refused_before_any_work(prompt, message):
    model = scripted([1])
    seen = forwards(model)
    with pytest.raises(UserError, match=message):
        generate(model, [[1], prompt], GREEDY)
    with pytest.raises(UserError, match=message):
        stream(model, prompt, GREEDY, tokenizer=byte_tokenizer())
    assert seen == []


def test_requests_that_make_no_sense_are_refused():
    with pytest.raises(UserError, match=r"head: masked_lm\) cannot generate"):
        generate(random_model(causal=False), [[1]], GREEDY)
    with pytest.raises(UserError, match="stop strings need a tokenizer"):
        generate(random_model(), [[1]], GREEDY.replace(stop="x"))
    with pytest.raises(UserError, match="logit_bias names token id 999"):
        generate(random_model(), [[1]], GREEDY.replace(logit_bias={999: 1.0}))
    with pytest.raises(UserError, match="batch_size is 0"):
        generate(random_model(), [[1]], GREEDY, batch_size=0)


def test_a_model_that_gives_no_numbers_is_reported():
    model = random_model()
    with torch.no_grad():
        model.get_parameter("backbone.final_norm.weight")[0] = float("nan")
    with pytest.raises(UserError, match="not finite"):
        generate(model, [[1]], GREEDY)
