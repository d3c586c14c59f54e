"""How well held-out answers are told, example by example: before tuning, after it, and how sure the change is."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from langwright.core.files import write_atomic
from langwright.core.json_text import write_json
from langwright.data.loader import IGNORED
from langwright.model.model import Model
from langwright.tokenizer.tokenizer import Tokenizer
from langwright.train.linear_nll import FEWEST_ROWS
from langwright.train.objective import Piece, to_device
from langwright.train.spread import Spread
from langwright.train.tuning.data import TuningData
from langwright.train.tuning.intervals import interval
from langwright.train.tuning.rows import Rows
from langwright.train.validate import Validation, ValidationStopped

ANSWERS = "answers.json"


@dataclass(frozen=True)
class Answers(Validation):
    """Of the held-out examples; ``nats`` (n,) is what each of them cost."""

    nats: np.ndarray = field(kw_only=True)


@torch.no_grad()
def score(model: Model, data: TuningData, batch_size: int, stopping: Callable[[], bool], spread: Spread) -> Answers:
    """Judge the held-out examples by the loss of what is learnt in them; their bytes are those of that text."""
    model.eval()
    rows, nats = data.val, np.zeros(len(data.val.examples))
    parts = (range(start, min(start + batch_size, len(rows))) for start in range(0, len(rows), batch_size))
    for numbers, counts in spread.deal(parts):
        if stopping():
            raise ValidationStopped
        piece = to_device(rows.batch(numbers), model.device)
        found = spread.run(model, lambda each, piece=piece: nats_by_document(each, piece)).cpu().numpy()
        for row, number in enumerate(numbers if counts else ()):
            examples = rows.layout[number]
            nats[list(examples)] = found[row, : len(examples)]
    nats = np.array(spread.ranks.total(*nats))
    return Answers(float(nats.sum()), data.description.val.trained, data.description.val.bytes, nats=nats)


def nats_by_document(model: Model, piece: Piece) -> Tensor:
    """Of packed rows (B, T): the sum of -ln p over the targets of each document, (B, documents) float64."""
    kept = piece.targets != IGNORED
    hidden, targets = model.backbone(piece.ids, documents=piece.documents)[kept], piece.targets[kept]  # (M, D), (M,)
    parts = zip(hidden.split(FEWEST_ROWS), targets.split(FEWEST_ROWS), strict=True)  # logits of all at once are large
    nll = torch.cat([F.cross_entropy(model.head(part).float(), wanted, reduction="none") for part, wanted in parts])
    assert piece.documents is not None
    width = int(piece.documents.max()) + 1
    places = kept.nonzero()[:, 0] * width + piece.documents[kept]
    sums = torch.zeros(len(kept) * width, dtype=torch.float64, device=nll.device)
    return sums.index_add(0, places, nll.double()).view(-1, width)


def report(out: Path, rows: Rows, tokenizer: Tokenizer, before: Answers, after: Answers) -> list[str]:
    """Write ``OUT/answers.json``: bits per byte before and after, with 95 % intervals over examples; in one line."""
    learnt = [each.targets[each.targets != IGNORED].tolist() for each in rows.examples]
    sizes = np.array([len(tokenizer.decode(ids, skip_special_tokens=True).encode()) for ids in learnt])
    n = len(sizes)

    def of(nats: np.ndarray) -> dict[str, Any]:
        def measure(chosen: np.ndarray) -> float:
            return float(nats[chosen].sum() / max(1, sizes[chosen].sum()) / math.log(2))

        return {"value": measure(np.arange(n)), "ci95": interval(measure, n)}

    found = {"before": of(before.nats), "after": of(after.nats), "change": of(after.nats - before.nats)}
    write_atomic(out / ANSWERS, write_json({"examples": n, "bits_per_byte": found}))
    was, now, change = (each["value"] for each in found.values())
    low, high = found["change"]["ci95"]
    return [
        f"held-out answers: {was:.4f} bits per byte before and {now:.4f} after, a change of {change:+.4f} "
        f"(95 % CI {low:+.4f} to {high:+.4f}, n = {n:,})"
    ]
