"""Supervised fine-tuning: what the assistant says, and nothing else, becomes likelier."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from langwright.data.fim import FillInTheMiddle
from langwright.data.prepare import end_of_text
from langwright.data.rendering import Renderer
from langwright.model.model import Model
from langwright.train.card import RunFacts
from langwright.train.objective import MASKED_LM
from langwright.train.planning.advice import check_memory
from langwright.train.pretraining import decide
from langwright.train.spread import AS_ONE, Spread
from langwright.train.task import Task
from langwright.train.tuning.answers import Answers, report, score
from langwright.train.tuning.base import Start, check_layout, check_positions, foretell, gather_facts, open_base
from langwright.train.tuning.card import sft_card
from langwright.train.tuning.config import TuneConfig
from langwright.train.tuning.data import TuningData, prepare_examples
from langwright.train.tuning.noise import noisy
from langwright.train.tuning.parts import ShuffledBatches, check_enough


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
        move=_move(config, start),
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
    seen: list[Answers] = []

    def validate(model: Model, stopping: Callable[[], bool], spread: Spread) -> Answers:
        seen[:] = [score(model, data, settings.batch_size, stopping, spread)]
        return seen[0]

    def tell(model: Model, out: Path) -> list[str]:
        if not seen:
            return []
        before = score(start.load().to(model.device), data, settings.batch_size, lambda: False, AS_ONE)
        return report(out, data.val, start.tokenizer, before, seen[0])

    return Task(
        facts,
        max(1, len(data.train) // settings.batch_size),
        build=lambda: first.pop() if first else start.begin(),
        batches=lambda rows: ShuffledBatches(data.train, config.seed, settings.batch_size, rows),
        validate=validate,
        headline=lambda model: headline(facts, data, model),
        report=tell,
        objective=noisy(MASKED_LM, config.sft.noise),  # only what is learnt goes through the head
        fit=fit,
        certified=True,
    )


def _move(config: TuneConfig, start: Start) -> FillInTheMiddle | None:
    """What moves the middles of passages, where that is wanted."""
    settings, tokenizer = config.train, start.tokenizer
    if not settings.fim_rate:
        return None
    end = end_of_text(tokenizer) if tokenizer.eos_id is None else tokenizer.eos_id
    assert end is not None  # a text cannot be rendered without
    return FillInTheMiddle.of(tokenizer, end, rate=settings.fim_rate, spm=settings.fim_spm, by_lines=settings.fim_lines)


def headline(facts: RunFacts, data: TuningData, model: Model) -> list[str]:
    """What is about to happen, in three lines."""
    about, rows = data.description, len(data.train)
    said = (
        f"{about.train.examples:,} {about.format} examples of {about.train.tokens:,} tokens, {about.train.trained:,} "
        f"of them learnt; {about.val.examples:,} held out"
    )
    what = f"rows of up to {facts.config.train.context} tokens, {math.ceil(about.train.tokens / rows):,} on average"
    return foretell(facts, model, said, what, rows)
