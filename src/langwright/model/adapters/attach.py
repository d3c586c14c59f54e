"""Adding adapters to a model, by swapping its projections."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from langwright.core.errors import UserError
from langwright.model.adapters.config import PROJECTIONS, AdapterConfig
from langwright.model.adapters.lora import LoRALinear
from langwright.model.adapters.quantise import QuantisedLinear
from langwright.model.heads import HeadKind
from langwright.model.model import Model

CLASSIFIERS: tuple[HeadKind, ...] = ("sequence_classifier", "token_classifier")
_PARTS = ("lora_a", "lora_b", "magnitude")


def projections(model: Model) -> dict[str, nn.Module]:
    """The projections of all layers by their full names, adapted or not."""
    return {
        name: module
        for name, module in model.named_modules()
        if name.startswith("backbone.layers.") and name.rpartition(".")[2] in PROJECTIONS
    }


def adapted(model: Model) -> dict[str, LoRALinear]:
    """The projections that have an adapter."""
    return {name: module for name, module in projections(model).items() if isinstance(module, LoRALinear)}


def add_adapters(model: Model, config: AdapterConfig, seed: int = 0) -> Model:
    """Give ``model``, in place, adapters that change nothing yet, and freeze everything else; returns it.

    The same ``seed`` draws the same adapters. Raises `UserError` when the model has no such projection, when the rank
    is larger than its width, or when its head cannot be trained beside adapters; ValueError when it has adapters
    already.
    """
    if has_adapters(model):
        raise ValueError("the model has adapters already; fuse them first")
    found = projections(model)
    there = tuple(each for each in PROJECTIONS if any(name.endswith(f".{each}") for name in found))
    if unknown := [each for each in config.targets if each not in there]:
        raise UserError(f"targets: this {model.config.family} model has no {unknown[0]}; it has {', '.join(there)}")
    if config.rank > model.config.d_model:
        raise UserError(f"rank: {config.rank} is larger than the model's width ({model.config.d_model}); lower it")
    if config.train_head and model.head_kind not in CLASSIFIERS:
        raise UserError(
            f"train_head: only a classifier's head is trained beside adapters, and this is a {model.head_kind} head"
        )
    config = config.replace(targets=config.targets or there)
    model.requires_grad_(False)
    model.head.requires_grad_(config.train_head)
    generator = torch.Generator().manual_seed(seed)
    for name, module in found.items():
        if name.rpartition(".")[2] in config.targets:
            assert isinstance(module, nn.Linear | QuantisedLinear), name
            model.set_submodule(name, LoRALinear.from_base(module, config, generator))
    return model


def is_plain(model: Model) -> bool:
    """Whether every projection is an ordinary matrix: neither adapted nor quantised."""
    return all(isinstance(module, nn.Linear) for module in projections(model).values())


def has_adapters(model: Model) -> bool:
    """Whether any projection has an adapter."""
    return bool(adapted(model))


@contextmanager
def without_adapters(model: Model) -> Iterator[None]:
    """The model that the adapters were added to, for the length of a block."""
    modules = adapted(model).values()
    for module in modules:
        module.active = False
    try:
        yield
    finally:
        for module in modules:
            module.active = True


def adapter_config(model: Model) -> AdapterConfig | None:
    """What the adapters of ``model`` are, all targets named; None when it has none."""
    return next((module.config for module in adapted(model).values()), None)


def adapter_parameters(model: Model) -> dict[str, nn.Parameter]:
    """What training moves, by its name in the model: A, B and m of every adapter, and a head that is trained too."""
    config = adapter_config(model)
    head = config is not None and config.train_head
    return {
        name: parameter
        for name, parameter in model.named_parameters()
        if name.rpartition(".")[2] in _PARTS or (head and name.startswith("head."))
    }
