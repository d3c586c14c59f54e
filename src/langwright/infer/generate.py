"""Prompts in, answers out: prefill, then one token a step for all rows of a batch.

Attention is judged by position, so a row's answer does not depend on its company.
"""

from collections.abc import Callable, Generator, Sequence
from operator import index
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor

from langwright.core.errors import UserError
from langwright.infer.evaluating import evaluating
from langwright.infer.forward import open_forward
from langwright.infer.row import Generation, Row, TokenLogprob
from langwright.infer.sampling import Sampler, SamplingConfig, check_bias
from langwright.model.config import ModelConfig
from langwright.model.model import Model
from langwright.tokenizer.tokenizer import Tokenizer


class Token(NamedTuple):
    """One token that was just chosen."""

    row: int
    """Index of its prompt."""
    token_id: int
    text: str
    """What has become certain of the text with it; may be empty or end an earlier character."""


OnToken = Callable[[Token], None]


def generate(
    model: Model,
    prompts: Sequence[Sequence[int]],
    sampling: SamplingConfig,
    *,
    tokenizer: Tokenizer | None = None,
    on_token: OnToken | None = None,
    batch_size: int = 16,
) -> list[Generation]:
    """Answers to ``prompts`` (token ids), in their order; at most ``batch_size`` run together.

    Without a tokenizer the answers have no text and stop strings are refused. Generation ends when the context is full.
    Raises `UserError` for a prompt that leaves no room in the context, ids outside the vocabulary, and an empty prompt
    where there is no beginning token.
    """
    if batch_size < 1:
        raise UserError(f"batch_size is {batch_size}; it must be at least 1")
    rows = open_rows(model, prompts, sampling, tokenizer)
    order = sorted(range(len(rows)), key=lambda number: len(rows[number].prompt))  # little padding in each batch
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        for tokens in decode(model, [rows[number] for number in chosen], sampling, tokenizer):
            if on_token is not None:
                for token in tokens:
                    on_token(token._replace(row=chosen[token.row]))
    return [row.result(sampling) for row in rows]


