"""How probable a text is: sliding windows over long texts, and continuations of contexts. Logarithms are natural."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from langwright.core.errors import UserError
from langwright.infer.evaluating import evaluating
from langwright.model.model import Model

HEAD_ROWS = 256
"""Logits are made for so many tokens at a time: a long text times a large vocabulary would not fit in memory."""


@dataclass(frozen=True)
class Score:
    """How well a model predicts a text."""

    nll: float
    """Sum of negative log-probabilities, in nats."""
    tokens: int
    """Tokens that were predicted."""
    bytes: int
    """UTF-8 bytes of the text of those tokens."""
    context: int
    """Longest input of one window, in tokens."""
    stride: int
    """New tokens predicted in each window after the first."""

    @property
    def bits_per_byte(self) -> float:
        return self.nll / math.log(2) / max(self.bytes, 1)

    @property
    def perplexity(self) -> float:
        """A token; infinite where the exponential overflows."""
        mean = self.nll / self.tokens
        return math.exp(mean) if mean < 700 else math.inf


class Likelihood(NamedTuple):
    """Of one continuation."""

    logprob: float
    """Summed over its tokens."""
    is_greedy: bool
    """Whether every one of its tokens is the most probable."""


class Window(NamedTuple):
    """Inputs ``start:end`` of a sequence; predictions of the inputs from ``first`` on are counted."""

    start: int
    first: int
    end: int


def windows(length: int, context: int, stride: int) -> Iterator[Window]:
    """Cover ``length`` inputs so that each prediction counts once.

    Windows after the first are ``context`` long and count ``stride`` new predictions, the last one what is left; so
    each prediction beyond the first window is made from more than ``context - stride`` inputs.
    """
    end = min(context, length)
    yield Window(0, 0, end)
    while end < length:
        first, end = end, min(end + stride, length)
        yield Window(max(0, end - context), first, end)


@torch.inference_mode()
def predict(model: Model, ids: Sequence[int], context: int, stride: int) -> Tensor:
    """Log-probability of each of ``ids`` after the first, (len(ids) - 1,) float64 on the CPU, in sliding windows."""
    sequence = torch.tensor(ids, device=model.device)
    parts = []
    with evaluating(model):
        for start, first, end in windows(len(ids) - 1, context, stride):
            hidden = model.backbone(sequence[None, start:end])[0, first - start :]  # (N, D)
            parts.append(target_logprobs(model, hidden, sequence[first + 1 : end + 1])[0])
    return torch.cat(parts).double().cpu()


def target_logprobs(model: Model, hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Hidden states (N, D) and ids (N,) -> float32 log-probabilities (N,), and whether each id is the most probable."""
    logprobs, greedy = [], []
    for rows, wanted in zip(hidden.split(HEAD_ROWS), targets.split(HEAD_ROWS), strict=True):
        logits = model.head(rows).float()  # (N, V)
        own = logits.gather(1, wanted[:, None])[:, 0]
        logprobs.append(own - logits.logsumexp(-1))
        greedy.append(logits.argmax(-1) == wanted)
    return torch.cat(logprobs), torch.cat(greedy)


@torch.inference_mode()
def continuations(
    model: Model, pairs: Sequence[tuple[Sequence[int], Sequence[int]]], *, batch_size: int = 16
) -> list[Likelihood]:
    """The likelihood of each continuation after its context, both as ids and neither empty."""
    found: list[Likelihood] = [Likelihood(0.0, True)] * len(pairs)
    order = sorted(range(len(pairs)), key=lambda number: len(pairs[number][0]) + len(pairs[number][1]))
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        whole = [torch.tensor([*pairs[number][0], *pairs[number][1]]) for number in chosen]
        ids = pad_sequence(whole, batch_first=True).to(model.device)[:, :-1]  # (B, T)
        lengths = torch.tensor([len(row) - 1 for row in whole], device=model.device)
        real = torch.arange(ids.shape[1], device=model.device) < lengths[:, None]
        with evaluating(model):
            hidden = model.backbone(ids, attention_mask=None if bool(real.all()) else real)  # (B, T, D)
        counts = [len(pairs[number][1]) for number in chosen]
        wanted = torch.cat([row[-count:] for row, count in zip(whole, counts, strict=True)]).to(model.device)
        spans = zip(hidden, lengths.tolist(), counts, strict=True)
        kept = torch.cat([row[length - count : length] for row, length, count in spans])  # (N, D)
        logprobs, greedy = target_logprobs(model, kept, wanted)
        for number, own, best in zip(chosen, logprobs.split(counts), greedy.split(counts), strict=True):
            found[number] = Likelihood(float(own.double().sum()), bool(best.all()))
    return found


def window_sizes(limit: int, context: int | None, stride: int | None) -> tuple[int, int]:
    """``context`` defaults to ``limit`` up to 2,048, ``stride`` to half of it; raises `UserError` out of bounds."""
    context = min(limit, 2048) if context is None else context
    if not 1 <= context <= limit:
        raise UserError(f"context is {context}; choose 1 to {limit}, the model's own")
    stride = max(1, context // 2) if stride is None else stride
    if not 1 <= stride <= context:
        raise UserError(f"stride is {stride}; choose 1 to {context}, the window's context")
    return context, stride
