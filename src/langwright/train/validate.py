"""How well a model predicts text it was not trained on."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from langwright.data.loader import eval_windows
from langwright.data.shards import TokenShards
from langwright.model.model import Model
from langwright.train.linear_nll import head_nll
from langwright.train.spread import AS_ONE, Spread


class ValidationStopped(Exception):
    """Somebody wanted to stop before everything was scored."""


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
    model: Model,
    shards: TokenShards,
    *,
    context: int,
    batch_size: int,
    limit: int | None = None,
    stopping: Callable[[], bool] = lambda: False,
    spread: Spread = AS_ONE,
) -> Validation:
    """Score about ``limit`` tokens from all over ``shards`` (None: all), each once, in windows of ``context``.

    With ``spread`` every rank scores its part, and all of them get the whole result. Leaves eval mode on. Raises
    `ValidationStopped` when ``stopping`` becomes true on the way, which must be so on all ranks.
    """
    model.eval()
    nll, spans = 0.0, shards.spread(limit)
    windows = eval_windows(shards, context=context, batch_size=batch_size, limit=limit)
    for batch, counts in spread.deal(windows):
        if stopping():
            raise ValidationStopped
        ids, targets = (torch.tensor(part, device=model.device) for part in batch)
        found = spread.run(
            model, lambda each, ids=ids, targets=targets: head_nll(each.head, each.backbone(ids), targets)
        )
        nll += found.item() if counts else 0.0
    [nll] = spread.ranks.total(nll)
    return Validation(nll, sum(span.n_tokens for span in spans), sum(span.n_bytes for span in spans))
