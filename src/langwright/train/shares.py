"""Dividing a model among ranks with torch's fully_shard (FSDP2): one group of parameters a block, and one for the rest.

Shares are float32, as are the sums of gradients; what is gathered for a block's forward and backward is rounded to the
compute dtype. So there is no second model (`ComputeModel`): the rounded weights exist for a block at a time.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

from langwright.model.model import Model
from langwright.train.tensor_parallel import divide_blocks


class Root(nn.Module):
    """Calls whatever wants the model: while `forward` lasts, embeddings, last norm and head are whole on every rank.

    So an objective may take the model apart, which hooks on the model's own forward would not notice.
    """

    def __init__(self, model: Model):
        super().__init__()
        self.model = model

    def forward(self, call: Callable[[Model], Any]) -> Any:
        """``call(model)``."""
        return call(self.model)


def share_model(
    model: Model, device: torch.device, dtype: torch.dtype, shape: tuple[int, int]
) -> tuple[Root, torch.distributed.ProcessGroup]:
    """Lay ``model`` out on ``shape``: ranks with a share of the parameters each, times ranks that divide matrices.

    Returns what to call it through, and the group of the ranks that divide this rank's matrices.
    """
    mesh = init_device_mesh(device.type, shape, mesh_dim_names=("share", "tensor"))
    if shape[1] > 1:
        divide_blocks(model, mesh["tensor"])
    root = Root(model)
    policy = MixedPrecisionPolicy(
        param_dtype=None if dtype == torch.float32 else dtype, reduce_dtype=torch.float32, cast_forward_inputs=False
    )
    for module in (*model.backbone.layers, root):
        shared = fully_shard(module, mesh=mesh["share"], mp_policy=policy)
        assert isinstance(shared, FSDPModule)
        # Losses are divided by the tokens of all ranks already, so gradients are added up, not averaged.
        shared.set_gradient_divide_factor(1.0)
        shared.set_force_sum_reduction_for_comms(True)
    return root, mesh.get_group("tensor")
