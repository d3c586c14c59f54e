"""The engine: runs what the scheduler plans, on pages of one pool, for requests that come and go.

A step is one forward over new tokens of every request that takes part: one of each that is writing, chunks of prompts
that are being read. Each request has its own sampling settings, generator and text. Which requests take part, and who
gives way when blocks run out, is the scheduler's business.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from langwright.core.errors import UserError
from langwright.infer.admission import open_rows
from langwright.infer.constraints import ConstraintError
from langwright.infer.evaluating import evaluating
from langwright.infer.logprobs import report
from langwright.infer.prefix_cache import PrefixCache
from langwright.infer.row import Generation, Row, TokenLogprob
from langwright.infer.sampling import Sampler, SamplingConfig, choose
from langwright.infer.scheduler import Job, Scheduler, Work
from langwright.infer.speculation import PromptLookup
from langwright.model.config import DynamicScaling, ModelConfig
from langwright.model.model import Model
from langwright.model.paged import PackedCache, PagePool, Segment
from langwright.tokenizer.tokenizer import Tokenizer

if TYPE_CHECKING:
    from langwright.infer.guide import Guide

BLOCK_SIZE = 16
"""Tokens in a block."""
TILE = 16
"""Tokens in every forward of a batch-invariant engine."""


class Request:
    """One answer in the making."""

    def __init__(self, row: Row, sampling: SamplingConfig, sampler: Sampler, guide: "Guide | None", tenant: str):
        self.row, self.sampling, self.sampler, self.guide = row, sampling, sampler, guide
        self.job = Job([*row.prompt, *row.ids], len(row.prompt) + row.budget, tenant)
        self.lookup = PromptLookup()
        self.allowed: Tensor | None = None
        """Which ids the guide allows next."""
        self.cancelled = False
        self.error: Exception | None = None
        """Why it could not be finished."""

    @property
    def ended(self) -> bool:
        """Whether no further token will come."""
        return self.row.finished or self.cancelled or self.error is not None

    @property
    def result(self) -> Generation:
        """The finished answer; raises the request's error, and ValueError for one that is cancelled or unfinished."""
        if self.error is not None:
            raise self.error
        if not self.row.finished:
            raise ValueError("the request is cancelled" if self.cancelled else "the request has not ended yet")
        return self.row.result(self.sampling)


class Delta(NamedTuple):
    """One token of a request, just chosen."""

    request: Request
    token_id: int
    text: str
    """What has become certain of the text with it, often empty."""
    logprob: TokenLogprob | None


class Lane(NamedTuple):
    """A request whose next token is to be chosen."""

    request: Request
    at: int
    """The first of its rows of logits; there is one more for every guess."""
    guesses: list[int]
    length: int
    """Of its ids before."""


@dataclass
class Counts:
    """What an engine has done so far, in tokens."""

    steps: int = 0
    read: int = 0
    """Computed of prompts, and again after a request had to give way."""
    written: int = 0
    guessed: int = 0
    """Tokens guessed ahead,"""
    right: int = 0
    """and those of them that were chosen."""


def serves(config: ModelConfig) -> bool:
    """Whether an engine can run such a model: token after token, at positions that do not depend on what follows."""
    dynamic = any(spec.rope and isinstance(spec.rope.scaling, DynamicScaling) for spec in config.layer_specs.values())
    return config.causal and not dynamic


