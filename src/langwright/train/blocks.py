"""What is done to every block of a model that trains, from outside: compile it, or compute it twice to save memory."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from langwright.model.mlp import MLP
from langwright.model.model import Model


def recompute_blocks(model: Model) -> None:
    """Keep only the inputs of blocks for the backward, and compute the rest again there (Chen et al. 2016,
    arXiv:1604.06174): about a third more arithmetic. Dropout draws the same masks; without gradients nothing changes.
    """
    for block in model.backbone.layers:
        block.forward = _recomputed(block.forward)
        for module in block.modules():
            if isinstance(module, MLP):
                module.lean = False  # all of it is computed again anyway


def compile_blocks(model: Model) -> None:
    """Compile the forward of every block with torch.compile: one compilation, because all blocks are alike.

    Only the forward: hooks of FSDP and of inspectors stay outside, and so do the names of the parameters.
    """
    for block in model.backbone.layers:
        block.forward = torch.compile(block.forward)


def _recomputed(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def call(*args: Any) -> Tensor:
        if not torch.is_grad_enabled():
            return forward(*args)
        return checkpoint(forward, *args, use_reentrant=False)  # pyright: ignore[reportReturnType]

    return call
