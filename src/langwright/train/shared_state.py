"""A `TrainState` as named tensors that may lie on several ranks: ``model:NAME`` and, of the optimiser, ``KEY:NAME``."""

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict

from langwright.core.errors import FormatError
from langwright.core.safetensors_file import DTYPES
from langwright.model.checkpoint.load import load_model
from langwright.model.model import Model
from langwright.train.checkpoint import SHARDS
from langwright.train.loop import TrainState
from langwright.train.optimiser_file import NUMBER, optimiser_tensors
from langwright.train.ranks import Ranks
from langwright.train.sharded import check_shards, inspect_shards, read_shards
from langwright.train.spread import is_shared

MODEL = "model:"


def shared_tensors(state: TrainState) -> dict[str, Tensor]:
    """Everything that goes to the disk, as it lies on the ranks."""
    weights = {MODEL + name: parameter.detach() for name, parameter in state.model.named_parameters()}
    return weights | optimiser_tensors(state)


def read_shared(folder: Path, state: TrainState, ranks: Ranks) -> None:
    """Fill model and optimiser, in place, from a checkpoint of any kind: shares of any number of ranks, or whole.

    Raises `FormatError` when it is of another model.
    """
    parameters = dict(state.model.named_parameters())
    in_shares = (folder / SHARDS).is_dir()
    source = folder / SHARDS if in_shares else folder
    with ranks.agreeing():
        found = _room_for(source, parameters)
        wanted = {f"{key}:{name}": value for name, values in found.items() for key, value in values.items()}
        if in_shares:
            wanted |= {MODEL + name: parameter.detach() for name, parameter in parameters.items()}
        check_shards(source, wanted)
        whole = None if in_shares else load_model(folder).state_dict()
    if whole is not None:
        _fill(state.model, whole)
    read_shards(source, wanted, None if ranks.alone else ranks.words)
    for name, values in found.items():
        held = state.optimiser.state[parameters[name]] = {}
        for key, value in values.items():
            is_number = key.startswith(NUMBER) and value.ndim == 0
            held[key.removeprefix(NUMBER)] = value.item() if is_number else value


def _room_for(source: Path, parameters: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """A tensor, laid out as its parameter is, for everything of the optimiser in ``source``: by parameter and key."""
    found: dict[str, dict[str, Tensor]] = defaultdict(dict)
    for stored, info in inspect_shards(source).items():
        key, _, name = stored.partition(":")
        if not name or stored.startswith(MODEL):
            continue  # of the model, whole or in shares
        if name not in parameters or info.shape not in ((), tuple(parameters[name].shape)):
            raise FormatError(f"{source}: {stored!r:.200} of shape {info.shape} does not belong to this model")
        parameter, dtype = parameters[name].detach(), getattr(torch, DTYPES[info.dtype])
        value = torch.empty_like(parameter, dtype=dtype) if info.shape else torch.empty((), dtype=dtype)
        found[name][key] = value if info.shape else value.to(parameter.device)
    return found


def _fill(model: Model, whole: Mapping[str, Tensor]) -> None:
    """Give every rank its part of a model that each of them has whole."""
    if any(is_shared(parameter) for parameter in model.parameters()):
        set_model_state_dict(model, dict(whole), options=StateDictOptions(full_state_dict=True))
    else:
        model.load_state_dict(dict(whole))
