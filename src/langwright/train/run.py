"""A training run from start to end: recipe and data in, checkpoints and figures out."""

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path

from rich.console import Console

from langwright.core.errors import FormatError, UserError
from langwright.core.files import explained, locked, verify_folder
from langwright.core.runtime import keep_freed_memory, pick_device, set_threads
from langwright.data.loader import PreparedData, open_data, windows_per_epoch
from langwright.data.prefetch import Prefetch
from langwright.model.families import FAMILIES
from langwright.model.flops import training_flops
from langwright.model.model import Model, build_model, count_parameters, default_head
from langwright.tokenizer.load import load_tokenizer
from langwright.train.batches import Batches
from langwright.train.card import RunFacts
from langwright.train.checkpoint import clear_leftovers, holds_a_run, newest_checkpoint, restore, set_aside, settle
from langwright.train.compute import pick_compute_dtype
from langwright.train.config import TrainConfig
from langwright.train.display import Display
from langwright.train.faults import BadStep
from langwright.train.incident import forget_incidents, recall_decisions
from langwright.train.interrupt import Interrupted, stop_requests
from langwright.train.loop import TrainState, train_steps
from langwright.train.metrics import MetricsLog
from langwright.train.optimiser import build_optimiser
from langwright.train.planning.advice import Fit, check_memory, gigabytes
from langwright.train.planning.following import followed
from langwright.train.planning.outlook import look_ahead, recall
from langwright.train.report.page import reported
from langwright.train.saving import Saver
from langwright.train.session import Sampler, Session, TrainResult
from langwright.train.sessions import recorded_session
from langwright.train.tracking import tracked

TELL_FROM = 4_000_000_000
"""Bytes of data from which checking them takes long enough to be told."""


def train(
    config: TrainConfig,
    data_dir: Path,
    out_dir: Path,
    *,
    resume: bool = False,
    sampler: Sampler | None = None,
    console: Console | None = None,
    force: bool = False,
) -> TrainResult:
    """Train a model on the prepared folder ``data_dir`` and leave checkpoints in ``out_dir``.

    With ``resume`` the newest whole checkpoint in ``out_dir`` is continued bit for bit (from the start where there is
    none); without, ``out_dir`` must hold none. What cannot fit in memory is not begun unless ``force``. Raises
    `UserError` for what the user can mend, and `Interrupted` when SIGINT or SIGTERM came and a checkpoint was saved.
    """
    console = console or Console(stderr=True)
    say = partial(console.print, markup=False, highlight=False, soft_wrap=True)
    if not resume and holds_a_run(out_dir):
        raise UserError(f"{out_dir}: already holds checkpoints; add --resume to continue, or choose another folder")
    data = open_data(data_dir)
    config, steps_per_epoch = resolve(config, data)
    facts = collect_facts(config, data)
    fit = check_memory(config, facts.model, say, force=force)
    if config.train.verify_data:
        check_data(data, say)
    with explained(out_dir):
        out_dir.mkdir(parents=True, exist_ok=True)
    with locked(out_dir):
        return _train(facts, data, out_dir, steps_per_epoch, fit, resume, sampler, console)


def _train(
    facts: RunFacts,
    data: PreparedData,
    out_dir: Path,
    steps_per_epoch: int,
    fit: Fit,
    resume: bool,
    sampler: Sampler | None,
    console: Console,
) -> TrainResult:
    """`train`, once everything is known to fit together and ``out_dir`` is this process's alone."""
    say = partial(console.print, markup=False, highlight=False, soft_wrap=True)
    config = facts.config
    clear_leftovers(out_dir)
    passed_over = recall_decisions(out_dir) if resume else ()
    model = build_model(facts.model, seed=config.seed).to(config.device)
    state = TrainState(model, build_optimiser(model, config.train))
    found = newest_checkpoint(out_dir, say) if resume else None
    if found is not None:
        restore(found, state, facts, say)
        state.passed_over = tuple(sorted({*state.passed_over, *passed_over}))
        set_aside(out_dir, state.step, say)
        settle(out_dir, config.train, state.step)
        say(f"continuing after step {state.step} of {found}")
    elif resume:
        say(f"{out_dir}: holds no checkpoint; starting from the beginning")
    if found is None:
        forget_incidents(out_dir)
    state.outlook = recall(found) or look_ahead(config, facts.model, fit, count_parameters(model))
    for line in headline(facts, data, model):
        say(line)
    say(f"memory: about {gigabytes(fit.use.peak_bytes)} when it is fullest")

    settings, max_steps = config.train, config.train.max_steps
    assert max_steps is not None
    with (
        MetricsLog(out_dir, state.step if found else None) as log,
        Display(console, start=state.step, max_steps=max_steps, log_every=settings.log_every) as display,
        reported(out_dir, say),
        tracked(config, out_dir, log.rows, resumed=found is not None, say=say) as tracker,
        recorded_session(out_dir, lambda: state.step, config, fresh=found is None),
        Saver(out_dir, facts, background=settings.save_in_background, say=say) as saver,
        Prefetch(Batches.of(config, data), settings.loader_workers, max_steps=max_steps) as batches,
        stop_requests() as stop,
    ):
        session = Session(facts, data, out_dir, state, log, display, sampler, saver, found, stop)
        stop.when_late(settings.grace_seconds, session.rescue)
        if not log.has_board:
            say("TensorBoard is not installed (pip install 'langwright[track]'); figures go to metrics.jsonl alone")
        session.begin()
        steps = train_steps(state, config, batches, max_steps=max_steps, steps_per_epoch=steps_per_epoch, stopping=stop)
        try:
            for result in followed(steps, state, max_steps):
                session.after(result)
                tracker.follow(log.rows)
        except BadStep as error:
            raise BadStep(f"{error}; the state before it is in {session.save_now(prune=False)}") from error
        result = session.finish() if stop.signum is None or state.step == max_steps else None
        if result is None:
            assert stop.signum is not None
            raise Interrupted(stop.signum, state.step, session.save_now())
        tracker.follow(log.rows)
        return result


def resolve(config: TrainConfig, data: PreparedData) -> tuple[TrainConfig, int]:
    """``config`` with everything decided that depends on data and machine, and the steps of one epoch."""
    settings = config.train
    windows = windows_per_epoch(data.train, settings.context)
    epochs = settings.epochs or 1.0
    device = pick_device(config.device)
    decided = settings.replace(
        max_steps=settings.max_steps or math.ceil(epochs * windows / settings.batch_size),
        dtype=str(pick_compute_dtype(settings.dtype, device)).removeprefix("torch."),
    )
    keep_freed_memory()
    config = config.replace(train=decided, device=str(device), threads=set_threads(config.threads))
    return config, max(1, windows // settings.batch_size)


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
    return RunFacts(config, model, tokenizer, data.description, data.folder)


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
