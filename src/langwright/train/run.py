"""A training run from start to end: recipe and data in, checkpoints and figures out."""

import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import torch
from rich.console import Console

from langwright.core.errors import UserError
from langwright.core.files import explained, locked
from langwright.core.runtime import pick_dtype
from langwright.data.loader import open_data
from langwright.data.prefetch import Prefetch
from langwright.infer.certificate import PARITY, certify, write_certificate
from langwright.model.model import count_parameters
from langwright.train.checkpoint import clear_leftovers, holds_a_run, newest_checkpoint, restore, set_aside, settle
from langwright.train.config import RunConfig, TrainConfig
from langwright.train.display import Display
from langwright.train.faults import BadStep
from langwright.train.incident import forget_incidents, recall_decisions
from langwright.train.interrupt import Interrupted, stop_requests
from langwright.train.loop import TrainState, train_steps
from langwright.train.metrics import MetricsLog, Row
from langwright.train.optimiser import build_optimiser
from langwright.train.planning.advice import gigabytes
from langwright.train.planning.following import followed
from langwright.train.planning.outlook import look_ahead, recall
from langwright.train.pretraining import pretraining
from langwright.train.rank_saving import RankSaver
from langwright.train.ranks import Ranks, SharedError, joined_ranks
from langwright.train.report.page import reported
from langwright.train.session import Sampler, Session, TrainResult
from langwright.train.sessions import recorded_session
from langwright.train.spread import Spread, is_shared
from langwright.train.task import Task
from langwright.train.tracking import Tracker, tracked


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

    def prepare(spread: Spread, say: Callable[[str], None]) -> Task:
        return pretraining(config, open_data(data_dir), say, force=force, spread=spread)

    return run_task(config, prepare, out_dir, resume=resume, sampler=sampler, console=console)


def run_task(
    config: RunConfig,
    prepare: Callable[[Spread, Callable[[str], None]], Task],
    out_dir: Path,
    *,
    resume: bool = False,
    sampler: Sampler | None = None,
    console: Console | None = None,
) -> TrainResult:
    """Do what ``prepare(spread, say)`` says on every rank; see `train`."""
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
            task = prepare(spread, say)
        newest = None
        with ranks.agreeing():
            if ranks.first:
                with explained(out_dir):
                    out_dir.mkdir(parents=True, exist_ok=True)
                held.enter_context(locked(out_dir))
                newest = _tidy(out_dir, resume, say)
        name = ranks.from_first(newest and newest.name)
        return _train(task, out_dir, out_dir / name if name else None, sampler, console, spread)


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
    task: Task,
    out_dir: Path,
    found: Path | None,
    sampler: Sampler | None,
    console: Console,
    spread: Spread,
) -> TrainResult:
    """`run_task`, once everything is known to fit together and ``out_dir`` is this run's alone."""
    say = partial(console.print, markup=False, highlight=False, soft_wrap=True)
    facts, config, ranks = task.facts, task.facts.config, spread.ranks
    model = task.build()
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
    if task.fit is not None:
        state.outlook = recall(found) or look_ahead(config, facts.model, task.fit, count_parameters(model))
    for line in task.headline(model):
        say(line)
    if task.fit is not None:
        say(f"memory: about {gigabytes(task.fit.use.peak_bytes)} when it is fullest")

    settings, max_steps = config.train, config.train.max_steps
    rows = spread.rows(settings.batch_size)
    assert max_steps is not None
    with (
        MetricsLog(out_dir, state.step if found else None, writes=ranks.first) as log,
        Display(console, start=state.step, max_steps=max_steps, log_every=settings.log_every) as display,
        _followers(config, out_dir, log.rows, state, say, ranks, fresh=found is None) as tracker,
        RankSaver(out_dir, facts, background=settings.save_in_background, say=say, spread=spread) as saver,
        Prefetch(task.batches(rows), settings.loader_workers, max_steps=max_steps) as batches,
        stop_requests(patient=not ranks.alone) as stop,
    ):
        halted = stop if ranks.alone else lambda: spread.stopped
        session = Session(task, out_dir, state, log, display, sampler, saver, found, halted, spread)
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
            steps_per_epoch=task.steps_per_epoch,
            objective=task.objective,
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
        if task.report is not None and ranks.first:
            for line in task.report(state.model, out_dir):
                say(line)
        if task.certified and ranks.first and not any(map(is_shared, state.model.parameters())):
            try:
                write_certificate(result.checkpoint / PARITY, certify(state.model, facts.tokenizer))
            except UserError as error:  # what was learnt is saved all the same
                say(f"no parity certificate: {error}")
        return result


@contextmanager
def _followers(
    config: RunConfig,
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
