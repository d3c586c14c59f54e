"""Checkpoints of a run: ``OUT/step-00000100`` is a Hugging Face folder that the run can also continue from.

Beside the model and the tokenizer it holds ``langwright.json`` (configuration, data, figures), a model card,
``trainer.json`` and ``optimizer.safetensors``. A folder is committed with a manifest of SHA-256 sums, or it is not
there; ``OUT/last`` points to the newest, ``OUT/best`` to the best where that is kept.
"""

import copy
import os
import re
import shutil
import uuid
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from langwright.core.config import Frozen
from langwright.core.errors import FormatError, UserError
from langwright.core.files import (
    committed_folder,
    explained,
    fsync,
    recover_folder,
    verify_folder,
    write_atomic,
)
from langwright.core.json_text import read_json_object, write_json
from langwright.model.families.base import NOT_IN_FORWARD
from langwright.train.card import WHOLE, Form, RunFacts, describe_run
from langwright.train.config import LoopSettings
from langwright.train.faults import INCIDENTS
from langwright.train.loop import Score, TrainState
from langwright.train.optimiser_file import OPTIMISER_FILE, optimiser_tensors, read_optimiser, write_optimiser
from langwright.train.ranks import ALONE, Ranks
from langwright.train.retention import best_step, to_delete
from langwright.train.spread import is_shared

LAST, BEST = "last", "best"
RUN_FILE, TRAINER_FILE, SHARDS = "langwright.json", "trainer.json", "shards"
_NAME = re.compile(r"step-\d{8,}")
_TEMPORARY = re.compile(rf"\.({LAST}|{BEST}|metrics\.jsonl)\.\w+\.tmp")
_LEFTOVER = re.compile(r"\.(step-\d{8,})\.\w+\.(tmp|old)")


class TrainerFile(Frozen):
    """``trainer.json``: a `TrainState` without its tensors. The generator's state is its seed: f(seed, step)."""

    step: int
    tokens: int
    seconds: float
    skipped: int
    skipped_in_a_row: int
    latest: Score | None
    best: Score | None
    recent: tuple[tuple[float, float], ...] = ()
    passed_over: tuple[int, ...] = ()
    seed: int


@dataclass(frozen=True)
class Snapshot:
    """A state to be written. ``state`` is read but for its optimiser, whose tensors are in ``optimiser`` by name."""

    state: TrainState
    optimiser: dict[str, Tensor]


def take_snapshot(state: TrainState, *, copied: bool) -> Snapshot:
    """The state as it is now; ``copied``, so that it stays so while training goes on, into the host's memory."""
    if not copied:
        return Snapshot(state, optimiser_tensors(state))
    # deepcopy takes for copied what its memo names, so nothing is copied twice, and nothing on the device.
    tensors = (*state.model.parameters(), *state.model.buffers())
    frozen = {id(tensor) for tensor in state.model.parameters() if not tensor.requires_grad}  # stay as they are anyway
    memo: dict[int, Any] = {id(each): each if id(each) in frozen else _host_copy(each) for each in tensors}
    model = copy.deepcopy(state.model, memo)
    return Snapshot(
        replace(state, model=model), {name: _host_copy(value) for name, value in optimiser_tensors(state).items()}
    )


def list_checkpoints(out: Path) -> list[Path]:
    """Checkpoint folders in ``out``, oldest first."""
    found = [path for path in out.iterdir() if _NAME.fullmatch(path.name) and path.is_dir()] if out.is_dir() else []
    return sorted(found, key=step_of)


def step_of(folder: Path) -> int:
    """The steps that were done when a checkpoint was made, by its name."""
    return int(folder.name.removeprefix("step-"))


def holds_a_run(out: Path) -> bool:
    """Whether there is a checkpoint in ``out``, were it one that a crash left aside."""
    asides = out.glob(".step-*.old") if out.is_dir() else ()
    return bool(list_checkpoints(out)) or any(_LEFTOVER.fullmatch(path.name) for path in asides)


