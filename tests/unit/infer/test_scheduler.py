"""Who computes what in the next step: order, budgets, blocks, and what comes back when requests end. No model here."""

import random

import pytest

from langwright.core.errors import UserError
from langwright.infer.prefix_cache import PrefixCache
from langwright.infer.scheduler import Job, Scheduler

SIZE = 4
FEW = 14


def build(blocks: int = 16, step_tokens: int = 8, max_running: int = 4) -> Scheduler:
    return Scheduler(PrefixCache(blocks, SIZE), step_tokens=step_tokens, max_running=max_running)


def job(length: int, new: int = 4, first: int = 0, tenant: str = "") -> Job:
    return Job(list(range(first, first + length)), length + new, tenant)


def run_step(scheduler: Scheduler, token: int = 7) -> list[tuple[int, int, int]]:
    """Do what is planned, as a model that always says ``token`` would: (arrival, start, count) of each."""
    work = scheduler.plan()
    for one in work:
        if one.chooses:
            one.job.ids.append(token)
        scheduler.commit(one.job, min(one.start + one.length, len(one.job.ids) - 1))
        if len(one.job.ids) == one.job.limit:
            scheduler.remove(one.job)
    return [(one.job.arrival, one.start, one.length) for one in work]


def test_whoever_writes_comes_first_and_prompts_get_what_is_left():
    scheduler = build()
    scheduler.add(job(3))
    assert run_step(scheduler) == [(0, 0, 3)]
    scheduler.add(job(12, first=50))
    assert run_step(scheduler) == [(0, 3, 1), (1, 0, 7)]
    assert run_step(scheduler) == [(0, 4, 1), (1, 7, 5)]
    assert run_step(scheduler) == [(0, 5, 1), (1, 12, 1)]


def test_no_step_takes_more_tokens_or_requests_than_it_may():
    scheduler = build(blocks=64, step_tokens=5, max_running=3)
    for number in range(6):
        scheduler.add(job(7, first=100 * number))
    while steps := run_step(scheduler):
        assert sum(count for _, _, count in steps) <= 5
        assert len(scheduler.running) <= 3


def test_a_known_beginning_is_not_computed_again_but_by_its_own_tenant():
    scheduler = build()
    scheduler.add(job(8, tenant="a"))
    while run_step(scheduler):
        pass
    scheduler.add(job(8, tenant="b"))
    assert run_step(scheduler) == [(1, 0, 8)]
    while run_step(scheduler):
        pass
    scheduler.add(job(8, tenant="a"))
    assert run_step(scheduler) == [(2, 4, 4)]  # the last token's own output is needed, so its block is not taken


def test_the_youngest_gives_way_and_begins_again_where_the_tree_still_knows_it():
    scheduler = build(blocks=6, step_tokens=16)
    old, young = job(8, new=12), job(8, new=12, first=50)
    scheduler.add(old)
    scheduler.add(young)
    ended = []
    for _ in range(60):
        run_step(scheduler)
        ended += [one for one in (old, young) if len(one.ids) == one.limit and one not in ended]
    assert ended == [old, young]
    assert scheduler.preemptions > 0
    assert scheduler.cache.available == 6


def test_guesses_cost_nobody_a_block():
    scheduler = build(blocks=4, step_tokens=16)
    first, second = job(7, new=5), job(4, new=4, first=50)
    scheduler.add(first)
    scheduler.add(second)
    assert run_step(scheduler) == [(0, 0, 7), (1, 0, 4)]
    first.draft = [7, 7, 7]
    second.draft = [7, 7]
    assert run_step(scheduler) == [(0, 7, 1), (1, 4, 3)]
    assert scheduler.preemptions == 0


def test_the_longest_unused_beginning_is_given_up_first():
    cache = PrefixCache(4, 2)
    for first in (0, 10):
        blocks = cache.take(2)
        assert blocks is not None
        top = cache.add("", None, (first, first + 1), blocks[0])
        below = cache.add("", top, (first + 2, first + 3), blocks[1])
        cache.release("", [top, below])
    cache.release("", cache.match("", [0, 1, 2, 3]))  # used again: now the other one is older
    assert cache.take(1) is not None
    assert len(cache.match("", [0, 1, 2, 3])) == 2
    assert len(cache.match("", [10, 11, 12, 13])) == 1  # the end of a beginning goes before its start


def test_what_two_compute_at_the_same_time_is_known_once_and_given_back_twice():
    cache = PrefixCache(4, 2)
    blocks = cache.take(2)
    assert blocks is not None
    first = cache.add("", None, (1, 2), blocks[0])
    second = cache.add("", None, (1, 2), blocks[1])
    assert first is second
    cache.give([blocks[1]])
    cache.release("", [first])
    assert cache.available == 3
    cache.release("", [second])
    assert cache.available == 4


def test_a_request_that_can_never_fit_is_refused():
    scheduler = build(blocks=2)
    with pytest.raises(UserError, match="may grow to 9 tokens and the cache has room for 8"):
        scheduler.add(job(5))
    assert not scheduler.waiting
    with pytest.raises(UserError, match="must be at least 1"):
        build(step_tokens=0)


def test_ten_thousand_arrivals_and_cancels_give_every_block_back():
    """Requests share beginnings and tenants, blocks are scarce; nothing is lost, and memory does not grow."""
    draw = random.Random(0)
    scheduler = Scheduler(PrefixCache(FEW, SIZE), step_tokens=16, max_running=6)
    alive: list[Job] = []
    for event in range(10_000):
        if draw.random() < 0.5 or not alive:
            beginning = [draw.randrange(3)] * draw.randrange(13)
            ids = beginning + [draw.randrange(100) for _ in range(draw.randrange(1, 12))]
            alive.append(Job(ids, len(ids) + draw.randrange(1, 24), draw.choice(["", "a", "b"])))
            scheduler.add(alive[-1])
        else:
            scheduler.remove(alive.pop(draw.randrange(len(alive))))
        for _ in range(draw.randrange(6)):
            for one in scheduler.plan():
                one.job.draft = []
                if one.chooses:
                    one.job.ids.append(draw.randrange(4))
                    one.job.draft = [1] * min(draw.randrange(3), one.job.limit - len(one.job.ids) - 1)
                scheduler.commit(one.job, min(one.start + one.length, len(one.job.ids) - 1))
                if len(one.job.ids) == one.job.limit:
                    scheduler.remove(one.job)
                    alive.remove(one.job)
        if event % 50 == 0:
            check_blocks(scheduler)
        if event % 1000 == 999:
            while alive:
                scheduler.remove(alive.pop())
            assert scheduler.cache.available == FEW
            assert not scheduler.running
            assert not scheduler.waiting
    assert scheduler.preemptions > 100


def check_blocks(scheduler: Scheduler) -> None:
    """Every block is free, known and idle, or somebody's; nobody's own block is another's."""
    shared = {node.block for one in scheduler.running for node in one.nodes}
    own = [block for one in scheduler.running for block in one.blocks if block not in shared]
    assert len(own) == len(set(own))
    assert scheduler.cache.available + len(shared) + len(own) == FEW
    for one in scheduler.running:
        assert one.computed <= len(one.blocks) * SIZE
        assert len(one.nodes) == one.computed // SIZE
