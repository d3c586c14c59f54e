"""A training run from start to end: recipe and data in, checkpoints and figures out."""

import math
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import torch
from rich.console import Console

from langwright.core.errors import FormatError, UserError
from langwright.core.files import explained, locked, verify_folder
from langwright.core.runtime import keep_freed_memory, pick_device, pick_dtype, set_threads
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
from langwright.train.metrics import MetricsLog, Row
from langwright.train.optimiser import build_optimiser
from langwright.train.planning.advice import Fit, check_memory, gigabytes
from langwright.train.planning.following import followed
from langwright.train.planning.outlook import look_ahead, recall
from langwright.train.rank_saving import RankSaver
from langwright.train.ranks import ALONE, Ranks, SharedError, joined_ranks
from langwright.train.report.page import reported
from langwright.train.session import Sampler, Session, TrainResult
from langwright.train.sessions import recorded_session
from langwright.train.spread import Spread
from langwright.train.tracking import Tracker, tracked

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
    with joined_ranks(config.device) as ranks, ExitStack() as held:
        if not ranks.first:
            console = Console(quiet=True)
        say = partial(console.print, markup=False, highlight=False, soft_wrap=True)
        with ranks.agreeing():
            if not resume and holds_a_run(out_dir):
                raise UserError(
                    f"{out_dir}: already holds checkpoints; add --resume to continue, or choose another folder"
                )
            spread = Spread(config.parallel, ranks)
            data = open_data(data_dir)
            config, steps_per_epoch = resolve(config, data, ranks)
            facts = collect_facts(config, data)
            spread.check(config.train, facts.model)
            fit = check_memory(config, facts.model, say, force=force, spread=spread)
            if config.train.verify_data and ranks.local_rank == 0:
                check_data(data, say)
        newest = None
        with ranks.agreeing():
            if ranks.first:
                with explained(out_dir):
                    out_dir.mkdir(parents=True, exist_ok=True)
                held.enter_context(locked(out_dir))
                newest = _tidy(out_dir, resume, say)
        name = ranks.from_first(newest and newest.name)
        found = out_dir / name if name else None
        return _train(facts, data, out_dir, steps_per_epoch, fit, found, sampler, console, spread)


def _tidy(out_dir: Path, resume: bool, say: Callable[[str], None]) -> Path | None:
    """Make ``out_dir``, which is this run's alone, ready for it; the checkpoint to continue from."""
    clear_leftovers(out_dir)
    found = None
    if resume:
        recall_decisions(out_dir)
        found = newest_checkpoint(out_dir, say)
    if found is None:
        forget_incidents(out_dir)
        if resume:
            say(f"{out_dir}: holds no checkpoint; starting from the beginning")
    return found


def _train(
    facts: RunFacts,
    data: PreparedData,
    out_dir: Path,
    steps_per_epoch: int,
    fit: Fit,
    found: Path | None,
    sampler: Sampler | None,
    console: Console,
    spread: Spread,
) -> TrainResult:
    """`train`, once everything is known to fit together and ``out_dir`` is this run's alone."""
    say = partial(console.print, markup=False, highlight=False, soft_wrap=True)
    config, ranks = facts.config, spread.ranks
    model = build_model(facts.model, seed=config.seed)
    spread.place(model, torch.device(config.device), pick_dtype(config.train.dtype))
    state = TrainState(model, build_optimiser(model, config.train))
    if found is not None:
        restore(found, state, facts, say, ranks)
        state.passed_over = tuple(sorted({*state.passed_over, *recall_decisions(out_dir)}))
        with ranks.agreeing():
            if ranks.first:
                set_aside(out_dir, state.step, say)
                settle(out_dir, config.train, state.step)
        say(f"continuing after step {state.step} of {found}")
    state.outlook = recall(found) or look_ahead(config, facts.model, fit, count_parameters(model))
    for line in headline(facts, data, model):
        say(line)
    say(f"memory: about {gigabytes(fit.use.peak_bytes)} when it is fullest")

    settings, max_steps = config.train, config.train.max_steps
    rows = spread.rows(settings.batch_size)
    assert max_steps is not None
    with (
        MetricsLog(out_dir, state.step if found else None, writes=ranks.first) as log,
        Display(console, start=state.step, max_steps=max_steps, log_every=settings.log_every) as display,
        _followers(config, out_dir, log.rows, state, say, ranks, fresh=found is None) as tracker,
        RankSaver(out_dir, facts, background=settings.save_in_background, say=say, spread=spread) as saver,
        Prefetch(Batches.of(config, data, rows), settings.loader_workers, max_steps=max_steps) as batches,
        stop_requests(patient=not ranks.alone) as stop,
    ):
        halted = stop if ranks.alone else lambda: spread.stopped
        session = Session(facts, data, out_dir, state, log, display, sampler, saver, found, halted, spread)
        if ranks.alone:
            stop.when_late(settings.grace_seconds, session.rescue)
        if not log.has_board:
            say("TensorBoard is not installed (pip install 'langwright[track]'); figures go to metrics.jsonl alone")
        session.begin()
        steps = train_steps(
            state,
            config,
            batches,
            max_steps=max_steps,
            steps_per_epoch=steps_per_epoch,
            stopping=stop,
            spread=spread,
        )
        try:
            for result in followed(steps, state, max_steps):
                session.after(result)
                tracker.follow(log.rows)
        except BadStep as error:
            kind = BadStep if ranks.alone else SharedError
            raise kind(f"{error}; the state before it is in {session.save_now(prune=False)}") from error
        result = session.finish() if not halted() or state.step == max_steps else None
        if result is None:
            # Where another rank was told to stop, no signal came here.
            raise Interrupted(stop.signum or signal.SIGTERM, state.step, session.save_now())
        tracker.follow(log.rows)
        return result


@contextmanager
def _followers(
    config: TrainConfig,
    out: Path,
    rows: Sequence[Row],
    state: TrainState,
    say: Callable[[str], None],
    ranks: Ranks,
    *,
    fresh: bool,
) -> Iterator[Tracker]:
    """What is written down about the run by its first rank; on the others a tracker without a service."""
    with ExitStack() as held:
        tracker = Tracker(None, rows, say)
        with ranks.agreeing():
            if ranks.first:
                held.enter_context(reported(out, say))
                tracker = held.enter_context(tracked(config, out, rows, resumed=not fresh, say=say))
                held.enter_context(recorded_session(out, lambda: state.step, config, fresh=fresh))
        yield tracker


def resolve(config: TrainConfig, data: PreparedData, ranks: Ranks = ALONE) -> tuple[TrainConfig, int]:
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
    config = config.replace(train=decided, device=str(device), threads=set_threads(config.threads, ranks.local_size))
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
