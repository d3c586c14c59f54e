"""Matrices in 8 and 4 bits, in the one order of bytes that every kernel reads (`native/core.h` says which).

Scales belong to an output channel, or to 32 neighbouring columns of one as in ggml's blocks
(https://github.com/ggml-org/ggml/blob/master/src/ggml-common.h), which are taken over without loss.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from langwright.core.errors import UserError
from langwright.model.checkpoint.fill import Blocks

Quantise = Literal["int8", "int4"]
Format = Literal["q8_channel", "q8_group", "q4_plain", "q4_min"]
FORMATS: tuple[Format, ...] = ("q8_channel", "q8_group", "q4_plain", "q4_min")
"""In the order of `lw_format`."""
TILE, GROUP = 32, 32
"""Output rows that lie together, and columns that share a scale."""


@dataclass(frozen=True)
class Packed:
    """A matrix (rows, columns) in 8 or 4 bits."""

    format: Format
    rows: int
    columns: int
    data: Tensor
    """uint8, one dimension, 64-byte aligned on the CPU."""


def pack_floats(weight: Tensor, bits: Literal[4, 8]) -> Packed:
    """Quantise ``weight`` (N, K): 8 bits with one scale a row, 4 bits with scale and minimum for every 32 columns.

    Raises `UserError` for numbers that are not finite and a K that is no multiple of 32.
    """
    rows, columns = weight.shape
    if columns % GROUP:
        raise UserError(f"a matrix with {columns} columns cannot be quantised; it takes a multiple of {GROUP}")
    weight = weight.float()
    if not bool(weight.isfinite().all()):
        raise UserError("a weight is not finite, so it cannot be quantised; the checkpoint is damaged")
    if bits == 8:
        scale = weight.abs().amax(1) / 127  # (N,)
        codes = (weight / scale.clamp(min=1e-30)[:, None]).round_().to(torch.int8)
        return Packed("q8_channel", rows, columns, _lay(codes, channel=scale))
    codes, scale, least = _fit_4bit(weight.unflatten(1, (-1, GROUP)))
    return Packed("q4_min", rows, columns, _lay(codes.flatten(1), scale, least, nibbles=True))


def _fit_4bit(groups: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Codes 0 to 15 of ``groups`` (N, G, 32), scales and minima (N, G) in half precision.

    Of several ranges, the whole one and narrower ones, each group takes that with the least squared error.
    """
    low, high = groups.amin(-1), groups.amax(-1)
    best = torch.full_like(low, torch.inf)
    codes = torch.zeros_like(groups, dtype=torch.uint8)
    scale, least = torch.zeros_like(low, dtype=torch.half), torch.zeros_like(low, dtype=torch.half)
    for shrink in (1.0, 0.95, 0.9, 0.85, 0.8):
        middle, half = (low + high) / 2, (high - low) / 2 * shrink
        s, m = (half * 2 / 15).half(), (middle - half).half()
        wide = s.float().clamp(min=1e-8)[..., None]
        tried = ((groups - m.float()[..., None]) / wide).round_().clamp_(0, 15)
        error = (tried * s.float()[..., None] + m.float()[..., None] - groups).square_().sum(-1)
        better = error < best
        best = torch.where(better, error, best)
        codes = torch.where(better[..., None], tried.to(torch.uint8), codes)
        scale, least = torch.where(better, s, scale), torch.where(better, m, least)
    return codes, scale, least


