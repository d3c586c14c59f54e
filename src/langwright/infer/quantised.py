"""A model whose matrices are in 8 or 4 bits: its linear layers and token embedding swapped, nothing else changed.

Weights are `Packed`; activations are rounded to 8 bits in groups of 32 columns, each with its own scale. The native
core multiplies where it was built; elsewhere torch multiplies the same numbers.
"""

import mmap
from functools import cached_property
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from langwright.core.errors import UserError
from langwright.infer.native.library import multiply
from langwright.infer.packing import GROUP, Packed, Quantise, pack_blocks, pack_floats, unpack
from langwright.model.checkpoint.dequantise import dequantise
from langwright.model.checkpoint.fill import Blocks
from langwright.model.checkpoint.load import load_model
from langwright.model.model import Model


def round_activations(x: Tensor) -> Tensor:
    """Float32 (..., K) -> the nearest numbers of 8 bits, -127 to 127 times a scale for every 32 columns."""
    groups = x.unflatten(-1, (-1, GROUP))
    top = groups.abs().amax(-1, keepdim=True)
    inverse = torch.where(top > 1e-35, 127 / top, 0.0)
    return ((groups * inverse).round() * (top / 127)).flatten(-2)


class PackedLinear(nn.Module):
    """x -> round_activations(x) W^T + bias, of a `Packed` W; raises `UserError` where gradients are asked for."""

    def __init__(self, packed: Packed, bias: nn.Parameter | None):
        super().__init__()
        self.packed, self.bias = packed, bias

    @cached_property
    def weight(self) -> Tensor:
        """Unpacked, (N, K); made where there is no native core."""
        return unpack(self.packed)

    def forward(self, x: Tensor) -> Tensor:
        if x.requires_grad and torch.is_grad_enabled():
            raise UserError("a quantised model has no gradients; load it without quantise")
        found = multiply(self.packed, self.bias, x)
        return F.linear(round_activations(x), self.weight, self.bias) if found is None else found


class PackedEmbedding(nn.Module):
    """Rows of a `Packed` matrix by number."""

    def __init__(self, packed: Packed):
        super().__init__()
        self.packed = packed

    def forward(self, ids: Tensor) -> Tensor:
        """(...) -> (..., D)."""
        tile_bytes = self.packed.data.numel() // -(-self.packed.rows // 32)
        wanted, places = torch.unique(ids // 32, return_inverse=True)
        tiles = self.packed.data.view(-1, tile_bytes)[wanted]
        part = Packed(self.packed.format, len(wanted) * 32, self.packed.columns, tiles.flatten())
        return unpack(part)[places * 32 + ids % 32]


def load_quantised(path: Path, quantise: Quantise) -> Model:
    """The model at ``path`` with its matrices in 8 or 4 bits; what else it holds is float32, all on the CPU.

    ``int8``: one scale an output channel. ``int4``: a scale and a minimum for 32 columns; token embedding and head
    stay at 8 bits. A GGUF's blocks of Q8_0, and for ``int4`` of Q4_0 and Q4_1, are taken as they are.
    """

    def pack(modules: dict[str, nn.Module], source: Tensor | Blocks) -> dict[str, nn.Module]:
        packed, one = None, next(iter(modules.values()))
        if isinstance(source, Blocks):
            if source.type == "Q8_0" or quantise == "int4":
                packed = pack_blocks(source, str(path))
            if packed is None:
                shape = cast(Tensor, one.weight).shape
                source = dequantise(source.rows.flatten().numpy(), source.type, shape, name=str(path))
        if packed is None:
            assert isinstance(source, Tensor)
            inner = modules.keys().isdisjoint(("backbone.embed.tokens", "head.proj"))
            try:
                packed = pack_floats(source, 4 if quantise == "int4" and inner else 8)
            except UserError as error:
                raise UserError(f"{path}: {next(iter(modules))}: {error}") from None
        return {
            name: PackedLinear(packed, module.bias) if isinstance(module, nn.Linear) else PackedEmbedding(packed)
            for name, module in modules.items()
        }

    model = load_model(path, dtype=torch.float32, pack=pack)
    line_up(model)
    return model


def line_up(model: Model) -> None:
    """Move all packed matrices into one stretch of large pages, in the order in which a step reads them."""
    modules = [each for each in model.modules() if isinstance(each, PackedLinear | PackedEmbedding)]
    modules.sort(key=lambda each: isinstance(each, PackedEmbedding))
    owned = {id(each.packed): each.packed for each in modules}
    page = 1 << 21
    room = mmap.mmap(-1, sum(packed.data.numel() for packed in owned.values()) + page)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        room.madvise(mmap.MADV_HUGEPAGE)
    stretch = torch.frombuffer(room, dtype=torch.uint8)
    at = -stretch.data_ptr() % page
    moved = {}
    for key, packed in owned.items():
        data = stretch[at : at + packed.data.numel()].copy_(packed.data)
        moved[key] = Packed(packed.format, packed.rows, packed.columns, data)
        at += data.numel()
    for each in modules:
        each.packed = moved[id(each.packed)]
