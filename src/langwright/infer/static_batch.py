"""The plain twin of the engine: one batch of prompts, one static cache, one token a step for all rows.

Attention is judged by position, so a row's answer does not depend on its company. It also serves the models that the
engine does not: those whose rotary positions depend on how long the text will become, and those of the native core,
which takes whole steps.
"""

from collections.abc import Generator

import torch

from langwright.infer.evaluating import evaluating
from langwright.infer.forward import open_forward
from langwright.infer.logprobs import report
from langwright.infer.row import Row
from langwright.infer.sampling import Sampler, SamplingConfig
from langwright.model.model import Model
from langwright.tokenizer.tokenizer import Tokenizer


@torch.inference_mode()
def decode(
    model: Model, rows: list[Row], sampling: SamplingConfig, tokenizer: Tokenizer | None = None
) -> Generator[list[tuple[int, int, str]], None, None]:
    """Run ``rows`` until each has finished; yields, of every step, (number of the row, token, text that has become
    certain) for each and pushes them into the rows."""
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
                    tokens.append((number, token, row.push(token, reports[number])))
            yield tokens
            running = [not row.finished for row in rows]
            if not any(running):
                return
            logits = forward.step(chosen, running)
