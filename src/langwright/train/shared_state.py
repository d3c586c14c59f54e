"""A `TrainState` as named tensors that may lie on several ranks: ``model:NAME`` and, of the optimiser, ``KEY:NAME``."""

from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict

from langwright.core.errors import FormatError
from langwright.core.safetensors_file import DTYPES
from langwright.model.checkpoint.load import load_model
from langwright.train.checkpoint import SHARDS
from langwright.train.loop import TrainState
from langwright.train.ranks import Ranks
from langwright.train.sharded import inspect_shards, read_shards
from langwright.train.spread import is_shared

MODEL = "model:"


def shared_tensors(state: TrainState) -> dict[str, Tensor]:
    """Everything that goes to the disk, as it lies on the ranks."""
    found: dict[str, Tensor] = {}
    for name, parameter in state.model.named_parameters():
        found[MODEL + name] = parameter.detach()
        for key, value in state.optimiser.state.get(parameter, {}).items():
            assert isinstance(value, Tensor)
            found[f"{key}:{name}"] = value
    return found


def read_shared(folder: Path, state: TrainState, ranks: Ranks) -> None:
    """Fill model and optimiser, in place, from a checkpoint of any kind: shares of any number of ranks, or whole.

    Raises `FormatError` when it is of another model.
    """
    shards, group = folder / SHARDS, None if ranks.alone else ranks.words
    parameters = dict(state.model.named_parameters())
    source = shards if shards.is_dir() else folder
    found: dict[str, dict[str, Tensor]] = defaultdict(dict)
    wanted: dict[str, Tensor] = {}
    for stored, info in inspect_shards(source).items():
        key, _, name = stored.partition(":")
        if not name or stored.startswith(MODEL):
            continue  # of the model, whole or in shares
        if name not in parameters or info.shape not in ((), tuple(parameters[name].shape)):
            raise FormatError(f"{source}: {stored!r:.200} of shape {info.shape} does not belong to this model")
        dtype = getattr(torch, DTYPES[info.dtype])
        parameter = parameters[name].detach()
        value = torch.empty_like(parameter, dtype=dtype) if info.shape else torch.empty((), dtype=dtype)
        found[name][key] = wanted[stored] = value if info.shape else value.to(parameter.device)
    if source == shards:
        wanted |= {MODEL + name: parameter.detach() for name, parameter in parameters.items()}
    else:
        _fill_whole(folder, state)
    read_shards(source, wanted, group)
    for name, values in found.items():
        state.optimiser.state[parameters[name]] = dict[str, Any](values)


def _fill_whole(folder: Path, state: TrainState) -> None:
    """Give every rank its part of a model that is whole on the disk."""
    whole = load_model(folder).state_dict()
    if any(is_shared(parameter) for parameter in state.model.parameters()):
        set_model_state_dict(state.model, whole, options=StateDictOptions(full_state_dict=True))
    else:
        state.model.load_state_dict(whole)
