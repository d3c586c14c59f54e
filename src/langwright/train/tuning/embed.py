"""Sentence embeddings: texts that belong together get like vectors, and all others of a batch unlike ones."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from langwright.core.errors import UserError
from langwright.core.files import write_atomic
from langwright.core.json_text import write_json
from langwright.infer import embedding
from langwright.model.model import Model
from langwright.train.loop import Score
from langwright.train.objective import Objective, Piece
from langwright.train.pretraining import decide
from langwright.train.spread import AS_ONE, Spread
from langwright.train.task import Task
from langwright.train.tuning.alike import AlikeTexts, prepare_alike
from langwright.train.tuning.base import check_layout, foretell, gather_facts, headed, open_headed
from langwright.train.tuning.card import embedding_card
from langwright.train.tuning.config import TuneConfig
from langwright.train.tuning.intervals import interval, share_interval, told
from langwright.train.tuning.parts import ShuffledBatches
from langwright.train.validate import ValidationStopped

EMBEDDING = "embedding.json"
AT = (1, 10)
"""Among how many of the nearest texts the right one is looked for."""


def encode_sides(model: Model, piece: Piece) -> Tensor:
    """Unit vectors (B, S, D) of the texts of a piece (B, S, T)."""
    assert piece.mask is not None
    vectors = []
    for ids, mask in zip(piece.ids.unbind(1), piece.mask.unbind(1), strict=True):
        T = int(mask.sum(1).max())  # questions are shorter than what answers them
        vectors.append(model(ids[:, :T], attention_mask=mask[:, :T]))
    return torch.stack(vectors, 1)


def unfair(meanings: Tensor) -> Tensor:
    """Of ``meanings`` (B, S): which candidates (B, B (S - 1)), all positives and then all negatives, are as right for
    an anchor as its own positive, or are the anchor itself; never its own positive."""
    anchors, positives = meanings[:, 0], meanings[:, 1]
    candidates = meanings[:, 1:].T.flatten()  # (B (S - 1),)
    same = anchors[:, None] == anchors[None]  # (B, B)
    right = same.float() @ (positives[:, None] == candidates[None]).float() > 0  # (B, B (S - 1))
    right |= anchors[:, None] == candidates[None]
    right.fill_diagonal_(False)
    return right


def contrast(vectors: Tensor, meanings: Tensor, temperature: float) -> Tensor:
    """Sum over the pairs of ``vectors`` (B, S, D) of how hard it is to tell who belongs to whom, in nats.

    The mean of -ln p(positive | anchor) among all positives and negatives of the batch and -ln p(anchor | positive)
    among all anchors, p a softmax of similarities over ``temperature`` (InfoNCE; van den Oord et al. 2018,
    arXiv:1807.03748; both ways as in Radford et al. 2021, arXiv:2103.00020). What means the same is left out.
    """
    B = len(vectors)
    candidates = vectors[:, 1:].transpose(0, 1).flatten(0, 1)  # (B (S - 1), D)
    logits = (vectors[:, 0] @ candidates.T / temperature).masked_fill(unfair(meanings), -math.inf)
    own = torch.arange(B, device=vectors.device)
    there = F.cross_entropy(logits, own, reduction="sum")
    back = F.cross_entropy(logits[:, :B].T, own, reduction="sum")
    return (there + back) / 2


@dataclass(frozen=True)
class Retrieved:
    """Held-out anchors and all texts that belong to one of them: ``ranks`` (n,) of the first that does, from 1."""

    loss: float
    """Nats a pair: -ln p(positive | anchor) among all candidates."""
    ranks: np.ndarray
    candidates: int
    tokens: int

    @property
    def is_finite(self) -> bool:
        """Whether the weights that were judged are sound."""
        return math.isfinite(self.loss)

    def recall(self, at: int) -> float:
        """Share of anchors with a right text among the ``at`` nearest."""
        return float((self.ranks <= at).mean())

    @property
    def mrr(self) -> float:
        """Mean of 1 / rank."""
        return float((1 / self.ranks).mean())

    def score(self, step: int) -> Score:
        """As the figures of that step."""
        more = {f"recall_at_{at}": self.recall(at) for at in AT} | {"mrr": self.mrr}
        return Score(step=step, loss=self.loss, more=more, n=len(self.ranks))


def retrieve(vectors: np.ndarray, val: AlikeTexts, temperature: float, tokens: int = 0) -> Retrieved:
    """Look for what belongs to each anchor of ``val``, by ``vectors`` (texts, D) of all of its texts.

    Candidates are the positives and negatives of all pairs, each once; an anchor is no candidate for itself. Where
    several are as near as the right one, it comes last.
    """
    candidates, first = np.unique(val.sides[:, 1:], return_index=True)
    meaning, among = val.meanings[:, 1:].flatten()[first], vectors[candidates]  # (C,), (C, D)
    belongs: dict[int, set[int]] = {}
    for anchor, positive in val.meanings[:, :2].tolist():
        belongs.setdefault(anchor, set()).add(positive)
    place = {number: at for at, number in enumerate(candidates.tolist())}
    ranks: dict[int, int] = {}
    losses = []
    for (anchor, positive), means in zip(val.sides[:, :2].tolist(), val.meanings[:, 0].tolist(), strict=True):
        near = among @ vectors[anchor]  # (C,)
        right = np.isin(meaning, list(belongs[means]))
        itself = (candidates == anchor) | ((meaning == means) & ~right)
        wrong, right = near[~right & ~itself], near[right & ~itself]
        ranks[anchor] = 1 + int((wrong >= right.max()).sum())
        own = near[place[positive]] / temperature
        top = max(own, float(wrong.max(initial=-1.0)) / temperature)
        losses.append(top + math.log(math.exp(own - top) + np.exp(wrong / temperature - top).sum()) - own)
    return Retrieved(float(np.mean(losses)), np.array(list(ranks.values())), len(candidates), tokens)


def embed(
    config: TuneConfig,
    files: Sequence[Path],
    val_files: Sequence[Path] = (),
    say: Callable[[str], None] = lambda _: None,
    *,
    force: bool = False,
    spread: Spread = AS_ONE,
) -> Task:
    """The task of ``config`` on texts that are alike, checked before any work; raises `UserError` for what cannot
    work."""
    if config.train.batch_size < 2:
        raise UserError(
            "train.batch_size is 1, and embed learns from what else is in a batch; give 2 or more, better 32"
        )
    check_layout(config, spread)
    start = open_headed(config)
    train, val, about = prepare_alike(files, val_files, start.tokenizer, config, say)
    config = decide(config, len(train), spread.ranks)
    settings, temperature = config.train, config.embedding.temperature
    start, model = headed(start, config, "embedding")
    first = [model]
    spread.check(settings, model.config)
    facts = gather_facts(config, start, model.config, about, files, partial(embedding_card, about=about))
    seen: list[Retrieved] = []

    def validate(model: Model, stopping: Callable[[], bool], spread: Spread) -> Retrieved:
        seen[:] = [score(model, val, temperature, stopping)]
        return seen[0]

    return Task(
        facts,
        max(1, len(train) // settings.batch_size),
        build=lambda: first.pop() if first else start.begin(),
        batches=lambda rows: ShuffledBatches(train, config.seed, settings.batch_size, rows),
        validate=validate,
        headline=lambda model: foretell(
            facts, model, f"{about.train:,} pairs of texts; {about.val:,} held out", "pairs", len(train)
        ),
        report=lambda model, out: report(out, seen[0]) if seen else [],
        objective=Objective(
            lambda batch: len(batch.ids),
            encode_sides,
            join=lambda vectors, meanings: contrast(vectors, meanings, temperature),
        ),
        certified=True,
    )


def score(model: Model, val: AlikeTexts, temperature: float, stopping: Callable[[], bool]) -> Retrieved:
    """Judge the held-out pairs."""
    used = np.unique(val.sides)
    order = sorted(used.tolist(), key=lambda number: len(val.texts[number]))
    vectors = np.zeros((len(val.texts), model.config.d_model), dtype=np.float32)
    for start in range(0, len(order), 256):
        if stopping():
            raise ValidationStopped
        chosen = order[start : start + 256]
        vectors[chosen] = embedding.embed(model, [val.texts[number] for number in chosen]).numpy()
    return retrieve(vectors, val, temperature, tokens=sum(len(val.texts[number]) for number in order))


def report(out: Path, found: Retrieved) -> list[str]:
    """Write ``OUT/embedding.json``: how often what belongs to a held-out text is found; the gist in a line."""
    n, ranks = len(found.ranks), found.ranks
    ends = {f"recall_at_{at}": share_interval(ranks <= at) for at in AT}
    ends["mrr"] = interval(lambda chosen: float((1 / ranks[chosen]).mean()), n)
    values = {
        "n": n,
        "candidates": found.candidates,
        **{f"recall_at_{at}": found.recall(at) for at in AT},
        "mrr": found.mrr,
        "loss": found.loss,
        "ci95": ends,
    }
    write_atomic(out / EMBEDDING, write_json(values))
    recalls = ", ".join(f"recall@{at} {told(found.recall(at), ends[f'recall_at_{at}'], n)}" for at in AT)
    return [f"among {found.candidates:,} texts: {recalls}, MRR {found.mrr:.3f} (n = {n:,}); more in {out / EMBEDDING}"]
