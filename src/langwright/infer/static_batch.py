"""The plain twin of the engine: one batch of prompts, one static cache, one token a step for all rows.

Rows of different length are padded on the left, so the last column is every row's newest token; attention is judged by
position, so a row's answer does not depend on its company. It also serves the models that the engine does not: those
whose rotary positions depend on how long the text will become.
"""

from collections.abc import Generator, Sequence

import torch
from torch import Tensor

from langwright.infer.evaluating import evaluating
from langwright.infer.logprobs import report
from langwright.infer.row import Row
from langwright.infer.sampling import Sampler, SamplingConfig
from langwright.model.cache import KVCache
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
    device, config = model.device, model.config
    ids, real = pad_left([row.prompt for row in rows], device)  # (B, T)
    capacity = ids.shape[1] + max(row.budget for row in rows)
    cache = KVCache.static(config, len(rows), capacity, model.dtype, device)
    sampler = Sampler(
        sampling,
        [row.prompt for row in rows],
        [row.seed for row in rows],
        config.vocab_size,
        known_ids=None if tokenizer is None else tokenizer.vocab_size,
        end_ids=sorted(rows[0].ends),
        device=device,
    )
    with evaluating(model):
        while True:
            logits = model(ids, attention_mask=real, cache=cache, last_only=True)[:, -1].float()  # (B, V)
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
            ids = chosen[:, None]  # (B, 1)
            # A finished row keeps its place as padding, which takes no position and is never looked at.
            real = None if all(running) else torch.tensor(running, device=device)[:, None]


def pad_left(prompts: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor | None]:
    """Ids (B, T) and which are real (B, T); None where all are, which spares the model a mask."""
    longest = max(len(prompt) for prompt in prompts)
    ids = torch.tensor([[0] * (longest - len(prompt)) + list(prompt) for prompt in prompts], device=device)
    if all(len(prompt) == longest for prompt in prompts):
        return ids, None
    lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)
    return ids, torch.arange(longest, device=device) >= longest - lengths[:, None]
