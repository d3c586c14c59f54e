"""What is told of the probabilities at a step."""

import torch
from torch import Tensor

from langwright.infer.row import TokenLogprob


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
