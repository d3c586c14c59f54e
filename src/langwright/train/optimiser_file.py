"""The optimiser on disk: everything it holds for a parameter, in safetensors, under the parameter's name.

That is whatever `torch.optim.Optimizer.state` maps a parameter to: numbers, and tensors of the parameter's shape or of
one that broadcasts to it. A parameter without a state (frozen, or not stepped yet) has no entry.
"""

import os
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from langwright.core.errors import FormatError
from langwright.core.safetensors_file import WEIGHTS, SafetensorsFile, write_weights
from langwright.train.loop import TrainState

OPTIMISER_FILE = "optimizer.safetensors"
NUMBER = "#"
"""Begins the name of an entry that was a number, not a tensor."""


def optimiser_tensors(state: TrainState) -> dict[str, Tensor]:
    """The optimiser's own tensors, named ``KEY:PARAMETER`` (``exp_avg:head.proj.weight``); its numbers as new ones."""
    found: dict[str, Tensor] = {}
    for name, parameter in state.model.named_parameters():
        for key, value in state.optimiser.state.get(parameter, {}).items():
            if isinstance(value, Tensor):
                found[f"{key}:{name}"] = value
            elif isinstance(value, int | float):
                number = torch.tensor(value, dtype=torch.float64 if isinstance(value, float) else None)
                found[f"{NUMBER}{key}:{name}"] = number
    return found


def write_optimiser(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write what `optimiser_tensors` gave as one file, however large."""
    scratch = path.with_name(f".{path.stem}")
    scratch.mkdir()
    write_weights(scratch, _each_by_itself(tensors), shard_bytes=1 << 62)
    os.rename(scratch / WEIGHTS, path)
    scratch.rmdir()


def read_optimiser(path: Path, state: TrainState) -> None:
    """Give the optimiser what the file holds, bit for bit; raises `FormatError` when that is of another model."""
    parameters = dict(state.model.named_parameters())
    found: dict[str, dict[str, Any]] = defaultdict(dict)
    with SafetensorsFile.open(path) as file:
        for stored in file.names:
            key, _, name = stored.partition(":")
            shape = file.info(stored).shape
            if name not in parameters or not _fits(shape, tuple(parameters[name].shape)):
                raise FormatError(f"{path}: {stored!r:.200} of shape {shape} does not belong to this model")
            value = file.tensor(stored).clone()
            if key.startswith(NUMBER) and not shape:
                found[name][key.removeprefix(NUMBER)] = value.item()
            else:
                found[name][key] = value
    # torch numbers parameters in the order of the groups.
    optimiser, names = state.optimiser, {id(parameter): name for name, parameter in parameters.items()}
    order = [names[id(p)] for group in optimiser.param_groups for p in group["params"]]
    numbered = {number: found[name] for number, name in enumerate(order) if name in found}
    optimiser.load_state_dict({"state": numbered, "param_groups": optimiser.state_dict()["param_groups"]})
    for name, entries in found.items():  # torch casts to the dtype of the parameter, which is not always what was held
        held = optimiser.state.get(parameters[name], {})
        for key, value in entries.items():
            if isinstance(value, Tensor) and held[key].dtype != value.dtype:
                held[key] = value.to(held[key].device)


def _each_by_itself(tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """A tensor that stands for two parameters is stored for both."""
    seen: set[int] = set()
    for name, tensor in tensors.items():
        yield name, tensor.clone() if tensor.data_ptr() in seen else tensor
        seen.add(tensor.data_ptr())


def _fits(shape: tuple[int, ...], parameter: tuple[int, ...]) -> bool:
    """Whether ``shape`` broadcasts to that of the parameter."""
    pairs = zip(reversed(shape), reversed(parameter), strict=False)
    return len(shape) <= len(parameter) and all(size in (1, whole) for size, whole in pairs)
