"""Adapters as the PEFT library keeps them: ``adapter_config.json`` beside ``adapter_model.safetensors``."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from langwright.core.errors import FormatError, UserError
from langwright.core.files import explained, write_atomic
from langwright.core.safetensors_file import SafetensorsFile, write_tensors
from langwright.model.adapters.attach import adapted, adapter_config, add_adapters, projections
from langwright.model.adapters.config import PROJECTIONS, AdapterConfig
from langwright.model.adapters.names import Names, head_modules, name_parts, targets_of
from langwright.model.adapters.peft_config import (
    CONFIG,
    TASKS,
    WEIGHTS,
    PeftConfig,
    read_peft_config,
    write_peft_config,
)
from langwright.model.families import FAMILIES
from langwright.model.model import Model

_PREFIX = "base_model.model."
_PARTS = {"lora_a": ".lora_A.weight", "lora_b": ".lora_B.weight", "magnitude": ".lora_magnitude_vector"}
_FLOATS = ("F64", "F32", "F16", "BF16")


def save_adapter(model: Model, folder: Path, *, base: str) -> None:
    """Write the adapters of ``model``, in float32 and under `transformers`' names, and a classifier's head with them.

    ``base`` is what the adapter belongs to: a folder (also seen from ``folder``), a catalogue name or a hub id. For a
    folder that appears whole or not at all, fill a `core.files.committed_folder`. Raises `UserError` when the family's
    files hold a projection within a larger matrix, ValueError when the model has no adapters.
    """
    config = adapter_config(model)
    if config is None:
        raise ValueError("the model has no adapters to save")
    names, modules = name_parts(model), adapted(model)
    if lost := [name for name in modules if name in names.fused]:
        able = dict.fromkeys(name.rpartition(".")[2] for name in names.modules)
        instead = f"adapt {', '.join(able)} alone, or " if able else ""
        raise UserError(
            f"{folder}: a {model.config.family} checkpoint has {lost[0].rpartition('.')[2]} only as a part of "
            f"{names.fused[lost[0]]}, or transposed, so PEFT's format cannot hold this adapter; {instead}fuse it and "
            "save the whole model"
        )
    tensors: dict[str, Tensor] = {}
    for name, module in modules.items():
        for part, suffix in _PARTS.items():
            if (parameter := getattr(module, part)) is not None:
                tensors[_PREFIX + names.modules[name] + suffix] = parameter
    tensors |= {_PREFIX + theirs: model.get_parameter(ours) for ours, theirs in names.head.items()}
    with explained(folder):
        folder.mkdir(parents=True, exist_ok=True)
    write_tensors(
        folder / WEIGHTS, {name: tensor.detach().to("cpu", torch.float32) for name, tensor in tensors.items()}
    )
    text = write_peft_config(config, model.head_kind, base, targets_of(names, list(modules)), head_modules(names))
    write_atomic(folder / CONFIG, text)


def load_adapter(folder: Path, model: Model) -> Model:
    """Give ``model`` (the base), in place, the adapter in ``folder``, unfused; returns it.

    A model that has adapters already keeps their parameters and takes over the values. Everything is checked before
    anything is changed: raises `UserError` or `FormatError` naming the key, the module, what was found and what this
    model needs, for an adapter of another base, of another kind, or with features that are not supported.
    """
    given = read_peft_config(folder)
    with open_adapter(folder) as file:
        plan = _match(folder, given, file, model)
        before = adapter_config(model)
        if before is None:
            add_adapters(model, plan.config)
        elif changed := [
            name
            for name in ("rank", "alpha", "rank_stabilised", "dora", "targets")
            if getattr(before, name) != getattr(plan.config, name)
        ]:
            found, wanted = getattr(plan.config, changed[0]), getattr(before, changed[0])
            raise UserError(
                f"{folder}: the adapter's {changed[0]} is {found!r}, and that of this model's is {wanted!r}"
            )
        with torch.no_grad():
            for ours, stored in plan.stored.items():
                model.get_parameter(ours).copy_(file.tensor(stored))
    model.fresh = [name for name in model.fresh if name not in plan.stored]
    return model


def open_adapter(folder: Path) -> SafetensorsFile:
    """The tensors of an adapter; raises `FormatError` for pickle, `UserError` when there are none."""
    path, pickle = folder / WEIGHTS, folder / "adapter_model.bin"
    if not path.exists():
        if pickle.exists():
            raise FormatError(
                f"{pickle}: a pickle can run code when it is read, so it is refused; convert it in Python: safetensors."
                f"torch.save_file(torch.load({str(pickle)!r}, weights_only=True), {str(path)!r})"
            )
        raise UserError(f"{folder}: holds no {WEIGHTS}")
    return SafetensorsFile.open(path)


@dataclass(frozen=True)
class _Plan:
    config: AdapterConfig
    stored: dict[str, str]
    """The parameters of ours that the file fills, and the names of its tensors for them."""


def _match(folder: Path, given: PeftConfig, file: SafetensorsFile, model: Model) -> _Plan:
    """Which tensor goes where; nothing is read but the header, and no size is taken from it."""
    expected = TASKS.get(model.head_kind)
    if given.task not in (None, expected):
        raise UserError(
            f"{folder / CONFIG}: task_type is {given.task!r:.60}, and this model has a {model.head_kind} head"
        )
    names, prefix = name_parts(model), FAMILIES[model.config.family].prefix

    def bare(name: str) -> str:
        """Backbones alone and backbones under a head differ in the first part of every name."""
        return name.removeprefix(_PREFIX).removeprefix(prefix)

    modules = {bare(theirs): ours for ours, theirs in names.modules.items()}
    fused = {bare(theirs) for theirs in names.fused.values()}
    head = {bare(theirs): ours for ours, theirs in names.head.items()}
    stored: dict[str, str] = {}
    for key in file.names:
        module, part = _split(bare(key))
        if not key.startswith(_PREFIX):
            raise FormatError(f"{file.path}: tensor {key!r:.200} is not of PEFT's format (it begins with {_PREFIX})")
        if module in fused:
            raise UserError(
                f"{file.path}: in {model.config.family} files {module} is several projections in one matrix, or lies "
                "transposed, and is not adapted as such here; merge the adapter with peft (merge_and_unload)"
            )
        ours = f"{modules[module]}.{part}" if part and module in modules else head.get(bare(key))
        if ours is None or ours in stored:
            raise FormatError(
                f"{file.path}: tensor {key!r:.200} belongs to nothing that can be adapted in this model "
                f"({model.config.family}, {model.config.n_layers} layers, {model.head_kind} head); is it for another?"
            )
        stored[ours] = key
    _check_targets(folder, given, {name: prefix + bare(theirs) for name, theirs in names.modules.items()}, stored)
    _check_head(folder, given, names, stored, model)
    config = given.adapter.replace(targets=_targets(stored), train_head=any(name in stored for name in head.values()))
    _check_shapes(file, config, stored, model)
    return _Plan(config, stored)


def _split(name: str) -> tuple[str, str]:
    """Module and part of ours that a tensor's name means; no part where it is not an adapter's."""
    for part, suffix in _PARTS.items():
        if name.endswith(suffix):
            return name.removesuffix(suffix), part
    return name, ""


def _targets(stored: dict[str, str]) -> tuple[str, ...]:
    """The projections that have tensors, by our short names."""
    leaves = {ours.rpartition(".")[0].rpartition(".")[2] for ours in stored if not ours.startswith("head.")}
    return tuple(name for name in PROJECTIONS if name in leaves)


def _check_targets(folder: Path, given: PeftConfig, names: dict[str, str], stored: dict[str, str]) -> None:
    """Every projection that is targeted has all its tensors, in every layer, and no other has any."""
    if not (targets := _targets(stored)):
        raise FormatError(f"{folder / WEIGHTS}: holds no adapter")
    parts = ["lora_a", "lora_b", *(["magnitude"] if given.adapter.dora else [])]
    listed = None if given.target_modules is None else set(given.target_modules)
    for ours, theirs in names.items():
        leaf, there = ours.rpartition(".")[2], {part for part in _PARTS if f"{ours}.{part}" in stored}
        wanted = leaf in targets if listed is None else not listed.isdisjoint(_ends(theirs))
        if there and not wanted:
            raise FormatError(f"{folder / CONFIG}: target_modules does not name {theirs}, which has tensors")
        if wanted and leaf not in targets:
            raise FormatError(f"{folder / WEIGHTS}: holds no tensors for {theirs}, which is among target_modules")
        if leaf in targets and there != set(parts):
            missing = [part for part in parts if part not in there]
            what = f"has no {_PARTS[missing[0]][1:]}" if missing else "has a magnitude, and use_dora is not set"
            raise FormatError(
                f"{folder / WEIGHTS}: {theirs} {what}; an adapter here covers a projection in all layers or in none"
            )


def _ends(name: str) -> list[str]:
    """The ends of a name by which PEFT finds a module: for ``a.b.c`` those are ``a.b.c``, ``b.c`` and ``c``."""
    parts = name.split(".")
    return [".".join(parts[start:]) for start in range(len(parts))]


def _check_head(folder: Path, given: PeftConfig, names: Names, stored: dict[str, str], model: Model) -> None:
    """What is saved beside the adapter is the head of a classifier, and a fresh one is not left as it began."""
    known = {theirs.rpartition(".")[0] for theirs in names.head.values()}
    for name in given.modules_to_save:
        within = any(f".{module}.".find(f".{name}.") >= 0 for module in known)
        if not within and not (known and name in ("classifier", "score")):  # PEFT names both for every classifier
            raise UserError(
                f"{folder / CONFIG}: modules_to_save names {name!r:.60}, and only a classifier's head is loaded beside "
                "an adapter; merge it with peft (merge_and_unload) and load the merged folder"
            )
    needed = [
        ours
        for ours, theirs in names.head.items()
        if ours in model.fresh or any(f".{theirs}".find(f".{name}.") >= 0 for name in given.modules_to_save)
    ]
    if lost := [ours for ours in needed if ours not in stored]:
        raise FormatError(f"{folder / WEIGHTS}: holds no {names.head[lost[0]]}, and the head would stay untrained")


def _check_shapes(file: SafetensorsFile, config: AdapterConfig, stored: dict[str, str], model: Model) -> None:
    """Sizes come from the model and the rank; a tensor that says otherwise is named."""
    sizes = projections(model)
    if config.rank > model.config.d_model:
        raise UserError(f"{file.path.parent / CONFIG}: r = {config.rank} is larger than the model's width")
    for ours, key in stored.items():
        module, _, part = ours.rpartition(".")
        if module in sizes:
            base = getattr(sizes[module], "base", sizes[module])
            rows, columns = base.out_features, base.in_features
            wanted = {"lora_a": (config.rank, columns), "lora_b": (rows, config.rank), "magnitude": (rows,)}[part]
        else:
            wanted = tuple(model.get_parameter(ours).shape)
        info = file.info(key)
        if info.shape != wanted:
            raise FormatError(
                f"{file.path}: tensor {key!r:.200} is {info.shape}, and this model (with rank {config.rank}) needs "
                f"{wanted}; the adapter is for another base"
            )
        if info.dtype not in _FLOATS:
            raise FormatError(f"{file.path}: tensor {key!r:.200} is {info.dtype}, not of real numbers")
