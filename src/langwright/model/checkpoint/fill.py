"""Filling a model that exists only as shapes: one allocation, one copy a tensor, nothing unexplained."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from langwright.core.errors import FormatError, UserError
from langwright.model.families.base import Family
from langwright.model.heads import HeadKind
from langwright.model.model import Model, init_weights
from langwright.model.rename import Rule, check_shape, split


@dataclass(frozen=True)
class Blocks:
    """A matrix (N, K) as ggml stores it: of each row the bytes of its K / 32 blocks of ``type``, such as Q4_1."""

    type: str
    rows: Tensor
    """(N, bytes of a row) uint8."""


Pack = Callable[[dict[str, nn.Module], Tensor | Blocks], dict[str, nn.Module]]
"""From the linear layers and embeddings (by name) that share one matrix, and the matrix, to what stands in for them."""


def check_head(family: Family, head: HeadKind, path: Path) -> None:
    """Raise `UserError` when the family has no such head."""
    if head not in family.heads:
        raise UserError(f"{path}: the {family.name} family has no {head} head (it has {', '.join(family.heads)})")


def refuse_unknown(names: Iterable[str], family: Family, path: Path) -> None:
    """Raise `FormatError` for the first tensor that neither a head nor the list of unused ones explains."""
    patterns = [re.compile(pattern) for pattern in family.unused]
    heads = {item.theirs.split("{")[0] for rules in family.heads.values() for item in rules}
    for name in sorted(names):
        if not any(pattern.fullmatch(name) for pattern in patterns) and not name.startswith(tuple(heads)):
            raise FormatError(f"{path}: tensor {name!r} is not part of a {family.name} model of this configuration")


def materialise(
    model: Model,
    rules: list[Rule],
    shape_of: Callable[[Rule], Sequence[int]],
    fetch: Callable[[Rule], Tensor],
    fresh: list[str],
    path: Path,
    dtype: torch.dtype,
    device: torch.device | str,
    pack: Pack | None = None,
    fetch_blocks: Callable[[Rule], Blocks | None] = lambda _: None,
) -> Model:
    """Allocate ``model`` (on the meta device) and copy what ``fetch`` gives for each of ``rules`` into it.

    ``fresh`` names the parameters that no rule fills; they belong to a new head and begin at random. With ``pack``
    linear layers and the token embedding are replaced by what it makes of their matrix, one after another, of its
    stored blocks where ``fetch_blocks`` gives them.
    """
    wanted = {name: parameter.shape for name, parameter in model.named_parameters()}
    for item in rules:  # all of them before anything is allocated: a lying config must not take memory
        check_shape(item, shape_of(item), [wanted[name] for name in item.ours], str(path))
    if pack is not None:
        rules = _replace(model, rules, fetch, fetch_blocks, pack)
    for module in model.modules():  # what `to_empty` does, which would first import torch's compiler
        for name, parameter in module.named_parameters(recurse=False):
            setattr(module, name, nn.Parameter(torch.empty(parameter.shape, dtype=dtype, device=device)))
    if pack is None:
        model.tie()
    parameters: Mapping[str, Tensor] = dict(model.named_parameters())
    if fresh:
        init_weights(model, seed=0, part="head")
    with torch.no_grad():
        for item in rules:
            targets = [parameters[name] for name in item.ours]
            parts = split(item, fetch(item), [target.shape for target in targets], model.config)
            for target, part in zip(targets, parts, strict=True):
                target.copy_(part)
    model.fresh = fresh
    return model.eval()


def _replace(
    model: Model,
    rules: list[Rule],
    fetch: Callable[[Rule], Tensor],
    fetch_blocks: Callable[[Rule], Blocks | None],
    pack: Pack,
) -> list[Rule]:
    """Put what ``pack`` makes in the place of linear layers and the token embedding; the rules that are left."""
    names: dict[int, list[str]] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) or name == "backbone.embed.tokens":
            names.setdefault(id(module.weight), []).append(name)
    left = []
    for item in rules:
        weights = [model.get_parameter(name) for name in item.ours]
        if not all(id(weight) in names for weight in weights):
            left.append(item)
            continue
        blocks = fetch_blocks(item) if len(weights) == 1 else None
        if blocks is None:
            parts = split(item, fetch(item), [weight.shape for weight in weights], model.config)
        else:
            parts = [blocks]
        for weight, part in zip(weights, parts, strict=True):
            made = pack({name: model.get_submodule(name) for name in names[id(weight)]}, part)
            for name, module in made.items():
                model.set_submodule(name, module)
    return left
