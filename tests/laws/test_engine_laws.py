"""The engine never gives a different answer: not for company, chunks, known beginnings, a full cache, or guesses."""

import random
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from langwright.infer.admission import open_rows
from langwright.infer.engine import BLOCK_SIZE, Engine, Request
from langwright.infer.row import Generation
from langwright.infer.sampling import SamplingConfig
from langwright.infer.static_batch import decode
from langwright.model.model import Model
from langwright.model.paged import PagePool
from tests.laws.test_generation_laws import DRAWN, GREEDY, KINDS, prompts, small

LONG = {"max_new_tokens": 40}
MIXED = (
    GREEDY.replace(**LONG),
    DRAWN.replace(**LONG),
    SamplingConfig(temperature=0.7, min_p=0.05, presence_penalty=0.5, seed=11, **LONG),
    GREEDY.replace(max_new_tokens=25, repetition_penalty=1.3),
    DRAWN.replace(seed=6),
)
"""Settings of requests that run together; one for each of `prompts`."""


@cache
def alone(kind: str, number: int) -> list[int]:
    """The twin's answer: a batch of one, a static cache."""
    model, sampling = small(kind), MIXED[number]
    rows = open_rows(model, [prompts()[number]], sampling, None)
    for _ in decode(model, rows, sampling):
        pass
    return rows[0].ids


def engine(model: Model, blocks: int = 40, **limits) -> Engine:
    return Engine(model, memory=blocks * PagePool.block_bytes(model.config, BLOCK_SIZE, model.dtype), **limits)


def submit_all(engine: Engine) -> list[Request]:
    return [engine.submit(prompt, own) for prompt, own in zip(prompts(), MIXED, strict=True)]


def answers(requests: list[Request]) -> list[list[int]]:
    return [request.result.token_ids for request in requests]


@pytest.mark.parametrize(
    "limits",
    [{}, {"step_tokens": 5}, {"max_running": 2, "step_tokens": 1}, {"blocks": 6, "step_tokens": 7}, {"speculate": 9}],
    ids=["together", "chunked", "queued", "preempted", "guessed"],
)
@pytest.mark.parametrize("kind", KINDS)
def test_the_load_changes_no_answer(kind: str, limits: dict) -> None:
    running = engine(small(kind), **limits)
    requests = submit_all(running)
    running.run()
    assert answers(requests) == [alone(kind, number) for number in range(5)]
    assert running.cache.available == running.cache.blocks
    assert (running.scheduler.preemptions > 0) == ("blocks" in limits)


@pytest.mark.parametrize("kind", KINDS)
def test_a_known_beginning_changes_no_answer(kind: str) -> None:
    running = engine(small(kind))
    beginning = prompts()[-1] * 2
    for prompt in (beginning, beginning, [*beginning[:40], 1, 2]):
        before = running.counts.read
        request = running.submit(prompt, GREEDY)
        running.run()
        rows = open_rows(small(kind), [prompt], GREEDY, None)
        for _ in decode(small(kind), rows, GREEDY):
            pass
        assert request.result.token_ids == rows[0].ids
        read = running.counts.read - before
    assert read == len(prompt) - 1 - 32


events = st.lists(
    st.one_of(
        st.tuples(st.just("submit"), st.integers(0, 4)),
        st.tuples(st.just("cancel"), st.integers(0, 9)),
        st.tuples(st.just("step"), st.integers(1, 4)),
    ),
    max_size=24,
)


@settings(max_examples=20, deadline=None)
@given(events, st.integers(1, 20), st.integers(1, 4), st.integers(4, 12), st.sampled_from([0, 1, 9]))
def test_any_schedule_gives_the_same_answers(script, step_tokens, max_running, blocks, speculate) -> None:
    running = engine(small("rotary"), blocks, step_tokens=step_tokens, max_running=max_running, speculate=speculate)
    requests: list[tuple[int, Request]] = []
    for what, number in script:
        if what == "submit":
            request = running.submit(prompts()[number], MIXED[number], tenant="ab"[number % 2])
            requests.append((number, request))
        elif what == "cancel" and requests:
            running.cancel(requests[number % len(requests)][1])
        elif what == "step":
            for _ in range(number):
                running.step()
    running.run()
    for number, request in requests:
        whole = alone("rotary", number)
        assert request.row.ids == whole if request.row.finished else request.cancelled
        assert request.row.ids == whole[: len(request.row.ids)]
    assert running.cache.available == running.cache.blocks


