"""Who computes what in the next step. No tensors here, and no text.

Decode first: every request that waits for its next token gets it in every step; what is left of the step's tokens goes
to prompts, a chunk at a time, in order of arrival. When blocks run out the youngest request gives all of its own up and
later computes again what it knew; the oldest one therefore always goes on.
"""

from bisect import insort
from dataclasses import dataclass, field
from typing import NamedTuple

from langwright.core.errors import UserError
from langwright.infer.prefix_cache import Node, PrefixCache


@dataclass(eq=False, slots=True)
class Job:
    """What is scheduled of one request."""

    ids: list[int]
    """Prompt and answer so far; whoever runs the step appends to it."""
    limit: int
    """The longest that ``ids`` can become."""
    tenant: str = ""
    draft: list[int] = field(default_factory=list)
    """Guesses at what follows ``ids``, computed in one step with it."""
    computed: int = 0
    """Tokens whose keys and values are in its blocks."""
    blocks: list[int] = field(default_factory=list)
    nodes: list[Node] = field(default_factory=list)
    """The tree's nodes for its first blocks."""
    arrival: int = -1

    @property
    def pending(self) -> int:
        """Tokens to compute before the next one can be chosen."""
        return len(self.ids) - self.computed


class Work(NamedTuple):
    """``length`` tokens of a job from position ``start``: its pending ones, or drafts after the last."""

    job: Job
    start: int
    length: int

    @property
    def chooses(self) -> bool:
        """Whether the next token can be chosen after it."""
        return self.start + self.length >= len(self.job.ids)


class Scheduler:
    """Plans steps of at most ``step_tokens`` tokens for at most ``max_running`` requests at a time."""

    def __init__(self, cache: PrefixCache, *, step_tokens: int, max_running: int):
        if step_tokens < 1 or max_running < 1:
            raise UserError(f"step_tokens ({step_tokens}) and max_running ({max_running}) must be at least 1")
        self.cache, self.step_tokens, self.max_running = cache, step_tokens, max_running
        self.waiting: list[Job] = []
        self.running: list[Job] = []
        self.preemptions = 0
        self._arrivals = 0

    def check(self, limit: int) -> None:
        """Raises `UserError` where the whole cache is too small for a request of ``limit`` tokens."""
        room = self.cache.blocks * self.cache.size
        if limit > room:
            raise UserError(
                f"the request may grow to {limit} tokens and the cache has room for {room}; give the engine more "
                "memory, or shorten the prompt or max_new_tokens"
            )

    def add(self, job: Job) -> None:
        """Put a new job at the end of the queue; raises as `check` does."""
        self.check(job.limit)
        job.arrival, self._arrivals = self._arrivals, self._arrivals + 1
        self.waiting.append(job)

    def remove(self, job: Job) -> None:
        """The job has ended, or is cancelled: its blocks are free from now on."""
        (self.running if job in self.running else self.waiting).remove(job)
        self._give_up(job)

    def plan(self) -> list[Work]:
        """The next step, single tokens first; empty when there is nothing to do."""
        work: list[Work] = []
        left, before = self.step_tokens, self.preemptions
        for job in sorted(self.running, key=lambda job: job.pending > 1):  # stable: the oldest first among each
            if left and job in self.running:
                left -= self._assign(work, job, left)
        while left and self.waiting and len(self.running) < self.max_running and self.preemptions == before:
            job = self.waiting[0]
            if not self._admit(job):
                break
            left -= self._assign(work, job, left)
        return sorted(work, key=lambda one: (one.length > 1, one.start))

    def commit(self, job: Job, computed: int) -> None:
        """``computed`` tokens of the job now have their keys and values; whole blocks become known beginnings."""
        job.computed = computed
        size = self.cache.size
        for number in range(len(job.nodes), computed // size):
            key = tuple(job.ids[number * size : (number + 1) * size])
            before = job.nodes[-1] if job.nodes else None
            job.nodes.append(self.cache.add(job.tenant, before, key, job.blocks[number]))

    def _assign(self, work: list[Work], job: Job, left: int) -> int:
        """Add the job's share of ``left`` tokens to ``work``; returns how many it takes."""
        count = min(job.pending, left)
        guesses = min(len(job.draft), left - 1) if job.pending == 1 else 0
        spare = self.cache.available - len(self.running)
        if self._lacking(job, count + guesses) <= max(spare, self._lacking(job, count)):  # nobody pays for a guess
            count += guesses
        while (taken := self.cache.take(self._lacking(job, count))) is None:
            victim = self.running[-1]
            self._preempt(victim)
            work[:] = [one for one in work if one.job is not victim]
            if victim is job:
                return 0
        job.blocks += taken
        work.append(Work(job, job.computed, count))
        return count

    def _lacking(self, job: Job, count: int) -> int:
        """Blocks that the job needs beside its own to compute ``count`` tokens more."""
        return max(0, -(-(job.computed + count) // self.cache.size) - len(job.blocks))

    def _admit(self, job: Job) -> bool:
        """Start a waiting job where there is room for all its tokens, and for those that run to grow by a block.

        What the tree knows of it need not be computed.
        """
        nodes = self.cache.match(job.tenant, job.ids[:-1])  # the last token's own output is needed
        lacking = -(-len(job.ids) // self.cache.size) - len(nodes)
        if lacking + len(self.running) > self.cache.available:
            self.cache.release(job.tenant, nodes)
            return False
        self.waiting.remove(job)
        insort(self.running, job, key=_by_arrival)
        job.nodes, job.blocks = nodes, [node.block for node in nodes]
        job.computed = len(nodes) * self.cache.size
        return True

    def _preempt(self, job: Job) -> None:
        self.preemptions += 1
        self.running.remove(job)
        self._give_up(job)
        insort(self.waiting, job, key=_by_arrival)

    def _give_up(self, job: Job) -> None:
        owned = {node.block for node in job.nodes}
        self.cache.give([block for block in job.blocks if block not in owned])
        self.cache.release(job.tenant, job.nodes)
        job.blocks, job.nodes, job.computed = [], [], 0


def _by_arrival(job: Job) -> int:
    return job.arrival
