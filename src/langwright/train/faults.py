"""Steps that must not be taken, and what is kept of them to be looked at: ``OUT/incidents/step-00000018.json``."""

import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from langwright.core.config import Frozen
from langwright.core.errors import UserError
from langwright.core.files import write_atomic
from langwright.core.json_text import read_json_object, write_json
from langwright.train.config import LoopSettings

INCIDENTS = "incidents"

Recent = tuple[tuple[float, float], ...]
"""Loss and gradient norm of the last steps taken."""


class BadStep(UserError):
    """Training stopped at a step that could not be taken; the state is that before it."""


class IncidentRow(Frozen):
    """A sequence of the batch: token ``start`` of the stream, which is token ``offset`` of document ``document``."""

    start: int
    document: int
    offset: int
    ids: tuple[int, ...]
    targets: tuple[int, ...]


class Incident(Frozen):
    """A step that was not taken. ``loss`` and ``grad_norm`` are None where they are not finite; ``fault`` tells."""

    step: int
    fault: str
    loss: float | None
    grad_norm: float | None
    lr: float
    policy: Literal["skip", "rewind", "stop"]
    went_back_to: str | None = None
    """With rewind: the checkpoint from which training went on."""
    passed_over: tuple[int, ...] = ()
    """With rewind: the steps, counted from 0, whose batches are left out from then on."""
    passed_over_before: tuple[int, ...] = ()
    """Those that were left out already."""
    step_seed: int
    """Seeds torch's generator before the step."""
    recent: Recent
    config: dict[str, Any]
    data_fingerprint: str
    rows: tuple[IncidentRow, ...]


def find_fault(loss: float, grad_norm: float, recent: Recent, settings: LoopSettings) -> str | None:
    """Why a step may not be taken, in words; None when it may."""
    figures = f"loss {loss:g}, gradient norm {grad_norm:g}"
    if not math.isfinite(loss) or not math.isfinite(grad_norm):
        return figures
    if len(recent) < settings.spike_window:
        return None
    usual_loss, usual_norm = (statistics.median(column) for column in zip(*recent, strict=True))
    if settings.spike_loss is not None and loss > usual_loss + settings.spike_loss:
        return f"{figures}; the loss is {loss - usual_loss:.2f} nats over the median of {len(recent)} steps"
    if settings.spike_norm is not None and grad_norm > usual_norm * settings.spike_norm:
        return (
            f"{figures}; the norm is {grad_norm / max(usual_norm, 1e-30):.1f} times the median of {len(recent)} steps"
        )
    return None


def remember(recent: Recent, loss: float, grad_norm: float, settings: LoopSettings) -> Recent:
    """``recent`` with a step that was taken, as long as the window; empty where no leaps are looked for."""
    if settings.spike_loss is None and settings.spike_norm is None:
        return ()
    return (*recent, (loss, grad_norm))[-settings.spike_window :]


def incident_path(out: Path, step: int) -> Path:
    """Where the incident of a step is written."""
    return out / INCIDENTS / f"step-{step:08d}.json"


def write_incident(out: Path, incident: Incident) -> Path:
    """Write it, whole or not at all; raises `UserError`."""
    path = incident_path(out, incident.step)
    write_atomic(path, write_json(incident.model_dump(mode="json"), indent=None))
    return path


def read_incident(path: Path) -> Incident:
    """Read one; raises `UserError` when it is damaged."""
    return Incident.parse(read_json_object(path), str(path))


def read_incidents(out: Path) -> list[Incident]:
    """All incidents of a run in the order of their steps; raises `UserError` when one is damaged."""
    folder = out / INCIDENTS
    return [read_incident(path) for path in sorted(folder.glob("step-*.json"))] if folder.is_dir() else []


def decided(incidents: Sequence[Incident]) -> tuple[int, ...]:
    """The steps, counted from 0, that incidents of a run decided to pass over."""
    return tuple(sorted({step for incident in incidents for step in incident.passed_over}))
