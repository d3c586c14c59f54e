"""Checkpoints of a run: ``OUT/step-00000100`` is a Hugging Face folder that the run can also continue from.

Beside the model and the tokenizer it holds ``langwright.json`` (configuration, data, figures), a model card,
``trainer.json`` and ``optimizer.safetensors``. A folder is committed with a manifest of SHA-256 sums, or it is not
there; ``OUT/last`` points to the newest.
"""

import os
import re
import shutil
import uuid
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from langwright.core.config import Frozen
from langwright.core.errors import FormatError, UserError
from langwright.core.files import committed_folder, explained, fsync, verify_folder, write_atomic
from langwright.core.json_text import read_json_object, write_json
from langwright.core.safetensors_file import WEIGHTS, SafetensorsFile, write_weights
from langwright.model.checkpoint.load import load_model
from langwright.model.checkpoint.save import save_model
from langwright.model.families.base import NOT_IN_FORWARD
from langwright.train.card import RunFacts, describe_run, model_card
from langwright.train.loop import Score, TrainState
from langwright.train.ranks import ALONE, Ranks
from langwright.train.spread import is_shared

LAST = "last"
RUN_FILE, TRAINER_FILE, OPTIMISER_FILE = "langwright.json", "trainer.json", "optimizer.safetensors"
SHARDS = "shards"
_NAME = re.compile(r"step-\d{8,}")
_LEFTOVER = re.compile(r"\.step-\d{8,}\.\w+\.tmp")


class TrainerFile(Frozen):
    """``trainer.json``: a `TrainState` without its tensors. The generator's state is its seed: f(seed, step)."""

    step: int
    tokens: int
    seconds: float
    skipped: int
    skipped_in_a_row: int
    latest: Score | None
    best: Score | None
    seed: int


def list_checkpoints(out: Path) -> list[Path]:
    """Checkpoint folders in ``out``, oldest first."""
    found = [path for path in out.iterdir() if _NAME.fullmatch(path.name) and path.is_dir()] if out.is_dir() else []
    return sorted(found, key=_step_of)


def save_checkpoint(
    out: Path, state: TrainState, facts: RunFacts, write_shares: Callable[[Path], None] | None = None
) -> Path:
    """Commit the state as ``OUT/step-...``, point ``OUT/last`` to it, then delete all but the newest ``keep``.

    Where the state lies on several ranks, ``write_shares(folder)`` has all of them write theirs; a model that is not
    whole is left out, and then ``OUT/last`` stays. Raises `UserError` when the disk is full or not writable; what was
    there before stays.
    """
    target = out / f"step-{state.step:08d}"
    whole = not any(is_shared(parameter) for parameter in state.model.parameters())
    with committed_folder(target) as folder:
        if whole:
            save_model(state.model, folder)
        facts.tokenizer.save(folder)
        (folder / RUN_FILE).write_text(write_json(describe_run(facts, state)), encoding="utf-8")
        (folder / "README.md").write_text(model_card(facts, state), encoding="utf-8")
        trainer = {name: getattr(state, name) for name in TrainerFile.model_fields if name != "seed"}
        trainer_file = TrainerFile(**trainer, seed=facts.config.seed)
        (folder / TRAINER_FILE).write_text(write_json(trainer_file.model_dump()), encoding="utf-8")
        if write_shares:
            write_shares(folder / SHARDS)
        else:
            _write_optimiser(folder / OPTIMISER_FILE, state)
    if whole:
        point_last(out, target)
    older = [path for path in list_checkpoints(out) if _step_of(path) <= state.step]
    for path in older[: -facts.config.train.keep]:
        if path.resolve() != (out / LAST).resolve():
            _remove(path)
    return target


def point_last(out: Path, target: Path) -> None:
    """Make ``OUT/last`` a relative link to ``target`` in one step; where there are no links, a file with its name."""
    temporary = out / f".{LAST}.{uuid.uuid4().hex[:12]}.tmp"
    try:
        os.symlink(target.name, temporary, target_is_directory=True)
    except (OSError, NotImplementedError):
        write_atomic(out / LAST, target.name + "\n")
        return
    with explained(out / LAST):
        os.replace(temporary, out / LAST)
        fsync(out)


