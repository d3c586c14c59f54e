"""Dividing the matrices of a block among processes (Shoeybi et al. 2019, arXiv:1909.08053), by the names of modules.

``columns`` gives every process some outputs of a matrix, ``rows`` some of its inputs: heads stay whole, and a block
needs one sum over processes after attention and one after the MLP. Norms, embeddings and the head stay whole.
"""

from typing import Literal

from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor.parallel import ColwiseParallel, ParallelStyle, RowwiseParallel, parallelize_module

from langwright.core.errors import UserError
from langwright.model.model import Model

DIVIDED: dict[str, Literal["columns", "rows"]] = {
    "q_proj": "columns",
    "k_proj": "columns",
    "v_proj": "columns",
    "o_proj": "rows",
    "gate_proj": "columns",
    "up_proj": "columns",
    "down_proj": "rows",
}
"""The last part of a module's name: along what its matrix is divided."""
STYLES: dict[str, type[ParallelStyle]] = {"columns": ColwiseParallel, "rows": RowwiseParallel}


def plan_of(block: nn.Module) -> dict[str, ParallelStyle]:
    """How each matrix of a block is divided, by its name within the block; raises `UserError` for an unknown one."""
    plan: dict[str, ParallelStyle] = {}
    for name, module in block.named_modules():
        leaf = name.rpartition(".")[2]
        if leaf in DIVIDED:
            plan[name] = STYLES[DIVIDED[leaf]]()
        elif isinstance(module, nn.Linear | nn.Embedding):
            raise UserError(f"parallel.tensor does not know how to divide {name!r} of this model; set it to 1")
    return plan


def divide_blocks(model: Model, mesh: DeviceMesh) -> None:
    """Divide every block of ``model`` over a mesh of one dimension, whose size divides its heads and d_mlp."""
    for block in model.backbone.layers:
        parallelize_module(block, mesh, plan_of(block))
