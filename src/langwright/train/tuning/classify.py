"""Classifiers: an encoder or a decoder with a head that tells the label of a text, several of them, or a number."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from torch import Tensor
from torch.nn import functional as F

from langwright.core.files import write_atomic
from langwright.core.json_text import write_json
from langwright.model.config import Problem
from langwright.model.model import Model
from langwright.train.card import RunFacts
from langwright.train.objective import Objective, Piece
from langwright.train.planning.advice import check_memory
from langwright.train.pretraining import decide
from langwright.train.spread import AS_ONE, Spread
from langwright.train.task import Task
from langwright.train.tuning.base import check_layout, foretell, gather_facts, headed, open_headed
from langwright.train.tuning.card import classifier_card
from langwright.train.tuning.config import LabelSettings, TuneConfig
from langwright.train.tuning.framing import TextDescription
from langwright.train.tuning.judged import Judged, judge
from langwright.train.tuning.labels import LabelledTexts, prepare_labelled
from langwright.train.tuning.parts import ShuffledBatches
from langwright.train.tuning.reading import read, read_all
from langwright.train.tuning.regression import JudgedNumbers
from langwright.train.tuning.several import JudgedSeveral, judge_several

CLASSES = "classes.json"


def label_loss(logits: Tensor, targets: Tensor, problem: Problem) -> Tensor:
    """Summed over the texts of ``logits`` (B, n_labels): -ln p(label) in nats, of several labels its mean over all
    labels, of a number the square of the error, as `transformers` has them."""
    if problem == "one":
        return F.cross_entropy(logits, targets, reduction="sum")
    if problem == "several":
        return F.binary_cross_entropy_with_logits(logits, targets, reduction="none").mean(1).sum()
    return F.mse_loss(logits[:, 0], targets, reduction="sum")


def objective(problem: Problem) -> Objective:
    """A step's loss is the mean over its texts."""

    def loss(model: Model, piece: Piece) -> Tensor:
        return label_loss(read(model, piece), piece.targets, problem)

    return Objective(lambda batch: len(batch.ids), loss)


Verdict = Judged | JudgedSeveral | JudgedNumbers


def classify(
    config: TuneConfig,
    files: Sequence[Path],
    val_files: Sequence[Path] = (),
    say: Callable[[str], None] = lambda _: None,
    *,
    force: bool = False,
    spread: Spread = AS_ONE,
) -> Task:
    """The task of ``config`` on labelled texts, checked before any work; raises `UserError` for what cannot work."""
    start = open_headed(config)
    train, val, about, problem = prepare_labelled(files, val_files, start.tokenizer, config, say)
    config = decide(config, len(train.texts), spread.ranks)
    settings, labels = config.train, config.labels
    outputs = len(about.labels) or 1
    start, model = headed(start, config, "sequence_classifier", about.labels, n_labels=outputs, problem=problem)
    shape, first = model.config, [model]
    if shape.causal and start.tokenizer.pad_id is None and shape.pad_id is None:
        say("the model has no padding token; the last real token of a text is what is classified")
    spread.check(settings, shape)
    check_layout(config, spread)
    facts = gather_facts(config, start, shape, about, files, partial(classifier_card, about=about))
    lengths = [len(text) for text in train.texts]
    seen: list[Verdict] = []

    def validate(model: Model, stopping: Callable[[], bool], spread: Spread) -> Verdict:
        seen[:] = [score(model, val, problem, labels, stopping, spread)]
        return seen[0]

    return Task(
        facts,
        max(1, len(train.texts) // settings.batch_size),
        build=lambda: first.pop() if first else start.begin(),
        batches=lambda rows: ShuffledBatches(train, config.seed, settings.batch_size, rows, lengths),
        validate=validate,
        headline=lambda model: headline(facts, about, model, train),
        report=lambda model, out: report(out, about, seen[0], labels) if seen else [],
        objective=objective(problem),
        fit=check_memory(config, shape, say, force=force, spread=spread) if config.adapter is None else None,
        certified=True,
    )


def score(
    model: Model,
    val: LabelledTexts,
    problem: Problem,
    settings: LabelSettings,
    stopping: Callable[[], bool],
    spread: Spread,
) -> Verdict:
    """Judge the held-out texts."""
    logits = np.empty((len(val), model.config.n_labels or 2), dtype=np.float64)
    lengths = [len(text) for text in val.texts]
    for chosen, _, found in read_all(model, val, lengths, stopping, spread):
        logits[chosen] = found.double().cpu().numpy()
    if problem == "one":
        return judge(logits, val.labels, tokens=sum(lengths))
    if problem == "several":
        return judge_several(logits, val.labels, settings.threshold, tokens=sum(lengths))
    return JudgedNumbers(logits[:, 0], val.labels.astype(np.float64), sum(lengths))


def report(out: Path, about: TextDescription, found: Verdict, settings: LabelSettings) -> list[str]:
    """Write ``OUT/classes.json``: rates by label, confusions, calibration, confidence intervals; the gist in some
    lines."""
    match found:
        case Judged():
            values = found.values(about.labels, settings.out_of_scope)
        case JudgedSeveral():
            values = found.values(about.labels)
        case JudgedNumbers():
            values = found.values()
    write_atomic(out / CLASSES, write_json(values))
    return [*found.lines(values), f"all of it is in {out / CLASSES}"]


def headline(facts: RunFacts, about: TextDescription, model: Model, train: LabelledTexts) -> list[str]:
    """What is about to happen, in three lines."""
    mean = math.ceil(sum(map(len, train.texts)) / len(train))
    what = f"{len(about.labels)} labels" if about.labels else "a number each"
    said = f"{about.train:,} texts of {mean} tokens on average, {what}; {about.val:,} held out"
    return foretell(facts, model, said, "texts", len(train))