def newest_checkpoint(out: Path, say: Callable[[str], None]) -> Path | None:
    """The newest checkpoint whose files all match its manifest; tells of the damaged ones that it passes over.

    None when there are no checkpoints; raises `FormatError` when there are and none is whole.
    """
    there = list_checkpoints(out)
    for path in reversed(there):
        try:
            verify_folder(path)
            return path
        except FormatError as error:
            say(f"{error}; going back to the checkpoint before it")
    if there:
        raise FormatError(f"{out}: none of its {len(there)} checkpoints is whole; train anew in another folder")
    return None


def clear_leftovers(out: Path) -> None:
    """Remove temporary folders of a process that was killed while it wrote a checkpoint."""
    for path in out.iterdir() if out.is_dir() else ():
        if _LEFTOVER.fullmatch(path.name):
            shutil.rmtree(path, ignore_errors=True)


def restore(folder: Path, state: TrainState, facts: RunFacts, say: Callable[[str], None], ranks: Ranks = ALONE) -> None:
    """Fill a fresh ``state`` from a checkpoint of the same run, made by any number of ranks, on all of ``ranks``.

    Raises `UserError` when the checkpoint has another architecture, tokenizer or data; tells which settings changed.
    """
    with ranks.agreeing():
        _check_same_run(folder, state, facts, say)
    values = TrainerFile.parse(read_json_object(folder / TRAINER_FILE), str(folder / TRAINER_FILE))
    if (folder / SHARDS).is_dir() or any(is_shared(parameter) for parameter in state.model.parameters()):
        from langwright.train.shared_state import read_shared  # takes seconds

        read_shared(folder, state, ranks)
    else:
        state.model.load_state_dict(load_model(folder, device=state.model.device).state_dict())
        _read_optimiser(folder / OPTIMISER_FILE, state)
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


def _write_optimiser(path: Path, state: TrainState) -> None:
    """Every tensor of the optimiser, named ``KEY:PARAMETER`` (``exp_avg:head.proj.weight``)."""
    held = state.optimiser.state
    tensors = (
        (f"{key}:{name}", value)
        for name, parameter in state.model.named_parameters()
        for key, value in held.get(parameter, {}).items()
        if isinstance(value, Tensor)
    )
    scratch = path.with_name(f".{path.stem}")
    scratch.mkdir()
    write_weights(scratch, tensors, shard_bytes=1 << 62)  # one file, however large
    os.rename(scratch / WEIGHTS, path)
    scratch.rmdir()


def _read_optimiser(path: Path, state: TrainState) -> None:
    parameters = dict(state.model.named_parameters())
    found: dict[str, dict[str, Tensor]] = defaultdict(dict)
    with SafetensorsFile.open(path) as file:
        for stored in file.names:
            key, _, name = stored.partition(":")
            shape = file.info(stored).shape
            if name not in parameters or shape not in ((), tuple(parameters[name].shape)):
                raise FormatError(f"{path}: {stored!r:.200} of shape {shape} does not belong to this model")
            found[name][key] = file.tensor(stored).clone()
    # torch numbers parameters in the order of the groups.
    names = {id(parameter): name for name, parameter in parameters.items()}
    order = [names[id(p)] for group in state.optimiser.param_groups for p in group["params"]]
    tensors = {number: found[name] for number, name in enumerate(order) if name in found}
    state.optimiser.load_state_dict({"state": tensors, "param_groups": state.optimiser.state_dict()["param_groups"]})


def _remove(folder: Path) -> None:
    """Delete a checkpoint so that no moment shows half of one."""
    hidden = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:12]}.tmp")
    with explained(folder):
        os.rename(folder, hidden)
    shutil.rmtree(hidden, ignore_errors=True)


def _step_of(folder: Path) -> int:
    return int(folder.name.removeprefix("step-"))
