"""Supervised fine-tuning: what the assistant says, and nothing else, becomes likelier."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch

from langwright.core.errors import UserError
from langwright.data.rendering import Renderer
from langwright.model.model import Model, count_parameters
from langwright.train.card import RunFacts
from langwright.train.objective import MASKED_LM, to_device
from langwright.train.planning.advice import check_memory
from langwright.train.pretraining import decide
from langwright.train.spread import AS_ONE, Spread
from langwright.train.task import Task
from langwright.train.tuning.base import check_layout, open_base
from langwright.train.tuning.card import sft_card
from langwright.train.tuning.config import TuneConfig
from langwright.train.tuning.data import TuningData, prepare_examples
from langwright.train.tuning.rows import RowBatches
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
    if len(data.train.layout) < settings.batch_size:
        raise UserError(
            f"{files[0]}: {len(data.train.examples)} examples fill {len(data.train.layout)} rows of {settings.context} "
            f"tokens, fewer than train.batch_size ({settings.batch_size}); lower it or give more examples"
        )
    config = decide(config, len(data.train.layout), spread.ranks)
    settings = config.train

    first = [start.begin()]
    shape = first[0].config
    if data.longest - 1 > shape.max_positions:
        raise UserError(
            f"an example has {data.longest:,} tokens and {config.base} has positions for {shape.max_positions:,}; use "
            f"--train.context {shape.max_positions} with --examples.too-long drop or cut"
        )
    spread.check(settings, shape)
    check_layout(config, spread)
    fit = check_memory(config, shape, say, force=force, spread=spread) if config.adapter is None else None
    facts = RunFacts(
        config,
        shape,
        start.tokenizer,
        data.description,
        files[0].parent,
        card=partial(sft_card, about=data.description),
        form=start.form,
        more={"base": config.base, "method": config.method},
    )
    return Task(
        facts,
        max(1, len(data.train.layout) // settings.batch_size),
        build=lambda: first.pop() if first else start.begin(),
        batches=lambda rows: RowBatches(data.train, config.seed, settings.batch_size, rows),
        validate=lambda model, stopping, spread: score(model, data, settings.batch_size, stopping, spread),
        headline=lambda model: headline(facts, data, model),
        objective=MASKED_LM,  # only what is learnt goes through the head
        fit=fit,
        certified=True,
    )


@torch.no_grad()
def score(model: Model, data: TuningData, batch_size: int, stopping: Callable[[], bool], spread: Spread) -> Validation:
    """Summed loss of what is learnt in the held-out examples; their bytes are those of that text."""
    model.eval()
    numbers = range(len(data.val.layout))
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
    config, settings, about = facts.config, facts.config.train, data.description
    trained = sum(each.numel() for each in model.parameters() if each.requires_grad)
    steps, rows = settings.max_steps or 0, len(data.train.layout)
    return [
        f"model: {count_parameters(model):,} parameters ({facts.model.family}), {trained:,} of them trained, "
        f"{settings.dtype} on {config.device}, {config.threads} threads",
        f"data: {about.train.examples:,} {about.format} examples of {about.train.tokens:,} tokens, "
        f"{about.train.trained:,} of them learnt; {about.val.examples:,} held out",
        f"plan: {steps:,} steps of {settings.batch_size} rows of up to {settings.context} tokens "
        f"({math.ceil(about.train.tokens / rows):,} on average; {steps * settings.batch_size / rows:.2f} epochs)",
    ]
