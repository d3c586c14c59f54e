"""Optimisers and what they decay."""

from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

from langwright.model.model import Model
from langwright.train.config import LoopSettings


def decay_groups(model: Model, weight_decay: float) -> list[dict]:
    """Two parameter groups: matrices with ``weight_decay``, everything else without.

    Biases and norms do not decay, and neither does a table of embeddings unless it is the head as well: a row gets a
    gradient only when its token occurs, so decay would wear rare tokens away. A tied head gives every row one.
    """
    tables = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    matrices = {id(module.weight) for module in model.modules() if isinstance(module, nn.Linear)}

    def decays(parameter: Tensor) -> bool:
        return parameter.ndim >= 2 and (id(parameter) not in tables or id(parameter) in matrices)

    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in parameters if decays(p)], "weight_decay": weight_decay},
        {"params": [p for p in parameters if not decays(p)], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def build_optimiser(model: Model, settings: LoopSettings) -> Optimizer:
    """The optimiser of ``model``; the loop sets its learning rate before every step."""
    groups = decay_groups(model, settings.weight_decay)
    if settings.optimiser == "sgd":
        return SGD(groups, lr=settings.lr, momentum=settings.momentum)
    fused = model.device.type in ("cpu", "cuda")  # one pass over memory instead of a dozen
    return AdamW(groups, lr=settings.lr, betas=settings.betas, eps=settings.eps, fused=fused)


def set_lr(optimiser: Optimizer, lr: float) -> None:
    """Give every group the rate ``lr``."""
    for group in optimiser.param_groups:
        group["lr"] = lr
