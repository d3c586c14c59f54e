"""Their tensor names and ours, as one table read in both directions.

A `Rule` pairs one of their tensors with one or several of ours: some families store query, key and value as one matrix,
some store matrices transposed. ``{i}`` stands for a layer number, ``{p}`` for ``weight`` or ``bias``.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from langwright.core.errors import FormatError
from langwright.model.config import ModelConfig

Layout = Literal["same", "transposed", "by_head"]


@dataclass(frozen=True)
class Rule:
    """``theirs`` holds ``ours`` stacked along the output dimension, in this order.

    ``layout``: ``transposed`` when theirs is (in, out) as in GPT-2's Conv1D; ``by_head`` when the parts alternate head
    by head as in GPT-NeoX.
    """

    theirs: str
    ours: tuple[str, ...]
    layout: Layout = "same"


def rule(theirs: str, *ours: str, layout: Layout = "same") -> Rule:
    """A `Rule`, written short."""
    return Rule(theirs, ours, layout)


def bind(rules: Iterable[Rule], config: ModelConfig, names: Iterable[str]) -> list[Rule]:
    """The rules written out for every layer and parameter whose tensors of ours are among ``names``.

    Raises AssertionError when a tensor of ours is left without a rule or has two: a table must be complete.
    """
    wanted, bound = set(names), []
    for item in rules:
        layers = range(config.n_layers) if "{i}" in item.theirs else (0,)
        kinds = ("weight", "bias") if "{p}" in item.theirs else ("",)
        for i in layers:
            for p in kinds:
                ours = tuple(name.replace("{i}", str(i)).replace("{p}", p) for name in item.ours)
                if all(name in wanted for name in ours):
                    theirs = item.theirs.replace("{i}", str(i)).replace("{p}", p)
                    bound.append(Rule(theirs, ours, item.layout))
    covered = [name for item in bound for name in item.ours]
    assert len(covered) == len(set(covered)), f"bound twice: {sorted(n for n in covered if covered.count(n) > 1)[:3]}"
    assert not wanted - set(covered), f"no rule for {sorted(wanted - set(covered))[:3]}"
    return bound


def check_shape(item: Rule, found: Sequence[int], shapes: list[torch.Size], source: str) -> None:
    """Raise `FormatError` naming ``source`` unless their tensor of shape ``found`` splits into ours of ``shapes``."""
    want = (sum(shape[0] for shape in shapes), *shapes[0][1:])
    if item.layout == "transposed":
        want = want[::-1]
    if tuple(found) != want:
        raise FormatError(f"{source}: tensor {item.theirs!r} is {tuple(found)}, the configuration needs {want}")


def split(item: Rule, tensor: Tensor, shapes: list[torch.Size], config: ModelConfig) -> list[Tensor]:
    """Their ``tensor`` as ours, of ``shapes``; views where possible."""
    if item.layout == "transposed" and tensor.ndim == 2:
        tensor = tensor.T
    rows = [shape[0] for shape in shapes]
    assert tuple(tensor.shape) == (sum(rows), *shapes[0][1:]), f"{item.theirs}: shapes were not checked"
    if item.layout == "by_head":
        grouped = tensor.unflatten(0, (config.n_heads, len(rows), -1))  # (H, 3, E, ...)
        return [part.flatten(0, 1) for part in grouped.unbind(1)]
    return list(tensor.split(rows)) if len(rows) > 1 else [tensor]


def join(item: Rule, parts: list[Tensor], config: ModelConfig) -> Tensor:
    """Our ``parts`` as their tensor: the inverse of `split`."""
    if item.layout == "by_head":
        heads = [part.unflatten(0, (config.n_heads, -1)) for part in parts]  # (H, E, ...)
        return torch.stack(heads, dim=1).flatten(0, 2).contiguous()
    tensor = torch.cat(parts) if len(parts) > 1 else parts[0]
    return tensor.T.contiguous() if item.layout == "transposed" and tensor.ndim == 2 else tensor
