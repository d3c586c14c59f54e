"""Supervised fine-tuning: what the assistant says, and nothing else, becomes likelier."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch

from langwright.data.rendering import Renderer
from langwright.model.model import Model
from langwright.train.card import RunFacts
from langwright.train.objective import MASKED_LM, to_device
from langwright.train.planning.advice import check_memory
from langwright.train.pretraining import decide
from langwright.train.spread import AS_ONE, Spread
from langwright.train.task import Task
from langwright.train.tuning.base import check_layout, check_positions, foretell, gather_facts, open_base
from langwright.train.tuning.card import sft_card
from langwright.train.tuning.config import TuneConfig
from langwright.train.tuning.data import TuningData, prepare_examples
from langwright.train.tuning.noise import noisy
from langwright.train.tuning.parts import ShuffledBatches, check_enough
from langwright.train.validate import Validation, ValidationStopped


def sft(
    config: TuneConfig,
    files: Sequence[Path],
    val_files: Sequence[Path] = (),
    say: Callable[[str], None] = lambda _: None,
    *,
    force: bool = False,
    spread: Spread = AS_ONE,
) -> Task:
    """The task of ``config`` on examples, checked before any work; raises `UserError` for what cannot work."""
    start = open_base(config)
    settings = config.train
    data = prepare_examples(
        files,
        val_files,
        Renderer(start.tokenizer, start.template),
        start.tokenizer,
        config.examples,
        say,
        context=settings.context,
        seed=config.seed,
    )
    check_enough(data.train, settings.batch_size, files[0], f"rows of {settings.context} tokens")
    config = decide(config, len(data.train), spread.ranks)
    settings = config.train

    first = [start.begin()]
    shape = first[0].config
    check_positions(config, shape, data.longest - 1)
    spread.check(settings, shape)
    check_layout(config, spread)
    fit = check_memory(config, shape, say, force=force, spread=spread) if config.adapter is None else None
    facts = gather_facts(config, start, shape, data.description, files, partial(sft_card, about=data.description))
    return Task(
        facts,
        max(1, len(data.train) // settings.batch_size),
        build=lambda: first.pop() if first else start.begin(),
        batches=lambda rows: ShuffledBatches(data.train, config.seed, settings.batch_size, rows),
        validate=lambda model, stopping, spread: score(model, data, settings.batch_size, stopping, spread),
        headline=lambda model: headline(facts, data, model),
        objective=noisy(MASKED_LM, config.sft.noise),  # only what is learnt goes through the head
        fit=fit,
    )


@torch.no_grad()
def score(model: Model, data: TuningData, batch_size: int, stopping: Callable[[], bool], spread: Spread) -> Validation:
    """Summed loss of what is learnt in the held-out examples; their bytes are those of that text."""
    model.eval()
    numbers = range(len(data.val))
    starts = range(0, len(numbers), batch_size)
    nll = 0.0
    for batch, counts in spread.deal(data.val.batch(numbers[start : start + batch_size]) for start in starts):
        if stopping():
            raise ValidationStopped
        piece = to_device(batch, model.device)
        loss = spread.run(model, lambda each, piece=piece: MASKED_LM.loss(each, piece))
        nll += loss.item() if counts else 0.0
    [nll] = spread.ranks.total(nll)
    return Validation(nll, data.description.val.trained, data.description.val.bytes)


def headline(facts: RunFacts, data: TuningData, model: Model) -> list[str]:
    """What is about to happen, in three lines."""
    about, rows = data.description, len(data.train)
    said = (
        f"{about.train.examples:,} {about.format} examples of {about.train.tokens:,} tokens, {about.train.trained:,} "
        f"of them learnt; {about.val.examples:,} held out"
    )
    what = f"rows of up to {facts.config.train.context} tokens, {math.ceil(about.train.tokens / rows):,} on average"
    return foretell(facts, model, said, what, rows)