class Engine:
    """Answers to many requests at a time, in a cache of ``memory`` bytes.

    ``max_running`` requests at most take part in a step, and ``step_tokens`` tokens: the smaller, the less the reading
    of a long prompt delays the tokens of the others. While at most ``speculate`` requests run, further tokens are
    guessed and checked along with the next one (`PromptLookup`); with many, there are no idle cycles for it. With
    ``batch_invariant`` every bit of an answer is the same whatever the load, which costs speed; without, it is up to
    the rounding of sums whose order depends on shapes.

    Not for several threads at once. The model's weights must stay as they are while the engine lives, since known
    beginnings are kept. Raises `UserError` for a model that it cannot run and for less memory than one block needs.
    """

    def __init__(
        self,
        model: Model,
        tokenizer: Tokenizer | None = None,
        *,
        memory: int = 1 << 30,
        max_running: int = 64,
        step_tokens: int = 512,
        speculate: int = 1,
        batch_invariant: bool = False,
    ):
        if not serves(model.config):
            raise UserError("this model's rotary positions depend on the length of the text; the engine cannot run it")
        if speculate < 0:
            raise UserError(f"speculate is {speculate}; give the number of requests up to which to guess, 0 for never")
        self.model, self.tokenizer = model, tokenizer
        each = PagePool.block_bytes(model.config, BLOCK_SIZE, model.dtype)
        if memory < each:
            raise UserError(
                f"memory is {memory} bytes and the cache of {BLOCK_SIZE} tokens of this model takes {each}; give more"
            )
        self.cache = PrefixCache(memory // each, BLOCK_SIZE)
        self.scheduler = Scheduler(self.cache, step_tokens=step_tokens, max_running=max_running)
        try:
            self._pool = PagePool(model.config, self.cache.blocks, BLOCK_SIZE, model.dtype, model.device)
        except (RuntimeError, MemoryError) as error:
            raise UserError(f"a cache of {memory} bytes cannot be had; give the engine less memory") from error
        self._speculate, self._tile = speculate, TILE if batch_invariant else None
        self._requests: dict[Job, Request] = {}
        self.counts = Counts()

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do."""
        return not self._requests

    def open(self, prompt: Sequence[int], sampling: SamplingConfig, *, tenant: str = "") -> Request:
        """A request that is checked and does nothing yet; may be called from any thread.

        ``tenant`` names those who may profit from one another's beginnings. A constraint that was not compiled before
        may take a while. Raises `UserError` for what cannot be run.
        """
        return self.adopt(open_rows(self.model, [prompt], sampling, self.tokenizer)[0], sampling, tenant=tenant)

    def adopt(self, row: Row, sampling: SamplingConfig, *, tenant: str = "") -> Request:
        """Like `open`, of a row that is checked already."""
        self.scheduler.check(len(row.prompt) + row.budget)
        sampler = Sampler(
            sampling,
            [row.prompt],
            [row.seed],
            self.model.config.vocab_size,
            known_ids=None if self.tokenizer is None else self.tokenizer.vocab_size,
            end_ids=sorted(row.ends),
            device=self.model.device,
        )
        guide = None
        if sampling.constraint is not None and not row.finished:
            if self.tokenizer is None:
                raise UserError("a constraint needs a tokenizer; give the engine one")
            from langwright.infer.guide import Guide  # with llguidance, which takes a while to import

            guide = Guide(sampling.constraint, self.tokenizer, row.budget)
        return Request(row, sampling, sampler, guide, tenant)

    def add(self, request: Request) -> None:
        """Queue an opened request."""
        if not request.ended:
            self.scheduler.add(request.job)
            self._requests[request.job] = request

    def submit(self, prompt: Sequence[int], sampling: SamplingConfig, *, tenant: str = "") -> Request:
        """`open` and `add`."""
        request = self.open(prompt, sampling, tenant=tenant)
        self.add(request)
        return request

    def cancel(self, request: Request) -> None:
        """End a request now: no further step computes anything for it. One that has ended stays as it is."""
        if not request.ended:
            request.cancelled = True
            self._remove(request.job)

    def fail(self, error: Exception) -> None:
        """End every request with ``error``."""
        for job, request in list(self._requests.items()):
            request.error = error
            self._remove(job)

    def run(self) -> None:
        """Steps until there is nothing to do."""
        while not self.idle:
            self.step()

    @torch.inference_mode()
    def step(self) -> list[Delta]:
        """One forward; returns the tokens that it gave, which may be none."""
        self._guess()
        work = self.scheduler.plan()
        if not work:
            return []
        with evaluating(self.model):
            logits = self._forward(work)  # (rows of `_wanted`, V)
        lanes, at = [], 0
        finite = logits.amax(-1).isfinite().tolist()
        for one in work:
            request, rows = self._requests[one.job], len(_wanted(one))
            if not all(finite[at : at + rows]):
                request.error = UserError(
                    "the model gives logits that are not finite; its weights are damaged or its training diverged"
                )
                self._remove(one.job)
            elif rows:
                lanes.append(Lane(request, at, one.job.draft[: rows - 1], len(one.job.ids)))
            else:
                self.scheduler.commit(one.job, one.start + one.length)
            self.counts.read += one.length - rows
            at += rows
        deltas = self._write(lanes, logits)
        for request, _, guesses, length in lanes:
            right = max(0, len(request.job.ids) - length - 1)
            request.lookup.learn(len(guesses), right)
            self.counts.guessed += len(guesses)
            self.counts.right += right
            self.scheduler.commit(request.job, len(request.job.ids) - 1)
            if request.ended:
                self._remove(request.job)
        self.counts.steps += 1
        self.counts.written += len(deltas)
        return deltas

    def _guess(self) -> None:
        few = len(self._requests) <= self._speculate
        for job in self.scheduler.running:
            room = job.limit - len(job.ids) - 1
            job.draft = self._requests[job].lookup.guess(job.ids, room) if few and job.pending == 1 else []

    def _write(self, lanes: list[Lane], logits: Tensor) -> list[Delta]:
        """Choose the next token of every lane, and as long as it is what was guessed the one after it."""
        deltas, offset = [], 0
        while lanes := [lane for lane in lanes if self._restrict(lane.request)]:
            rows = logits[[lane.at + offset for lane in lanes]]  # (lanes, V)
            chosen = choose([lane.request.sampler for lane in lanes], _restricted(rows, lanes)).tolist()
            following = []
            for own, lane, token in zip(rows.split(1), lanes, chosen, strict=True):
                delta = self._push(lane.request, token, own)
                if delta is not None:
                    deltas.append(delta)
                    if lane.guesses[offset : offset + 1] == [delta.token_id] and not lane.request.ended:
                        following.append(lane)
            lanes, offset = following, offset + 1
        return deltas

    def _restrict(self, request: Request) -> bool:
        """Ask the guide what may come next; False where it has lost its way, which ends the request."""
        if request.guide is not None:
            try:
                request.allowed = request.guide.allowed()
            except ConstraintError as error:
                request.error = error
        return request.error is None

    def _push(self, request: Request, token: int, logits: Tensor) -> Delta | None:
        """Add a chosen token, or what the guide takes instead; ``logits`` (1, V) are the model's own."""
        row, guide = request.row, request.guide
        if guide is not None:
            try:
                token = guide.settle(token)
            except ConstraintError as error:
                request.error = error
                return None
        taken = torch.tensor([token], device=logits.device)
        request.sampler.note(taken)
        request.job.ids.append(token)
        told = report(logits, taken, request.sampling.logprobs)[0]
        text = row.push(token, told)
        if guide is not None and (guide.accepting if row.reason == "length" else guide.complete and not row.finished):
            text += row.complete()
        return Delta(request, token, text, told)

    def _forward(self, work: list[Work]) -> Tensor:
        """Float32 logits after every token of `_wanted`, (rows, V)."""
        ids, segments, wanted = [], [], []
        for one in work:
            wanted += [len(ids) + place - one.start for place in _wanted(one)]
            ids += (one.job.ids + one.job.draft)[one.start : one.start + one.length]
            segments.append(Segment(one.job.blocks, one.start, one.length))
        if self._tile is None:
            return self._head(self._backbone(ids, segments)[wanted])
        hidden = torch.cat([self._backbone(*pack) for pack in _packs(ids, segments, self._tile)])[wanted]
        packs = [_padded(rows, self._tile) for rows in hidden.split(self._tile)]
        return torch.cat([self._head(rows) for rows in packs] or [self._head(hidden)])[: len(wanted)]

    def _backbone(self, ids: list[int], segments: Sequence[Segment]) -> Tensor:
        """Hidden states of new tokens, (N, D)."""
        cache = PackedCache(self._pool, segments, self._tile)
        given = torch.tensor([ids + [0] * (cache.positions.shape[1] - len(ids))], device=self.model.device)
        return self.model.backbone(given, positions=cache.positions, cache=cache)[0, : len(ids)]

    def _head(self, hidden: Tensor) -> Tensor:
        return self.model.head(hidden).float()

    def _remove(self, job: Job) -> None:
        self.scheduler.remove(job)
        del self._requests[job]


def _wanted(work: Work) -> range:
    """The positions after which a token is to be chosen: the last known one's, and those of the guesses after it."""
    return range(len(work.job.ids) - 1, work.start + work.length) if work.chooses else range(0)


def _restricted(logits: Tensor, lanes: Sequence[Lane]) -> Tensor:
    """Logits (lanes, V) with -inf for what the guides forbid."""
    if all(lane.request.allowed is None for lane in lanes):
        return logits
    logits = logits.clone()
    for row, lane in zip(logits, lanes, strict=True):
        if (allowed := lane.request.allowed) is not None:
            row[: len(allowed)].masked_fill_(~allowed.to(row.device), float("-inf"))
            row[len(allowed) :] = float("-inf")
    return logits


def _packs(ids: list[int], segments: Sequence[Segment], tile: int) -> list[tuple[list[int], list[Segment]]]:
    """The tokens ``tile`` at a time."""
    packs: list[tuple[list[int], list[Segment]]] = [([], [])]
    at = 0
    for blocks, start, count in segments:
        done = 0
        while done < count:
            if len(packs[-1][0]) == tile:
                packs.append(([], []))
            taken, parts = packs[-1]
            some = min(count - done, tile - len(taken))
            taken += ids[at : at + some]
            parts.append(Segment(blocks, start + done, some))
            at, done = at + some, done + some
    return packs


def _padded(rows: Tensor, tile: int) -> Tensor:
    return torch.nn.functional.pad(rows, (0, 0, 0, tile - len(rows)))