def save_checkpoint(
    out: Path,
    snapshot: Snapshot,
    facts: RunFacts,
    *,
    prune: bool = True,
    write_shares: Callable[[Path], None] | None = None,
) -> Path:
    """Commit the state as ``OUT/step-...``, point ``OUT/last`` to it, then delete what need not be kept.

    Where the state lies on several ranks, ``write_shares(folder)`` has all of them write theirs; a model that is not
    whole is left out, and then ``OUT/last`` stays. Raises `UserError` when the disk is full or not writable; what was
    there before stays.
    """
    state, settings = snapshot.state, facts.config.train
    target = out / f"step-{state.step:08d}"
    whole = not any(is_shared(parameter) for parameter in state.model.parameters())
    with committed_folder(target) as folder, explained(folder):
        if whole:
            facts.form.write(state.model, folder)
        facts.tokenizer.save(folder, types=facts.model.n_types > 1)
        (folder / RUN_FILE).write_text(write_json(describe_run(facts, state)), encoding="utf-8")
        (folder / "README.md").write_text(facts.card(facts, state), encoding="utf-8")
        trainer = {name: getattr(state, name) for name in TrainerFile.model_fields if name != "seed"}
        trainer_file = TrainerFile(**trainer, seed=facts.config.seed)
        (folder / TRAINER_FILE).write_text(write_json(trainer_file.model_dump(mode="json")), encoding="utf-8")
        if write_shares:
            write_shares(folder / SHARDS)
        else:
            write_optimiser(folder / OPTIMISER_FILE, snapshot.optimiser)
    settle(out, settings, state.step, prune=prune)
    return target


def settle(out: Path, settings: LoopSettings, step: int, *, prune: bool = True) -> None:
    """Point ``OUT/last`` and ``OUT/best`` to what they name now that ``step`` is committed; ``prune`` the others.

    Done after every commit, and by a run that continues, since a crash may have come in between. Only a checkpoint with
    a whole model is pointed to, and what is pointed to stays.
    """
    target = out / f"step-{step:08d}"
    if _holds_a_model(target):
        point(out, LAST, target)
    scores = {step_of(path): _score_of(path) for path in list_checkpoints(out) if step_of(path) <= step}
    if settings.keep_best and (best := best_step(scores)) is not None:
        point(out, BEST, out / f"step-{best:08d}")
    for old in to_delete(scores, settings) if prune else ():
        path = out / f"step-{old:08d}"
        if path.resolve() != (out / LAST).resolve():
            _remove(path)


def point(out: Path, name: str, target: Path) -> None:
    """Make ``OUT/name`` a relative link to ``target`` in one step; where there are no links, a file with its name."""
    temporary = out / f".{name}.{uuid.uuid4().hex[:12]}.tmp"
    try:
        os.symlink(target.name, temporary, target_is_directory=True)
    except (OSError, NotImplementedError):
        write_atomic(out / name, target.name + "\n")
        return
    with explained(out / name):
        os.replace(temporary, out / name)
        fsync(out)


def newest_checkpoint(out: Path, say: Callable[[str], None], *, up_to: int | None = None) -> Path | None:
    """The newest checkpoint whose files all match its manifest; tells of the damaged ones that it passes over.

    With ``up_to``, the newest of at most so many steps. None when there are no checkpoints; raises `FormatError` when
    there are and none is whole.
    """
    there = [path for path in list_checkpoints(out) if up_to is None or step_of(path) <= up_to]
    for path in reversed(there):
        try:
            verify_folder(path)
            return path
        except UserError as error:
            say(f"{error}; going back to the checkpoint before it")
    if there:
        raise FormatError(f"{out}: none of its {len(there)} checkpoints is whole; train anew in another folder")
    return None


def clear_leftovers(out: Path) -> None:
    """Tidy up after a process that was killed while it wrote: what it had moved aside is put back or deleted."""
    for path in sorted(out.iterdir()) if out.is_dir() else ():
        found = _LEFTOVER.fullmatch(path.name)
        with explained(path):
            if found and found[2] == "old":
                recover_folder(out / found[1])
            if found:
                shutil.rmtree(path, ignore_errors=True)
            elif _TEMPORARY.fullmatch(path.name):
                path.unlink(missing_ok=True)
    for path in (out / INCIDENTS).glob(".step-*.tmp"):
        with explained(path):
            path.unlink(missing_ok=True)


def set_aside(out: Path, after: int, say: Callable[[str], None]) -> None:
    """Rename the checkpoints of more than ``after`` steps, which were damaged, so that new ones can have the names."""
    damaged = [path for path in list_checkpoints(out) if step_of(path) > after]
    if damaged:
        point(out, LAST, out / f"step-{after:08d}")  # first, so that it never leads nowhere
    for path in damaged:
        kept = out / f"damaged-{path.name}-{uuid.uuid4().hex[:6]}"
        with explained(path):
            os.rename(path, kept)
        say(f"{path.name} is kept as {kept.name}; delete it when you have looked at it")


