"""How well a model predicts text it was not trained on."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from langwright.core.errors import UserError
from langwright.data.loader import IGNORED, Batch, eval_windows
from langwright.data.shards import TokenShards
from langwright.model.model import Model
from langwright.train.loop import Score
from langwright.train.objective import Piece, lm_loss, to_device
from langwright.train.spread import AS_ONE, Spread


class ValidationStopped(Exception):
    """Somebody wanted to stop before everything was scored."""


@dataclass(frozen=True)
class Validation:
    """Summed negative log-likelihood in nats over ``tokens`` targets, which spell ``bytes`` of UTF-8 text.

    Of a masked model targets are what was hidden, ``bytes`` is the mean of as many tokens, and ``correct`` are those it
    tells right. The figures are then *pseudo* (Salazar et al. 2020, arXiv:1910.14659): each token was told from both
    sides, so they are no code length and cannot be compared with a left-to-right model's.
    """

    nll: float
    tokens: int
    bytes: float
    correct: int | None = None

    @property
    def is_finite(self) -> bool:
        """Whether the weights that were scored are sound."""
        return math.isfinite(self.nll)

    def score(self, step: int) -> Score:
        """As the figures of that step."""
        return Score(step=step, bpb=self.bpb, ppl=self.ppl, accuracy=self.accuracy)

    @property
    def accuracy(self) -> float | None:
        """Share of hidden tokens told right; None of a left-to-right model."""
        return None if self.correct is None else self.correct / self.tokens

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
    read: Callable[[Iterable[Batch]], Iterable[Batch]] = iter,
) -> Validation:
    """Score about ``limit`` tokens from all over ``shards`` (None: all), each once, in windows of ``context``.

    ``read`` may change the windows (`Batches.read`). With ``spread`` every rank scores its part, and all of them get
    the whole result. Leaves eval mode on. Raises `ValidationStopped` when ``stopping`` becomes true on the way, which
    must be so on all ranks.
    """
    model.eval()
    nll, spans = 0.0, shards.spread(limit)
    hidden, correct, masked = 0, 0, model.head_kind == "masked_lm"

    def score(each: Model, piece: Piece) -> tuple[Tensor, Tensor, int]:
        """Summed loss, tokens told right (of a masked model) and tokens told."""
        if not masked:
            return lm_loss(each, piece), torch.zeros(()), piece.targets.numel()
        kept = piece.targets != IGNORED
        targets = piece.targets[kept]  # (N,)
        logits = each.head(each.backbone(piece.ids, documents=piece.documents)[kept]).float()  # (N, V)
        right = (logits.argmax(-1) == targets).sum()
        return F.cross_entropy(logits, targets, reduction="sum"), right, len(targets)

    for batch, counts in spread.deal(read(eval_windows(shards, context=context, batch_size=batch_size, limit=limit))):
        if stopping():
            raise ValidationStopped
        piece = to_device(batch, model.device)
        loss, right, told = spread.run(model, lambda each, piece=piece: score(each, piece))
        if counts:
            nll, correct, hidden = nll + loss.item(), correct + int(right), hidden + told
    nll, correct, hidden = spread.ranks.total(nll, correct, hidden)
    tokens, size = sum(span.n_tokens for span in spans), sum(span.n_bytes for span in spans)
    if not masked:
        return Validation(nll, tokens, size)
    if not hidden:
        raise UserError(f"{shards.folder}: too few tokens to mask any; prepare more text")
    return Validation(nll, int(hidden), size * hidden / tokens, int(correct))
