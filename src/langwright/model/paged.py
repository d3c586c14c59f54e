"""Keys and values in pages: one pool of blocks for many requests, and one forward over new tokens of all of them.

A packed batch is a single row (1, N): the new tokens of several requests, one request after the other. Everything but
attention treats them alike; attention goes part by part, each over the pages of its own requests.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from langwright.model.config import ModelConfig


class PagePool:
    """``blocks`` blocks of ``size`` tokens each, and one more that stays empty, for places that hold nothing."""

    def __init__(self, config: ModelConfig, blocks: int, size: int, dtype: torch.dtype, device: torch.device | str):
        shape = (blocks + 1, size, config.n_kv_heads, config.d_head)
        self.size, self.device = size, device
        self.keys = [torch.zeros(shape, dtype=dtype, device=device) for _ in config.layer_types]
        self.values = [torch.zeros(shape, dtype=dtype, device=device) for _ in config.layer_types]

    def clear(self, blocks: Sequence[int]) -> None:
        """Forget what stands in them: what is masked still counts where it is not a number."""
        if blocks:
            which = torch.tensor(blocks, device=self.device)
            for pool in (*self.keys, *self.values):
                pool.index_fill_(0, which, 0)

    @staticmethod
    def block_bytes(config: ModelConfig, size: int, dtype: torch.dtype) -> int:
        """Memory of one block in all layers."""
        return 2 * config.n_layers * size * config.n_kv_heads * config.d_head * dtype.itemsize


class Segment(NamedTuple):
    """The new tokens of one request: ``length`` of them from position ``start``, and the blocks that hold it from 0."""

    blocks: Sequence[int]
    start: int
    length: int


class Part(NamedTuple):
    """Tokens that attend in one call: ``rows`` requests with ``width`` new tokens each, of which the first is ``at``.

    ``before`` and ``after`` are queries of padding around them.
    """

    at: int
    rows: int
    width: int
    before: int
    after: int
    blocks: Tensor
    """(rows, blocks of each)."""
    queries: Tensor
    """Positions, (rows, before + width + after), -1 = padding."""
    keys: Tensor
    """Positions, (rows, S), -1 for what is not of the request."""
    exact: bool
    """No padding anywhere."""

    def gather(self, pool: Tensor) -> Tensor:
        """(blocks, size, K, E) -> (rows, K, S, E)."""
        own = pool.index_select(0, self.blocks.flatten()).view(self.rows, -1, *pool.shape[2:])
        return own[:, : self.keys.shape[1]].transpose(1, 2)

    def cut(self, queries: Tensor) -> Tensor:
        """(1, H, N, E) -> (rows, H, before + width + after, E)."""
        own = queries[0, :, self.at : self.at + self.rows * self.width].unflatten(1, (self.rows, self.width))
        own = own.transpose(0, 1)
        return F.pad(own, (0, 0, self.before, self.after)) if self.before or self.after else own

    def join(self, out: Tensor) -> Tensor:
        """(rows, H, before + width + after, E) -> (rows * width, H, E)."""
        return out[:, :, self.before : self.before + self.width].transpose(1, 2).flatten(0, 1)


class PackedLayer:
    """One layer's pages during one forward."""

    def __init__(self, keys: Tensor, values: Tensor, slots: Tensor):
        self.keys, self.values, self.slots = keys, values, slots

    def update(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Write (1, K, N, E) new keys and values to their places, but for padding at the end; returns the whole pool,
        (blocks, size, K, E) each."""
        for pool, new in ((self.keys, keys), (self.values, values)):
            pool.flatten(0, 1).index_copy_(0, self.slots, new[0, :, : len(self.slots)].transpose(0, 1))
        return self.keys, self.values

    def truncate(self, length: int) -> None:
        """Pages are given back by whoever gave them out."""
        raise ValueError("a packed batch has no length of its own")


class PackedCache:
    """The cache argument of one packed forward.

    Segments of one token are to stand first; neighbours among them whose lengths are alike attend together. With
    ``tile`` no shape depends on the company: the forward has ``tile`` tokens, and attention goes by queries whose
    position has the same multiple of ``tile``, over keys rounded up to one.
    """

    ragged, length = True, 0

    def __init__(self, pool: PagePool, segments: Sequence[Segment], tile: int | None = None):
        positions = [place for _, start, count in segments for place in range(start, start + count)]
        slots = [
            blocks[place // pool.size] * pool.size + place % pool.size
            for blocks, start, count in segments
            for place in range(start, start + count)
        ]
        spare = 0 if tile is None else tile - len(positions)
        assert spare >= 0
        pool.clear([block for segment in segments for block in _begun(segment, pool.size)])
        self.positions = torch.tensor([positions + [-1] * spare], device=pool.device)  # (1, N)
        places = torch.tensor(slots, device=pool.device)
        self.layers = [PackedLayer(k, v, places) for k, v in zip(pool.keys, pool.values, strict=True)]
        self.parts, at = [], 0
        for group in _groups(segments, pool.size) if tile is None else _tiles(segments, tile):
            self.parts.append(_part(at, group, pool, tile))
            at += sum(count for _, _, count in group)

    def next_positions(self) -> None:
        """Positions are always given."""


def _begun(segment: Segment, size: int) -> Sequence[int]:
    """The block that a segment begins and does not fill, if any."""
    last, filled = divmod(segment.start + segment.length, size)
    return [segment.blocks[last]] if filled and last * size >= segment.start else []


def _groups(segments: Sequence[Segment], size: int) -> list[list[Segment]]:
    """Single tokens together while the longest has at most twice the blocks of the first; all others alone."""
    groups: list[list[Segment]] = []
    for segment in segments:
        first = groups[-1][0] if groups else None
        alike = first is not None and first.length == segment.length == 1
        if first is not None and alike and -(-(segment.start + 1) // size) <= 2 * -(-(first.start + 1) // size):
            groups[-1].append(segment)
        else:
            groups.append([segment])
    return groups


def _tiles(segments: Sequence[Segment], tile: int) -> list[list[Segment]]:
    """Every segment cut at the multiples of ``tile``."""
    pieces = []
    for blocks, start, count in segments:
        edges = [start, *range((start // tile + 1) * tile, start + count, tile), start + count]
        pieces += [[Segment(blocks, a, b - a)] for a, b in pairwise(edges)]
    return pieces


def _part(at: int, group: Sequence[Segment], pool: PagePool, tile: int | None) -> Part:
    width = group[0].length
    lengths = [segment.start + width for segment in group]
    before = 0 if tile is None else group[0].start % tile
    after = 0 if tile is None else tile - before - width
    longest = max(lengths) if tile is None else -(-lengths[0] // tile) * tile
    pages = -(-longest // pool.size)
    nowhere = len(pool.keys[0]) - 1
    blocks = [[*segment.blocks[:pages], *[nowhere] * (pages - len(segment.blocks))] for segment in group]
    device = pool.device
    starts = torch.tensor([segment.start for segment in group], device=device)
    keys = torch.arange(longest, device=device).expand(len(group), -1)
    exact = tile is None and min(lengths) == longest
    if not exact:
        keys = keys.masked_fill(keys >= torch.tensor(lengths, device=device)[:, None], -1)
    queries = F.pad(torch.arange(width, device=device) + starts[:, None], (before, after), value=-1)
    return Part(at, len(group), width, before, after, torch.tensor(blocks, device=device), queries, keys, exact)