def test_hundreds_of_cancels_leave_nothing_behind() -> None:
    draw, running = random.Random(1), engine(small("rotary"), 8, step_tokens=12, max_running=5)
    alive: list[Request] = []
    for _ in range(300):
        number = draw.randrange(5)
        alive.append(running.submit(prompts()[number], MIXED[number]))
        if draw.random() < 0.7:
            running.cancel(alive.pop(draw.randrange(len(alive))))
        for delta in running.step():
            assert not delta.request.cancelled
        alive = [request for request in alive if not request.ended]
    for request in alive:
        running.cancel(request)
    assert running.idle
    assert running.step() == []
    assert running.cache.available == running.cache.blocks


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", ["rotary", "windowed"])
def test_batch_invariant_answers_are_the_same_bit_for_bit(kind: str, dtype: torch.dtype) -> None:
    """Log-probabilities too, whatever the company, the chunks, the known beginnings and who had to give way."""
    model = Model(small(kind).config)
    model.load_state_dict(small(kind).state_dict())
    model = model.to(dtype).eval()
    settings = [own.replace(logprobs=2, max_new_tokens=16) for own in MIXED]

    def run(numbers: list[int], **limits) -> list[Generation]:
        running = engine(model, batch_invariant=True, **limits)
        requests = [running.submit(prompts()[number], settings[number]) for number in numbers]
        running.run()
        return [request.result for request in requests]

    single = [run([number])[0] for number in range(5)]
    assert run([0, 1, 2, 3, 4]) == single
    assert run([4, 2, 0, 3, 1], step_tokens=3) == [single[number] for number in (4, 2, 0, 3, 1)]
    assert run([0, 1, 2, 3, 4], blocks=4, step_tokens=9, speculate=9) == single
    assert run([4, 4, 3, 4], max_running=1) == [single[number] for number in (4, 4, 3, 4)]


def test_logprobs_are_those_of_a_full_forward_for_every_row_of_mixed_requests() -> None:
    model = small("rotary")
    running = engine(model, step_tokens=6, speculate=9)
    settings = [own.replace(logprobs=number) for number, own in enumerate(MIXED)]
    requests = [running.submit(prompt, own) for prompt, own in zip(prompts(), settings, strict=True)]
    running.run()
    for number, request in enumerate(requests):
        found = request.result
        assert found.logprobs is not None
        with torch.inference_mode():
            logits = model(torch.tensor([found.prompt_ids + found.token_ids]))[0, len(found.prompt_ids) - 1 : -1]
        expected = logits.log_softmax(-1)
        assert [len(entry.top) for entry in found.logprobs] == [number] * len(found.token_ids)
        ours = torch.tensor([entry.logprob for entry in found.logprobs])
        own = expected.gather(1, torch.tensor(found.token_ids)[:, None])[:, 0]
        torch.testing.assert_close(ours, own, atol=1e-4, rtol=1e-5)


def test_guesses_are_right_where_the_text_repeats_and_cost_no_step() -> None:
    """A model that loops: its answer is known after one round, and most steps give several tokens."""
    model = small("rotary")
    sampling = GREEDY.replace(max_new_tokens=30)
    counts = []
    for speculate in (0, 1):
        running = engine(model, speculate=speculate)
        request = running.submit([5, 6, 7, 8, 9] * 5, sampling)
        running.run()
        counts.append((request.result.token_ids, running.counts))
    (plain, without), (guessed, with_) = counts
    assert plain == guessed
    assert without.steps == 30
    assert with_.steps == 30 - with_.right
