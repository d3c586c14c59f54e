"""Classifiers: an encoder or a decoder with a head that tells which label a text has."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from langwright.core.errors import UserError
from langwright.core.files import write_atomic
from langwright.core.json_text import write_json
from langwright.model.adapters import AdapterConfig, add_adapters
from langwright.model.checkpoint.hub import resolve
from langwright.model.checkpoint.load import load_model
from langwright.model.families import FAMILIES
from langwright.model.model import Model, count_parameters, with_head
from langwright.tokenizer.load import load_tokenizer
from langwright.train.card import WHOLE, RunFacts
from langwright.train.objective import Objective, Piece, to_device
from langwright.train.planning.advice import check_memory
from langwright.train.pretraining import decide
from langwright.train.spread import AS_ONE, Spread
from langwright.train.task import Task
from langwright.train.tuning.base import adapter_form, check_layout
from langwright.train.tuning.card import classifier_card
from langwright.train.tuning.config import TuneConfig
from langwright.train.tuning.judged import Judged, judge
from langwright.train.tuning.labels import LabelBatches, LabelDescription, LabelledTexts, prepare_labelled
from langwright.train.validate import ValidationStopped


def label_loss(model: Model, piece: Piece) -> Tensor:
    """Sum of -ln p(label), in nats."""
    logits = model(piece.ids, attention_mask=piece.mask).float()  # (B, n_labels)
    return F.cross_entropy(logits, piece.targets, reduction="sum")


CLASSES = "classes.json"
LABELS = Objective(lambda batch: len(batch.ids), label_loss)
"""A step's loss is the mean over its texts."""


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
    path = resolve(config.base)
    tokenizer = load_tokenizer(path)
    settings = config.train
    train, val, about = prepare_labelled(
        files, val_files, tokenizer, config.examples, say, context=settings.context, seed=config.seed
    )
    config = decide(config, len(train.texts), spread.ranks)
    settings = config.train

    def begin() -> Model:
        base = load_model(path, dtype=torch.float32)
        model = with_head(base, "sequence_classifier", about.labels, config.seed)
        return model if config.adapter is None else add_adapters(model, _with_head(config.adapter), config.seed)

    first = [begin()]
    shape = first[0].config
    FAMILIES[shape.family].config_to_hf(shape, "sequence_classifier")  # raises when the family has no words for it
    if shape.causal and tokenizer.pad_id is None and shape.pad_id is None:
        say("the model has no padding token; the last real token of a text is what is classified")
    if settings.context > shape.max_positions:
        raise UserError(
            f"train.context is {settings.context} and {config.base} has positions for {shape.max_positions}"
        )
    spread.check(settings, shape)
    check_layout(config, spread)
    facts = RunFacts(
        config,
        shape,
        tokenizer,
        about,
        files[0].parent,
        card=partial(classifier_card, about=about),
        form=WHOLE if config.adapter is None else adapter_form(config.base),
        more={"base": config.base, "method": config.method},
    )
    seen: list[Judged] = []

    def validate(model: Model, stopping: Callable[[], bool], spread: Spread) -> Judged:
        seen[:] = [score(model, val, stopping, spread)]
        return seen[0]

    return Task(
        facts,
        max(1, len(train.texts) // settings.batch_size),
        build=lambda: first.pop() if first else begin(),
        batches=lambda rows: LabelBatches(train, config.seed, settings.batch_size, rows),
        validate=validate,
        headline=lambda model: headline(facts, about, model, train),
        report=lambda model, out: report(out, about, seen[0]) if seen else [],
        objective=LABELS,
        fit=check_memory(config, shape, say, force=force, spread=spread) if config.adapter is None else None,
        certified=True,
    )


def _with_head(adapter: AdapterConfig) -> AdapterConfig:
    """The head is fresh, so it has to be trained as well."""
    return adapter.replace(train_head=True)


@torch.no_grad()
def score(model: Model, val: LabelledTexts, stopping: Callable[[], bool], spread: Spread) -> Judged:
    """Judge the held-out texts, texts of like length together; several ranks all judge all of them."""
    model.eval()
    order = sorted(range(len(val.texts)), key=lambda number: len(val.texts[number]))
    logits = np.empty((len(order), model.config.n_labels or 2), dtype=np.float64)
    for start in range(0, len(order), 64):
        if stopping():
            raise ValidationStopped
        chosen = order[start : start + 64]
        piece = to_device(val.batch(chosen), model.device)
        found = spread.run(model, lambda each, piece=piece: each(piece.ids, attention_mask=piece.mask))
        logits[chosen] = found.double().cpu().numpy()
    return judge(logits, val.labels, tokens=sum(map(len, val.texts)))


def report(out: Path, about: LabelDescription, judged: Judged) -> list[str]:
    """Write ``OUT/classes.json``: rates by label, confusions, calibration; the gist in some lines."""
    by_label = {
        name: {
            "n": int(judged.confusion[number].sum()),
            "precision": float(judged.precision[number]),
            "recall": float(judged.recall[number]),
            "f1": float(judged.f1[number]),
        }
        for number, name in enumerate(about.labels)
    }
    confused = [
        {"true": about.labels[true], "told": about.labels[told], "n": int(judged.confusion[true, told])}
        for true, told in zip(*np.nonzero(judged.confusion), strict=True)
        if true != told
    ]
    confused.sort(key=lambda pair: -pair["n"])
    values = {
        "n": judged.n,
        "accuracy": judged.accuracy,
        "macro_f1": judged.macro_f1,
        "loss": judged.loss,
        "calibration": {
            "temperature": judged.temperature,
            "error_before": judged.calibration_error,
            "error_after": judged.calibrated_error,
        },
        "labels": by_label,
        "confused": confused,
        "confusion": judged.confusion.tolist(),
    }
    write_atomic(out / CLASSES, write_json(values))
    worst = sorted(by_label, key=lambda name: by_label[name]["f1"])[:3]
    return [
        "weakest labels: " + ", ".join(f"{name} (F1 {by_label[name]['f1']:.0%})" for name in worst),
        f"calibration error {judged.calibration_error:.1%}, with temperature {judged.temperature:.2f} "
        f"{judged.calibrated_error:.1%}; all of it by label is in {out / CLASSES}",
    ]


def headline(facts: RunFacts, about: LabelDescription, model: Model, train: LabelledTexts) -> list[str]:
    """What is about to happen, in three lines."""
    config, settings = facts.config, facts.config.train
    steps = settings.max_steps or 0
    mean = math.ceil(sum(map(len, train.texts)) / len(train.texts))
    return [
        f"model: {count_parameters(model):,} parameters ({facts.model.family}), a fresh head for {len(about.labels)} "
        f"labels, {settings.dtype} on {config.device}, {config.threads} threads",
        f"data: {about.train:,} texts of {mean} tokens on average; {about.val:,} held out",
        f"plan: {steps:,} steps of {settings.batch_size} texts "
        f"({steps * settings.batch_size / about.train:.2f} epochs)",
    ]