def pack_blocks(blocks: Blocks, source: str) -> Packed | None:
    """The same numbers in our order; None for blocks with the code -128, which kernels cannot negate.

    Raises `UserError` naming ``source`` for a scale or minimum that is not finite.
    """
    rows = blocks.rows.shape[0]
    header = 2 if blocks.type in ("Q4_0", "Q8_0") else 4
    size = header + (32 if blocks.type == "Q8_0" else 16)
    parts = blocks.rows.unflatten(1, (-1, size))  # (N, G, bytes of a block)
    halves = parts[..., :header].contiguous().view(torch.half)  # (N, G, 1 or 2)
    if not bool(halves.isfinite().all()):
        raise UserError(f"{source}: a scale of a {blocks.type} block is not finite; download the file again")
    columns, body = parts.shape[1] * GROUP, parts[..., header:]
    if blocks.type == "Q8_0":
        codes = body.contiguous().view(torch.int8).flatten(1)
        if bool((codes == -128).any()):
            return None
        return Packed("q8_group", rows, columns, _lay(codes, halves[..., 0]))
    codes = torch.cat((body & 15, body >> 4), -1).flatten(1)  # column j and j + 16 share a byte
    if blocks.type == "Q4_0":
        return Packed("q4_plain", rows, columns, _lay(codes, halves[..., 0], nibbles=True))
    return Packed("q4_min", rows, columns, _lay(codes, halves[..., 0], halves[..., 1], nibbles=True))


def _lay(
    codes: Tensor,
    scale: Tensor | None = None,
    least: Tensor | None = None,
    *,
    channel: Tensor | None = None,
    nibbles: bool = False,
) -> Tensor:
    """The bytes of codes (N, K), halves (N, K / 32) and floats (N,) in the kernels' order; zeros fill the last tile."""
    steps = _tiles(codes).view(torch.int32).unflatten(2, (-1, 8)).permute(0, 2, 3, 1)  # (T, G, 8, 32): 4 columns each
    if nibbles:
        steps = steps[:, :, :4] | steps[:, :, 4:] << 4
    steps = steps.contiguous().view(torch.uint8)
    parts = [_tiles(half).transpose(1, 2).contiguous().view(torch.uint8) for half in (scale, least) if half is not None]
    tiles = torch.cat((*parts, steps.flatten(2)), 2).flatten(1)  # (T, bytes)
    if channel is not None:
        tiles = torch.cat((tiles, _tiles(channel).view(torch.uint8)), 1)
    return tiles.flatten()


def _tiles(rows: Tensor) -> Tensor:
    """(N, ...) -> (T, 32, ...)."""
    missing = -rows.shape[0] % TILE
    if missing:
        rows = torch.cat((rows, rows.new_zeros(missing, *rows.shape[1:])))
    return rows.contiguous().unflatten(0, (-1, TILE))


def unpack(packed: Packed) -> Tensor:
    """The float32 numbers (N, K) that ``packed`` stands for: the plain twin of what the kernels read."""
    groups = packed.columns // GROUP
    tiles = packed.data.view(-(-packed.rows // TILE), -1)  # (T, bytes)
    channel = None
    if packed.format == "q8_channel":
        tiles, channel = tiles[:, : groups * 1024], tiles[:, groups * 1024 :].contiguous().view(torch.float32)
    parts = tiles.unflatten(1, (groups, -1))  # (T, G, bytes)
    halves = {"q8_channel": 0, "q4_min": 2}.get(packed.format, 1)
    codes = parts[..., halves * 64 :].unflatten(2, (-1, TILE, 4))  # (T, G, 8 or 4, 32, 4)
    scale = parts[..., : halves * 64].contiguous().view(torch.half).unflatten(2, (halves, TILE)) if halves else None
    if packed.format.startswith("q4"):
        codes = torch.cat((codes & 15, codes >> 4), 2)
    else:
        codes = codes.contiguous().view(torch.int8)
    numbers = codes.permute(0, 3, 1, 2, 4).flatten(3).float()  # (T, 32, G, 32)
    if packed.format == "q4_plain":
        numbers = numbers - 8
    if channel is not None:
        numbers = numbers * channel[:, :, None, None]
    if scale is not None:
        wide = scale.float().permute(2, 0, 3, 1)[..., None]  # (1 or 2, T, 32, G, 1)
        numbers = numbers * wide[0] + (wide[1] if packed.format == "q4_min" else 0)
    return numbers.flatten(2).flatten(0, 1)[: packed.rows].contiguous()