def drop_superseded(out: Path, passed_over: Collection[int]) -> None:
    """Delete the checkpoints into which a step went that was later decided to be passed over."""
    gone = []
    for path in list_checkpoints(out):
        try:
            known = TrainerFile.parse(read_json_object(path / TRAINER_FILE), str(path)).passed_over
        except UserError:
            continue  # damaged: whoever loads it will see to it
        if any(step < step_of(path) and step not in known for step in passed_over):
            gone.append(path)
    if gone and (left := [path for path in list_checkpoints(out) if path not in gone]):
        point(out, LAST, left[-1])
    for path in gone:
        _remove(path)


def restore(folder: Path, state: TrainState, facts: RunFacts, say: Callable[[str], None], ranks: Ranks = ALONE) -> None:
    """Fill a fresh ``state`` from a checkpoint of the same run, made by any number of ranks, on all of ``ranks``.

    Raises `UserError` when the checkpoint has another architecture, tokenizer or data; tells which settings changed.
    """
    with ranks.agreeing():
        _check_same_run(folder, state, facts, say)
    load_state(folder, state, ranks, form=facts.form)


def load_state(folder: Path, state: TrainState, ranks: Ranks = ALONE, *, form: Form = WHOLE) -> None:
    """Set ``state``, in place, to what a checkpoint of the same model holds."""
    values = TrainerFile.parse(read_json_object(folder / TRAINER_FILE), str(folder / TRAINER_FILE))
    if (folder / SHARDS).is_dir() or any(is_shared(parameter) for parameter in state.model.parameters()):
        from langwright.train.shared_state import read_shared  # takes seconds

        read_shared(folder, state, ranks)
    else:
        form.read(folder, state.model)
        read_optimiser(folder / OPTIMISER_FILE, state)
    for name in TrainerFile.model_fields:
        if name != "seed":
            setattr(state, name, getattr(values, name))


def _check_same_run(folder: Path, state: TrainState, facts: RunFacts, say: Callable[[str], None]) -> None:
    path, fix = folder / RUN_FILE, "continue with what it was made from, or train anew in another folder"
    stored, now = read_json_object(path), describe_run(facts, state)
    if stored.get("tokenizer") != now["tokenizer"]:
        raise UserError(f"{path}: the model has another tokenizer than these data; {fix}")
    if _flat(stored.get("data")).get("fingerprint") != now["data"]["fingerprint"]:
        raise UserError(f"{path}: the model was trained on other data; {fix}")
    shapes = [
        {name: value for name, value in _flat(each).items() if name not in NOT_IN_FORWARD}
        for each in (stored.get("model"), now["model"])
    ]
    if changes := _changes(*shapes):
        raise UserError(f"{path}: the model has another architecture ({changes[0]}); {fix}")
    for change in _changes(stored.get("config"), now["config"]):
        say(f"continuing with another setting: {change}")


def _changes(before: Any, now: Any) -> list[str]:
    """``train.lr was 0.1, is now 0.2`` for every leaf that differs."""
    old, new = _flat(before), _flat(now)
    names = [name for name in old | new if old.get(name) != new.get(name)]
    return [f"{name} was {old.get(name)!r:.60}, is now {new.get(name)!r:.60}" for name in names]


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested objects as one, with dotted names."""
    if not isinstance(value, dict):
        return {prefix: value}
    start = f"{prefix}." if prefix else ""
    return {name: leaf for key, inner in value.items() for name, leaf in _flat(inner, f"{start}{key}").items()}


def _holds_a_model(folder: Path) -> bool:
    """Whether the model, or its adapter, is there whole, not in the shares of ranks alone."""
    return any(folder.glob("*model*.safetensors"))


def _score_of(folder: Path) -> float | None:
    """What a checkpoint that was validated when it was made is ranked by, bits per byte or a classifier's loss.

    None for any other, a damaged one included.

    One that holds its model in shares alone has none either: nothing else could read the best one.
    """
    if not _holds_a_model(folder):
        return None
    try:
        metrics = read_json_object(folder / RUN_FILE).get("metrics")
    except UserError:
        return None
    if not isinstance(metrics, dict) or metrics.get("step") != step_of(folder):
        return None
    ranked_by = metrics.get("bpb", metrics.get("loss"))
    return ranked_by if isinstance(ranked_by, float) else None


def _host_copy(tensor: Tensor) -> Tensor:
    copied = tensor.detach().to("cpu", copy=True)
    return nn.Parameter(copied, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else copied


def _remove(folder: Path) -> None:
    """Delete a checkpoint so that no moment shows half of one."""
    hidden = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:12]}.tmp")
    with explained(folder):
        os.rename(folder, hidden)
        fsync(folder.parent)  # or a power cut brings the name back, without the files
    shutil.rmtree(hidden, ignore_errors=True)
