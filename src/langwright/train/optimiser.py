"""Optimisers and what they decay."""

from typing import Any

from torch import nn
from torch.optim import SGD, AdamW, Optimizer

from langwright.model.model import Model
from langwright.train.config import LoopSettings
from langwright.train.muon import Muon


def parameter_groups(model: Model, settings: LoopSettings) -> list[dict[str, Any]]:
    """What moves in one way, together: the layers' matrices, adapters' B, the head, tables, vectors (norms and biases).

    Matrices and the head decay. Vectors do not, and neither does a table of embeddings unless it is the head as well: a
    row gets a gradient only when its token occurs, so decay would wear rare tokens away; a tied head gives every row
    one.
    """
    tables = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    head = {id(parameter) for parameter in model.head.parameters() if parameter.ndim >= 2}
    kinds: dict[str, list[nn.Parameter]] = {"matrices": [], "lora_b": [], "head": [], "tables": [], "vectors": []}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if id(parameter) in head:
            kinds["head"].append(parameter)
        elif id(parameter) in tables:
            kinds["tables"].append(parameter)
        elif name.endswith(".lora_b"):
            kinds["lora_b"].append(parameter)
        else:
            kinds["vectors" if parameter.ndim < 2 else "matrices"].append(parameter)
    ratios = {
        "matrices": 1.0,
        "lora_b": settings.lora_b_lr_ratio,
        "head": settings.head_lr_ratio,
        "tables": settings.embed_lr_ratio,
        "vectors": settings.vector_lr_ratio,
    }
    return [
        {
            "params": parameters,
            "name": kind,
            "lr_ratio": ratios[kind],
            "weight_decay": settings.weight_decay if kind in ("matrices", "lora_b", "head") else 0.0,
            "kind": "muon" if kind in ("matrices", "lora_b") and settings.optimiser == "muon" else "adamw",
        }
        for kind, parameters in kinds.items()
        if parameters
    ]


def spare_compiler() -> None:
    """Keep torch's optimisers from importing its compiler, which would take nearly two seconds of every start.

    Their methods ask it for leave to run uncompiled when they are first called (``torch._compile``); the answer is
    given here. Nothing of ours compiles an optimiser.
    """
    for method in vars(Optimizer).values():
        plain = getattr(method, "__wrapped__", None)
        if plain is not None and getattr(plain, "__dynamo_disable", None) is None:
            vars(plain)["__dynamo_disable"] = plain


def build_optimiser(model: Model, settings: LoopSettings) -> Optimizer:
    """The optimiser of ``model``; the loop sets its learning rate before every step."""
    spare_compiler()
    groups = parameter_groups(model, settings)
    if settings.optimiser == "sgd":
        return SGD(groups, lr=settings.lr, momentum=settings.momentum)
    if settings.optimiser == "muon":
        return Muon(groups, lr=settings.lr, betas=settings.betas, eps=settings.eps)
    fused = model.device.type in ("cpu", "cuda")  # one pass over memory instead of a dozen
    return AdamW(groups, lr=settings.lr, betas=settings.betas, eps=settings.eps, fused=fused)


def set_lr(optimiser: Optimizer, lr: float) -> None:
    """Give every group its share of the rate ``lr``."""
    for group in optimiser.param_groups:
        group["lr"] = lr * group["lr_ratio"]
