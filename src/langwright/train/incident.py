"""What is done about a step that was not taken: its batch is written down and, where that is the policy, the run goes
back to a checkpoint and passes the batch over.

The decision is durable before anything else happens: it stands in ``OUT/incidents``, where a process that continues the
run finds it, and in every checkpoint made later.
"""

import math
import shutil
from collections.abc import Callable
from pathlib import Path

from langwright.train.card import RunFacts
from langwright.train.checkpoint import (
    drop_superseded,
    list_checkpoints,
    load_state,
    newest_checkpoint,
    step_of,
)
from langwright.train.faults import (
    INCIDENTS,
    BadStep,
    Incident,
    IncidentRow,
    decided,
    read_incidents,
    write_incident,
)
from langwright.train.loop import MAX_SKIPPED, StepResult, TrainState, step_seed
from langwright.train.task import StepBatches


def note(out: Path, result: StepResult, state: TrainState, facts: RunFacts, batches: StepBatches) -> Path:
    """Write down a step that was not taken; returns where."""
    return write_incident(out, _describe(result, state, facts, batches))


def go_back(
    out: Path,
    result: StepResult,
    state: TrainState,
    facts: RunFacts,
    batches: StepBatches,
    say: Callable[[str], None],
) -> Path:
    """Set ``state`` to a checkpoint from before the last ``pass_over`` batches, which are left out from now on.

    Returns that checkpoint. Checkpoints that hold what is left out now are deleted. Raises `BadStep` after
    `MAX_SKIPPED` times that brought nothing: back to the same checkpoint, or without a step that could be taken since.
    """
    incident = _describe(result, state, facts, batches)
    first, there = max(0, result.step - facts.config.train.pass_over), list_checkpoints(out)
    target = newest_checkpoint(out, say, up_to=max(first, step_of(there[0]))) if there else None
    if target is None or _in_vain(result.step, target, state, read_incidents(out)) >= MAX_SKIPPED:
        path = write_incident(out, incident)
        why = (
            "there is no checkpoint to go back to" if target is None else f"going back {MAX_SKIPPED} times did not help"
        )
        raise BadStep(
            f"step {result.step} could not be taken ({result.fault}), and {why}; its batch is in {path}; lower "
            f"train.lr (now {facts.config.train.lr:g})"
        )
    passed = tuple(range(max(first, step_of(target)), result.step))
    write_incident(out, incident.replace(went_back_to=target.name, passed_over=passed))
    load_state(target, state, form=facts.form)
    state.passed_over = tuple(sorted({*incident.passed_over_before, *passed}))
    drop_superseded(out, state.passed_over)
    which = f"step {result.step}" if len(passed) == 1 else f"steps {passed[0] + 1} to {result.step}"
    say(f"went back to {target.name}; the data of {which} will be passed over")
    return target


def recall_decisions(out: Path) -> tuple[int, ...]:
    """The steps, from 0, that this run decided to pass over; checkpoints from before the decision are deleted."""
    passed_over = decided(read_incidents(out))
    drop_superseded(out, passed_over)
    return passed_over


def forget_incidents(out: Path) -> None:
    """Delete what an earlier run without checkpoints wrote down in the same folder."""
    shutil.rmtree(out / INCIDENTS, ignore_errors=True)


def _describe(result: StepResult, state: TrainState, facts: RunFacts, batches: StepBatches) -> Incident:
    step = result.step - 1
    batch = batches(step)
    flat = [part.reshape(len(batch.ids), -1).tolist() for part in (batch.ids, batch.targets)]
    rows = zip(batches.places(step), *flat, strict=True)
    assert result.fault is not None
    return Incident(
        step=result.step,
        fault=result.fault,
        loss=result.loss if math.isfinite(result.loss) else None,
        grad_norm=result.grad_norm if math.isfinite(result.grad_norm) else None,
        lr=result.lr,
        policy=facts.config.train.on_bad_step,
        passed_over_before=state.passed_over,
        step_seed=step_seed(facts.config.seed, step),
        recent=state.recent,
        config=facts.config.model_dump(mode="json"),
        data_fingerprint=facts.data.fingerprint,
        rows=tuple(IncidentRow(**place._asdict(), ids=ids, targets=targets) for place, ids, targets in rows),
    )


def _in_vain(step: int, target: Path, state: TrainState, incidents: list[Incident]) -> int:
    """How often the run went back already without getting further: counted by target, or by steps not taken since."""
    to_target = sum(each.went_back_to == target.name for each in incidents)
    start = step - 1
    while start - 1 in state.passed_over:
        start -= 1
    in_a_row = sum(start < each.step < step and each.went_back_to is not None for each in incidents)
    return max(to_target, in_a_row)
