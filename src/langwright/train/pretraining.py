"""Pretraining: a model with fresh weights learns the prepared text of one folder."""

import math
from collections.abc import Callable
from typing import TypeVar

from langwright.core.errors import FormatError, UserError
from langwright.core.files import verify_folder
from langwright.core.runtime import keep_freed_memory, pick_device, set_threads
from langwright.data.loader import PreparedData, windows_per_epoch
from langwright.model.families import FAMILIES
from langwright.model.flops import training_flops
from langwright.model.model import Model, build_model, count_parameters, default_head
from langwright.tokenizer.load import load_tokenizer
from langwright.train.batches import Batches
from langwright.train.card import RunFacts, pretraining_card
from langwright.train.compute import pick_compute_dtype
from langwright.train.config import RunConfig, TrainConfig
from langwright.train.planning.advice import check_memory
from langwright.train.ranks import ALONE, Ranks
from langwright.train.spread import AS_ONE, Spread
from langwright.train.task import Task
from langwright.train.validate import Validation, validate

C = TypeVar("C", bound=RunConfig)
TELL_FROM = 4_000_000_000
"""Bytes of data from which checking them takes long enough to be told."""


def pretraining(
    config: TrainConfig,
    data: PreparedData,
    say: Callable[[str], None] = lambda _: None,
    *,
    force: bool = False,
    spread: Spread = AS_ONE,
) -> Task:
    """The task of ``config`` on ``data``, checked; raises `UserError` for what cannot work."""
    config, steps_per_epoch = resolve(config, data, spread.ranks)
    facts = collect_facts(config, data)
    spread.check(config.train, facts.model)
    fit = check_memory(config, facts.model, say, force=force, spread=spread)
    if config.train.verify_data and spread.ranks.local_rank == 0:
        check_data(data, say)
    settings, reader = config.train, Batches.of(config, data)

    def score(model: Model, stopping: Callable[[], bool], spread: Spread) -> Validation:
        return validate(
            model,
            data.val,
            context=settings.context,
            batch_size=settings.micro_batch_size or settings.batch_size,
            limit=settings.eval_tokens,
            stopping=stopping,
            read=reader.read,
            spread=spread,
        )

    return Task(
        facts,
        steps_per_epoch,
        build=lambda: build_model(facts.model, seed=config.seed),
        batches=lambda rows: Batches.of(config, data, rows),
        validate=score,
        headline=lambda model: headline(facts, data, model),
        fit=fit,
    )


def resolve(config: TrainConfig, data: PreparedData, ranks: Ranks = ALONE) -> tuple[TrainConfig, int]:
    """``config`` with everything decided that depends on data and machine, and the steps of one epoch."""
    windows = windows_per_epoch(data.train, config.train.context)
    return decide(config, windows, ranks), max(1, windows // config.train.batch_size)


def decide(config: C, rows: int, ranks: Ranks = ALONE) -> C:
    """``config`` for an epoch of so many rows, on this machine, whose threads and memory are seen to as well."""
    settings = config.train
    epochs = settings.epochs or 1.0
    device = pick_device(config.device)
    decided = settings.replace(
        max_steps=settings.max_steps or math.ceil(epochs * rows / settings.batch_size),
        dtype=str(pick_compute_dtype(settings.dtype, device)).removeprefix("torch."),
    )
    keep_freed_memory()
    return config.replace(train=decided, device=str(device), threads=set_threads(config.threads, ranks.local_size))


def collect_facts(config: TrainConfig, data: PreparedData) -> RunFacts:
    """The architecture for these data, checked to have a form on disk before any work is done; raises `UserError`."""
    tokenizer = load_tokenizer(data.tokenizer_path)
    model = config.model.build(
        vocab_size=max(tokenizer.vocab_size, data.train.vocab_size),
        context=config.train.context,
        bos_id=tokenizer.bos_id if config.model.causal else tokenizer.id(tokenizer.roles.get("cls", "")),
        eos_ids=tuple(sorted(tokenizer.eos_ids or {data.train.eos_id})),
        pad_id=None if config.model.causal else tokenizer.pad_id,
    )
    if model.family not in FAMILIES:
        raise UserError(f"model.family {model.family!r} is unknown; use one of {', '.join(sorted(FAMILIES))}")
    FAMILIES[model.family].config_to_hf(model, default_head(model))  # raises when the family has no words for it
    Batches.of(config, data)  # raises when the tokenizer lacks a token
    if config.train.sample_every and not model.causal:
        raise UserError("train.sample_every: a masked model (model.causal is false) does not continue text; leave it 0")
    description = data.description
    return RunFacts(
        config,
        model,
        tokenizer,
        description,
        data.folder,
        card=lambda facts, state: pretraining_card(facts, state, description),
    )


def check_data(data: PreparedData, say: Callable[[str], None]) -> None:
    """Compare every file of the data with the manifest they were committed with; raises `FormatError` naming one."""
    size = (data.train.n_tokens + data.val.n_tokens) * 2
    if size >= TELL_FROM:
        say(f"checking {size / 1e9:.0f} GB of data against their manifest (--no-train.verify-data leaves it out)")
    try:
        verify_folder(data.folder)
    except FormatError as error:
        raise FormatError(f"{error}; prepare the data again") from error


def headline(facts: RunFacts, data: PreparedData, model: Model) -> list[str]:
    """What is about to happen, in three lines."""
    config, settings, shape = facts.config, facts.config.train, facts.model
    tokens = (settings.max_steps or 0) * settings.batch_size * settings.context
    flops = training_flops(shape, settings.context)
    scored = sum(span.n_tokens for span in data.val.spread(settings.eval_tokens))
    return [
        f"model: {count_parameters(model):,} parameters ({shape.family}, {shape.n_layers} layers of {shape.d_model}), "
        f"{settings.dtype} on {config.device}, {config.threads} threads",
        f"data: {data.train.n_tokens:,} training tokens of {data.train.vocab_size:,} kinds; validation on {scored:,} "
        f"of {data.val.n_tokens:,} tokens",
        f"plan: {settings.max_steps:,} steps of {settings.batch_size} x {settings.context} = {tokens:,} tokens "
        f"({tokens / data.train.n_tokens:.2f} epochs), {flops / 1e6:,.1f} MFLOPs a token, {tokens * flops:.2e} in all",
    ]
