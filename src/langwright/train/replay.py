"""One step of a run done again, to see what was in it: the weights before it, its batch, its dropout.

A step is a function of the state before it, and that one of the nearest earlier checkpoint, or of the seed where there
is none; so the figures are those of the run, bit for bit on the same machine with the same number of threads.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn.utils import get_total_norm

from langwright.core.errors import FormatError, UserError
from langwright.core.json_text import read_json_object
from langwright.data.loader import Place, PreparedData, open_data
from langwright.model.model import Model, build_model
from langwright.tokenizer.load import load_tokenizer
from langwright.train.batches import Batches
from langwright.train.checkpoint import RUN_FILE, list_checkpoints, load_state, newest_checkpoint, step_of
from langwright.train.compute import ComputeModel, pick_compute_dtype
from langwright.train.config import TrainConfig
from langwright.train.faults import Incident, decided, incident_path, read_incident, read_incidents
from langwright.train.loop import TrainState, accumulate, micro_batches, step_seed, train_steps
from langwright.train.metrics import METRICS, Row, finite, read_metrics
from langwright.train.objective import IGNORED, lm_objective
from langwright.train.optimiser import build_optimiser
from langwright.train.pretraining import collect_facts, resolve


@dataclass(frozen=True)
class ReplayRow:
    """A sequence of the batch. ``loss`` is in nats a token, without dropout, with the weights before the step."""

    row: int
    loss: float
    place: Place
    text: str


@dataclass(frozen=True)
class Replay:
    """Step ``step``, from 1, as it was before the weights moved; ``start`` is None where it began with the seed."""

    step: int
    start: Path | None
    loss: float
    grad_norm: float
    group_norms: dict[str, float]
    """Norm of the gradient by group of the optimiser; their squares add up to that of ``grad_norm``."""
    parameter_norms: dict[str, float]
    """The same by parameter, largest first."""
    rows: list[ReplayRow]
    """Highest loss first."""
    logged: Row | None
    """What was written down then: the incident of the step, or its row of ``metrics.jsonl``; None where neither is."""

    @property
    def is_as_logged(self) -> bool | None:
        """Whether loss and norm are those of the log, bit for bit; None where the step is not in it."""
        if self.logged is None:
            return None
        return [finite(self.loss), finite(self.grad_norm)] == [self.logged.get("loss"), self.logged.get("grad_norm")]


def replay(out: Path, step: int, say: Callable[[str], None], *, data_dir: Path | None = None) -> Replay:
    """Do step ``step`` (from 1) of the run in ``out`` again; nothing there is changed.

    ``data_dir`` is for data that were moved. Raises `UserError` when the run has no such step, passed it over, or
    learned from other data.
    """
    stored, folder = _read_run(out)
    if "method" in stored:
        raise UserError(f"{out}: was made by langwright tune, whose steps cannot be replayed; runs of train can")
    incident = read_incident(incident_path(out, step)) if incident_path(out, step).is_file() else None
    values = incident.config if incident else stored.get("config")
    config = TrainConfig.parse(values if isinstance(values, dict) else {}, str(folder / RUN_FILE))
    last = step_of(folder)
    if not 1 <= step <= max(last, incident.step if incident else 0):
        raise UserError(f"{out}: has no step {step}; its newest checkpoint is of step {last}")
    passed_over = incident.passed_over_before if incident else decided(read_incidents(out))
    if step - 1 in passed_over:
        raise UserError(f"{out}: step {step} was passed over, as {out / 'incidents'} tells; there is nothing to replay")
    data = _open(data_dir or Path(str(stored.get("data_folder"))), stored)
    config, steps_per_epoch = resolve(config, data)

    model = build_model(collect_facts(config, data).model, seed=config.seed).to(config.device)
    state, batches = TrainState(model, build_optimiser(model, config.train)), Batches.of(config, data)
    limit = min([step - 1, *(incident.passed_over if incident else ())])
    start = newest_checkpoint(out, say, up_to=limit) if _has_one(out, limit) else None
    if start is not None:
        load_state(start, state)
    state.passed_over = passed_over
    max_steps = config.train.max_steps
    assert max_steps is not None
    say(f"from {start or 'the beginning'}: {step - 1 - state.step} steps to do before step {step}")
    steps = train_steps(state, config, batches, max_steps=max_steps, steps_per_epoch=steps_per_epoch)
    while state.step < step - 1:
        next(steps)
    return _look_at(state, config, batches, data, incident, start, _logged(out, step, incident))


def _look_at(
    state: TrainState,
    config: TrainConfig,
    batches: Batches,
    data: PreparedData,
    incident: Incident | None,
    start: Path | None,
    logged: Row | None,
) -> Replay:
    """Forward and backward of the coming step of ``state``, and what can be told of its gradients and rows."""
    settings, model, batch = config.train, state.model, batches(state.step)
    if incident and [list(row.ids) for row in incident.rows] != batch.ids.tolist():
        raise FormatError(f"step {incident.step}: the batch is not the one that was written down then")
    compute = ComputeModel(model, pick_compute_dtype(settings.dtype, model.device))
    torch.manual_seed(step_seed(config.seed, state.step))
    loss = accumulate(compute, batch, lm_objective(model), settings.micro_batch_size)
    assert loss is not None
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    norms = {name: gradient.norm().item() for name, gradient in gradients.items()}
    groups = {
        group["name"]: get_total_norm([p.grad for p in group["params"] if p.grad is not None]).item()
        for group in state.optimiser.param_groups
    }
    tokenizer = load_tokenizer(data.tokenizer_path)
    losses, places = _row_losses(compute, batches, state.step), batches.places(state.step)
    texts = [tokenizer.decode(ids) for ids in batch.ids.tolist()]
    rows = [ReplayRow(*parts) for parts in zip(range(len(losses)), losses, places, texts, strict=True)]
    return Replay(
        step=state.step + 1,
        start=start,
        loss=loss,
        grad_norm=get_total_norm(list(gradients.values())).item(),
        group_norms=groups,
        parameter_norms=dict(sorted(norms.items(), key=lambda item: _order(item[1]))),
        rows=sorted(rows, key=lambda row: _order(row.loss)),
        logged=logged,
    )


@torch.no_grad()
def _row_losses(compute: ComputeModel, batches: Batches, step: int) -> list[float]:
    """Nats a token of every row by itself, without dropout."""
    model: Model = compute.model.eval()
    pieces = micro_batches(batches(step), 1, compute.master.device)
    loss = lm_objective(model).loss
    return [loss(model, piece).item() / max(1, int((piece.targets != IGNORED).sum())) for piece in pieces]


def _order(value: float) -> float:
    """Largest first, and what is not a number before everything."""
    return -math.inf if math.isnan(value) else -value


def _read_run(out: Path) -> tuple[dict[str, Any], Path]:
    for folder in reversed(list_checkpoints(out)):
        try:
            return read_json_object(folder / RUN_FILE), folder
        except UserError:
            continue
    raise UserError(f"{out}: holds no checkpoint of a run; give the folder that langwright train --out wrote")


def _has_one(out: Path, limit: int) -> bool:
    return any(step_of(path) <= limit for path in list_checkpoints(out))


def _open(folder: Path, stored: dict[str, Any]) -> PreparedData:
    if not folder.is_dir():
        raise UserError(f"{folder}: the data of the run are not there any more; say with --data where they are")
    data, known = open_data(folder), stored.get("data")
    if not isinstance(known, dict) or known.get("fingerprint") != data.fingerprint:
        raise UserError(f"{folder}: not the data that the run learned from; say with --data where those are")
    return data


def _logged(out: Path, step: int, incident: Incident | None) -> Row | None:
    if incident is not None:
        return {"loss": incident.loss, "grad_norm": incident.grad_norm}
    rows = [row for row in read_metrics(out / METRICS, step) if row["step"] == step]
    return next((row for row in rows if row["event"] in ("step", "skip")), None)
