"""Many at once in one event loop: each gets its own answer, leaving ends the work, closing leaves nobody waiting."""

import asyncio
from contextlib import aclosing

import pytest
import torch

from langwright.core.errors import UserError
from langwright.infer.async_engine import AsyncEngine
from langwright.infer.engine import Delta, Engine
from langwright.infer.generate import generate
from langwright.infer.sampling import SamplingConfig
from langwright.model.model import build_model
from tests.unit.infer.small import byte_tokenizer, random_model

SAMPLING = SamplingConfig(temperature=0, max_new_tokens=12, ignore_eos=True)


def build() -> Engine:
    return Engine(random_model(), byte_tokenizer(), memory=1 << 20)


async def collect(engine: AsyncEngine, prompt: list[int]) -> list[Delta]:
    return [delta async for delta in engine.submit(prompt, SAMPLING)]


def test_each_gets_its_own_answer_in_pieces():
    prompts = [[number, 65] for number in range(8)]

    async def run() -> list[list[Delta]]:
        async with AsyncEngine(build()) as engine:
            return await asyncio.gather(*(collect(engine, prompt) for prompt in prompts))

    expected = generate(random_model(), prompts, SAMPLING, tokenizer=byte_tokenizer())
    for deltas, answer in zip(asyncio.run(run()), expected, strict=True):
        assert [delta.token_id for delta in deltas] == answer.token_ids
        assert "".join(delta.text for delta in deltas) == answer.text
        assert deltas[-1].request.result == answer


def test_leaving_ends_the_work_within_a_step():
    async def run() -> None:
        inner = build()
        async with AsyncEngine(inner) as engine:
            async with aclosing(engine.submit([65], SAMPLING.replace(max_new_tokens=40))) as deltas:
                async for _ in deltas:
                    break
            task = asyncio.create_task(collect(engine, [66]))
            await asyncio.sleep(0)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            assert len(await collect(engine, [67])) == 12
        assert inner.idle
        assert inner.cache.available == inner.cache.blocks
        assert inner.counts.written < 40

    asyncio.run(run())


def test_what_is_wrong_is_raised_before_work_and_disturbs_nobody():
    async def run() -> None:
        async with AsyncEngine(build()) as engine:
            task = asyncio.create_task(collect(engine, [65]))
            await asyncio.sleep(0)
            with pytest.raises(UserError, match="token id 9999 is outside"):
                engine.submit([9999], SAMPLING)
            assert [delta async for delta in engine.submit([65], SAMPLING.replace(max_new_tokens=0))] == []
            assert len(await task) == 12

    asyncio.run(run())


def test_closing_tells_everybody_who_waits():
    async def run() -> None:
        engine = AsyncEngine(build())
        deltas = engine.submit([65], SAMPLING.replace(max_new_tokens=40))
        await anext(deltas)
        await engine.close()
        with pytest.raises(UserError, match="closed before the answer was finished"):
            async for _ in deltas:
                pass
        with pytest.raises(UserError, match="the engine is closed"):
            await anext(engine.submit([65], SAMPLING))
        await engine.close()

    asyncio.run(run())


def test_a_step_that_fails_is_reported_to_those_in_it_and_the_engine_goes_on():
    async def run() -> None:
        inner = build()
        async with AsyncEngine(inner) as engine:
            hook = inner.model.backbone.register_forward_pre_hook(lambda *_: (_ for _ in ()).throw(MemoryError("full")))
            with pytest.raises(MemoryError, match="full"):
                await collect(engine, [65])
            hook.remove()
            assert len(await collect(engine, [65])) == 12
        assert inner.cache.available == inner.cache.blocks

    asyncio.run(run())


def test_a_damaged_row_ends_alone():
    """A token whose embedding is not a number: requests that hold it end with an error, the others do not notice."""
    model = build_model(random_model().config.replace(tie_embeddings=False), seed=2).eval()
    with torch.no_grad():
        model.get_parameter("backbone.embed.tokens.weight")[7] = float("nan")
    engine = Engine(model, memory=1 << 20)
    bad, good = engine.submit([7], SAMPLING), engine.submit([65], SAMPLING)
    engine.run()
    with pytest.raises(UserError, match="not finite"):
        _ = bad.result
    assert len(good.result.token_ids) == 12
    assert engine.cache.available == engine.cache.blocks


def test_what_a_damaged_row_leaves_in_its_blocks_reaches_nobody():
    model = build_model(random_model().config.replace(tie_embeddings=False), seed=2).eval()
    expected = generate(model, [[65, 66, 67], [65] * 20], SAMPLING)
    with torch.no_grad():
        model.get_parameter("backbone.embed.tokens.weight")[7] = float("nan")
    engine = Engine(model, memory=4 * 4096)
    engine.submit([7] * 47, SAMPLING)
    engine.run()
    requests = [engine.submit([65, 66, 67], SAMPLING), engine.submit([65] * 20, SAMPLING)]
    engine.run()
    assert [request.result for request in requests] == expected


def test_what_cannot_be_run_is_refused():
    with pytest.raises(UserError, match="memory is 100 bytes and the cache of 16 tokens of this model takes 4096"):
        Engine(random_model(), memory=100)
    with pytest.raises(UserError, match="speculate is -1"):
        Engine(random_model(), speculate=-1)
    with pytest.raises(UserError, match="must be at least 1"):
        Engine(random_model(), memory=4096, max_running=0)
    engine = Engine(random_model(), memory=3 * 4096)
    with pytest.raises(UserError, match="the prompt has 49 tokens"):
        engine.submit([1] * 49, SAMPLING)
    small = Engine(random_model(), memory=2 * 4096)
    with pytest.raises(UserError, match="may grow to 40 tokens and the cache has room for 32"):
        small.submit([1] * 28, SAMPLING)
    small.submit([1] * 20, SAMPLING)
    small.run()
    assert small.counts.written == 12
