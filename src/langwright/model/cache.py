"""Keys and values of tokens already seen. A cache is an argument of a call, never a module's state.

`KVCache` holds one object a layer plus, for each layer type, which position every cached key has (-1: padding).
Attention masks are made from those positions alone, so padding, batching and windows need no further cases.
"""

from typing import Protocol, Self

import torch
from torch import Tensor

from langwright.core.errors import UserError
from langwright.model.config import ModelConfig


class LayerCache(Protocol):
    """One layer's keys and values."""

    def update(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Add (B, K, T, E) new keys and values; returns all that the new queries may look at, (B, K, S, E)."""
        ...

    def truncate(self, length: int) -> None:
        """Forget everything after the first ``length`` tokens."""
        ...


class GrowingLayer:
    """Concatenates; with a window it keeps only what later queries can still see."""

    def __init__(self, window: int | None):
        self.keep = None if window is None else window - 1
        self.keys: Tensor | None = None
        self.values: Tensor | None = None

    def update(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        if self.keys is not None and self.values is not None:
            keys, values = torch.cat((self.keys, keys), 2), torch.cat((self.values, values), 2)
        self.keys, self.values = _tail(keys, self.keep, 2), _tail(values, self.keep, 2)
        return keys, values

    def truncate(self, length: int) -> None:
        if self.keys is not None and self.values is not None:
            self.keys, self.values = self.keys[:, :, :length], self.values[:, :, :length]


class StaticLayer:
    """Room for ``capacity`` tokens, taken once and written in place."""

    def __init__(self, shape: tuple[int, int, int, int], dtype: torch.dtype, device: torch.device | str):
        self.keys = torch.zeros(shape, dtype=dtype, device=device)  # (B, K, capacity, E)
        self.values = torch.zeros(shape, dtype=dtype, device=device)
        self.length = 0

    def update(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        if keys.shape[0] != self.keys.shape[0]:
            raise ValueError(f"the cache has {self.keys.shape[0]} rows and {keys.shape[0]} were given")
        start, self.length = self.length, self.length + keys.shape[2]
        self.keys[:, :, start : self.length] = keys
        self.values[:, :, start : self.length] = values
        return self.keys[:, :, : self.length], self.values[:, :, : self.length]

    def truncate(self, length: int) -> None:
        self.length = length


class KVCache:
    """The caches of all layers and the positions of what they hold."""

    def __init__(self, config: ModelConfig, layers: list[LayerCache], capacity: int | None, drop: bool):
        self.layers = layers
        self.capacity = capacity
        self._keep = {
            name: spec.window - 1 if drop and spec.window else None for name, spec in config.layer_specs.items()
        }
        self._positions: dict[str, Tensor] = {}
        self._next: Tensor | None = None
        self.length = 0
        self.ragged = False
        """True once a call brought padding or positions of its own: then masks are always built."""

    @classmethod
    def growing(cls, config: ModelConfig) -> Self:
        """A cache without a limit, which copies as it grows."""
        windows = [config.layer_specs[name].window for name in config.layer_types]
        return cls(config, [GrowingLayer(window) for window in windows], None, drop=True)

    @classmethod
    def static(
        cls, config: ModelConfig, batch: int, capacity: int, dtype: torch.dtype, device: torch.device | str
    ) -> Self:
        """A cache of fixed room: ``batch`` rows of ``capacity`` tokens."""
        shape = (batch, config.n_kv_heads, capacity, config.d_head)
        return cls(config, [StaticLayer(shape, dtype, device) for _ in config.layer_types], capacity, drop=False)

    def extend(self, positions: Tensor) -> dict[str, Tensor]:
        """Announce T new tokens at ``positions`` (B, T), -1 for padding, before the layers run.

        Returns for every layer type the positions of the keys its queries will be given, (B, S); a single row stands
        for a batch whose rows are alike. Raises `UserError` when a static cache has no room left, ValueError for
        padding on the right of a windowed growing cache.
        """
        new = positions.shape[1]
        if self.capacity is not None and self.length + new > self.capacity:
            raise UserError(
                f"the cache has room for {self.capacity} tokens and {self.length + new} were given; "
                "make it larger or the prompt shorter"
            )
        drops = any(keep is not None for keep in self._keep.values())
        if drops and bool((positions[:, -1] < 0).any()):
            raise ValueError("with sliding windows, pad on the left: dropping old keys counts columns from the right")
        seen = {}
        for name, keep in self._keep.items():
            held = self._positions.get(name)
            seen[name] = positions if held is None else _join(held, positions)  # (B, S)
            self._positions[name] = _tail(seen[name], keep, 1)
        following = positions.amax(1) + 1
        self._next = following if self._next is None else torch.maximum(self._next, following)
        self.length += new
        return seen

    def next_positions(self) -> Tensor | None:
        """The position after the last real token of every row, (B,) or (1,); None when the cache is empty."""
        return self._next

    def truncate(self, length: int) -> None:
        """Forget all but the first ``length`` tokens of every row (speculative decoding takes steps back).

        Raises ValueError for a growing cache with windows.
        """
        if any(keep is not None for keep in self._keep.values()):
            raise ValueError("a windowed growing cache has already dropped old keys; use a static cache to go back")
        for layer in self.layers:
            layer.truncate(length)
        self._positions = {name: held[:, :length] for name, held in self._positions.items()}
        held = next(iter(self._positions.values()), None)
        self._next = held.amax(1) + 1 if held is not None and length else None
        self.length = length

    def bytes(self) -> int:
        """Memory held by keys and values."""
        tensors = [t for layer in self.layers for t in (getattr(layer, "keys", None), getattr(layer, "values", None))]
        return sum(t.numel() * t.element_size() for t in tensors if t is not None)


def _join(held: Tensor, new: Tensor) -> Tensor:
    """Side by side; one row stands for all rows that are alike."""
    rows = max(held.shape[0], new.shape[0])
    return torch.cat((held.expand(rows, -1), new.expand(rows, -1)), 1)


def _tail(tensor: Tensor, keep: int | None, dim: int) -> Tensor:
    if keep is None or tensor.shape[dim] <= keep:
        return tensor
    kept = tensor.narrow(dim, tensor.shape[dim] - keep, keep)
    # A view holds on to all of its tensor, such as a long prompt; a step's one dropped column is not worth a copy.
    return kept.clone() if tensor.shape[dim] > 2 * keep else kept
