"""The copy of the model that does the arithmetic.

Weights are kept in float32 (the masters: what the optimiser moves and checkpoints hold). In bfloat16 a second model
holds rounded copies, made anew once a step; forward and backward run on it, and its gradients are added up in float32.
There is no autocast: what is computed in which dtype can be read here.
"""

import copy
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from langwright.model.model import Model


class ComputeModel:
    """``model`` runs forward and backward; `collect` brings its gradients to the masters, `refresh` the weights back.

    In float32 ``model`` is the master itself and both do nothing.
    """

    def __init__(self, master: Model, dtype: torch.dtype):
        self.master = self.model = master
        self._pairs: list[tuple[Tensor, Tensor]] = []
        if dtype == master.dtype:
            return
        self.model = copy.deepcopy(master).to(dtype)
        for name, module in master.named_modules():
            if isinstance(module, nn.Embedding):
                parent, _, leaf = name.rpartition(".")
                setattr(self.model.get_submodule(parent), leaf, MasterTable(module, dtype))
        # A tied table is one parameter under two names: the head's rounded copy belongs to the table's master.
        masters = dict(master.named_parameters(remove_duplicate=False))
        # What is frozen was rounded once and does not move.
        self._pairs = [(masters[n], p) for n, p in self.model.named_parameters() if masters[n].requires_grad]

    @torch.no_grad()
    def refresh(self) -> None:
        """Round the masters again, after they moved."""
        for master, rounded in self._pairs:
            rounded.copy_(master)

    @torch.no_grad()
    def collect(self) -> None:
        """Add the gradients of one backward to the masters' and drop them."""
        for master, rounded in self._pairs:
            if rounded.grad is None:
                continue
            if master.grad is None:
                master.grad = rounded.grad.to(master.dtype)
            else:
                master.grad += rounded.grad
            rounded.grad = None


class MasterTable(nn.Module):
    """Looks rows up in a float32 table and rounds only those.

    The gradient of a table adds up one vector for every time a token occurs. In bfloat16 (8 bits) the sum of a frequent
    token's thousands of small vectors loses 2-4 % of its length; through this module it is added up in float32.
    """

    def __init__(self, table: nn.Embedding, dtype: torch.dtype):
        super().__init__()
        self._master = (table,)  # in a tuple, so that it is not a parameter of the copy
        self._dtype = dtype

    @property
    def weight(self) -> Tensor:
        """Nothing but the dtype and the device, by which a model tells its own."""
        return torch.empty(0, dtype=self._dtype, device=self._master[0].weight.device)

    def forward(self, ids: Tensor) -> Tensor:
        """(B, T) -> (B, T, D)."""
        return F.embedding(ids, self._master[0].weight).to(self._dtype)


def pick_compute_dtype(name: Literal["auto", "float32", "bfloat16"], device: torch.device) -> torch.dtype:
    """``auto`` is bfloat16 where the hardware multiplies it (where not, it is slower than float32), else float32."""
    if name != "auto":
        return torch.float32 if name == "float32" else torch.bfloat16
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    elif device.type == "cpu" and hasattr(torch.cpu, "get_capabilities"):
        has = torch.cpu.get_capabilities()
        native = any(has.get(feature) for feature in ("avx512_bf16", "amx_bf16", "bf16"))
    else:
        native = False
    return torch.bfloat16 if native else torch.float32
