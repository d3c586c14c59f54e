"""How well a model predicts text it was not trained on."""

import math
from dataclasses import dataclass

import torch

from langwright.data.loader import eval_windows
from langwright.data.shards import TokenShards
from langwright.model.model import Model
from langwright.train.linear_nll import head_nll


@dataclass(frozen=True)
class Validation:
    """Summed negative log-likelihood in nats over ``tokens`` targets, which spell ``bytes`` of UTF-8 text."""

    nll: float
    tokens: int
    bytes: int

    @property
    def bpb(self) -> float:
        """Bits per byte: comparable between tokenizers."""
        return self.nll / math.log(2) / self.bytes

    @property
    def ppl(self) -> float:
        """Perplexity: comparable only for one tokenizer."""
        return math.exp(min(self.nll / self.tokens, 700.0))  # past 709 a float has no room


@torch.no_grad()
def validate(
    model: Model, shards: TokenShards, *, context: int, batch_size: int, limit: int | None = None
) -> Validation:
    """Score about ``limit`` tokens from all over ``shards`` (None: all), each once, in windows of ``context``.

    Leaves eval mode on.
    """
    model.eval()
    nll, spans = 0.0, shards.spread(limit)
    for batch in eval_windows(shards, context=context, batch_size=batch_size, limit=limit):
        ids, targets = (torch.tensor(part, device=model.device) for part in batch)
        nll += head_nll(model.head, model.backbone(ids), targets).item()
    return Validation(nll, sum(span.n_tokens for span in spans), sum(span.n_bytes for span in spans))