class Stream:
    """Text as it is written: iterate for non-empty increments; their concatenation is ``result.text``.

    Nothing is computed ahead of the reader. Leaving the ``with`` block, or `close`, ends the work and frees the cache.
    """

    def __init__(self, row: Row, steps: Generator[list[Token], None, None], sampling: SamplingConfig):
        self._row, self._sampling = row, sampling
        self._pieces = (token.text for tokens in steps for token in tokens if token.text)
        self._steps = steps

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> str:
        return next(self._pieces)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop; no further token is computed."""
        self._pieces.close()
        self._steps.close()

    @property
    def token_ids(self) -> list[int]:
        """The tokens chosen so far."""
        return list(self._row.ids)

    @property
    def result(self) -> Generation | None:
        """The whole answer once the stream has ended by itself; None before, and after an early `close`."""
        return self._row.result(self._sampling) if self._row.finished else None


def stream(model: Model, prompt: Sequence[int], sampling: SamplingConfig, *, tokenizer: Tokenizer) -> Stream:
    """Like `generate` for one prompt, bit by bit; what is wrong with the prompt is raised here, before any work."""
    rows = open_rows(model, [prompt], sampling, tokenizer)
    return Stream(rows[0], decode(model, rows, sampling, tokenizer), sampling)


def open_rows(
    model: Model, prompts: Sequence[Sequence[int]], sampling: SamplingConfig, tokenizer: Tokenizer | None
) -> list[Row]:
    """Check everything that can be checked before work starts."""
    config = model.config
    if model.head_kind != "causal_lm":
        raise UserError(
            f"a {config.family} model (head: {model.head_kind}) cannot generate text; use a causal language model"
        )
    if sampling.stop and tokenizer is None:
        raise UserError("stop strings need a tokenizer; pass one, or leave stop empty")
    check_bias(sampling, config.vocab_size)
    bos = config.bos_id if tokenizer is None else tokenizer.bos_id
    ends = end_ids(config, sampling, tokenizer)
    checked = [check_prompt(prompt, config, bos, sampling.max_new_tokens) for prompt in prompts]
    if sampling.seed is None:
        seeds = torch.randint(2**63 - 1, (len(checked),)).tolist()
    else:
        seeds = [sampling.seed] * len(checked)
    return [
        Row(
            prompt,
            min(sampling.max_new_tokens, config.max_positions - len(prompt)),
            ends,
            seed,
            sampling.stop,
            tokenizer,
        )
        for prompt, seed in zip(checked, seeds, strict=True)
    ]


def end_ids(config: ModelConfig, sampling: SamplingConfig, tokenizer: Tokenizer | None) -> frozenset[int]:
    """The ids that end an answer: end tokens unless ignored, and stop strings that are special tokens themselves."""
    ends = set() if sampling.ignore_eos else set(config.eos_ids)
    if tokenizer is not None:
        ends |= set() if sampling.ignore_eos else tokenizer.eos_ids
        named = {tokenizer.id(stop) for stop in sampling.stop}
        ends |= {token for token in named if token is not None and token in tokenizer.special_ids}
    return frozenset(token for token in ends if token < config.vocab_size)


def check_prompt(prompt: Sequence[int], config: ModelConfig, bos: int | None, new_tokens: int) -> list[int]:
    """The prompt as a list, or the beginning token for an empty one; raises `UserError` for what cannot be run."""
    if not len(prompt) and bos is None:
        raise UserError("the prompt is empty and this model has no beginning token; write at least one token")
    ids = check_ids(prompt if len(prompt) else [bos], config.vocab_size)
    limit = config.max_positions
    if len(ids) > limit or (new_tokens and len(ids) == limit):
        raise UserError(
            f"the prompt has {len(ids)} tokens and this model's context is {limit}, answer included; shorten the prompt"
        )
    return ids


def check_ids(ids: Sequence[Any], vocab_size: int) -> list[int]:
    """``ids`` as Python numbers; raises `UserError` naming the first that is not a token id."""
    checked = []
    for token in ids:
        if isinstance(token, bool) or not hasattr(token, "__index__"):
            raise UserError(f"{token!r:.60} is not a token id; pass whole numbers")
        number = index(token)
        if not 0 <= number < vocab_size:
            raise UserError(f"token id {number} is outside the vocabulary; this model's ids are 0 to {vocab_size - 1}")
        checked.append(number)
    return checked


@torch.inference_mode()
def decode(
    model: Model, rows: list[Row], sampling: SamplingConfig, tokenizer: Tokenizer | None
) -> Generator[list[Token], None, None]:
    """Run ``rows`` until each has finished; yields the tokens of every step and pushes them into the rows."""
    if all(row.finished for row in rows):
        return
    prompts = [row.prompt for row in rows]
    forward = open_forward(model, len(rows), max(map(len, prompts)) + max(row.budget for row in rows))
    sampler = Sampler(
        sampling,
        prompts,
        [row.seed for row in rows],
        model.config.vocab_size,
        known_ids=None if tokenizer is None else tokenizer.vocab_size,
        end_ids=sorted(rows[0].ends),
        device=model.device,
    )
    with evaluating(model):
        logits = forward.prefill(prompts)  # (B, V)
        while True:
            chosen = sampler(logits)  # (B,)
            reports = report(logits, chosen, sampling.logprobs)
            tokens = []
            for number, (row, token) in enumerate(zip(rows, chosen.tolist(), strict=True)):
                if not row.finished:
                    tokens.append(Token(number, token, row.push(token, reports[number])))
            yield tokens
            running = [not row.finished for row in rows]
            if not any(running):
                return
            logits = forward.step(chosen, running)


def report(logits: Tensor, chosen: Tensor, count: int | None) -> list[TokenLogprob | None]:
    """Log-probabilities of ``chosen`` (B,) and the ``count`` best under ``logits`` (B, V); None each when not asked."""
    if count is None:
        return [None] * len(chosen)
    logprobs = torch.log_softmax(logits, -1)  # (B, V)
    own = logprobs.gather(1, chosen[:, None])[:, 0].tolist()
    best = logprobs.topk(min(count, logprobs.shape[-1]), -1)
    tops = [
        tuple(zip(ids, values, strict=True))
        for ids, values in zip(best.indices.tolist(), best.values.tolist(), strict=True)
    ]
    return [TokenLogprob(token, logprob, top) for token, logprob, top in zip(chosen.tolist(), own, tops, strict=True)]
