"""What is checked of a request before any work starts."""

from collections.abc import Sequence
from operator import index
from typing import Any

import torch

from langwright.core.errors import UserError
from langwright.infer.row import Row
from langwright.infer.sampling import SamplingConfig, check_bias
from langwright.model.config import ModelConfig
from langwright.model.model import Model
from langwright.tokenizer.tokenizer import Tokenizer


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
