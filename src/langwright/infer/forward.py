"""The part of generation that computes: tokens in, logits of the next ones out, for a few rows side by side."""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from langwright.infer.native.decoder import Decoder, serves
from langwright.model.cache import KVCache
from langwright.model.model import Model


class Forward(Protocol):
    """Rows that have been read so far, and how to read on."""

    def prefill(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        """Begin the rows; float32 logits (B, V) of the token after each prompt."""
        ...

    def step(self, ids: Tensor, running: Sequence[bool]) -> Tensor:
        """One token ``ids`` (B,) more for each row that is running; logits (B, V), of no meaning for other rows."""
        ...

    def trim(self, length: int) -> None:
        """Forget all but the first ``length`` tokens of rows that are equally long."""
        ...


def open_forward(model: Model, rows: int, capacity: int) -> Forward:
    """For ``rows`` of at most ``capacity`` tokens: the native core where it serves ``model``, else torch."""
    return NativeForward(model, rows, capacity) if serves(model) else TorchForward(model, rows, capacity)


class TorchForward:
    """Rows of different length are padded on the left, so the last column is every row's newest token."""

    def __init__(self, model: Model, rows: int, capacity: int):
        self.model = model
        self.cache = KVCache.static(model.config, rows, capacity, model.dtype, model.device)

    def prefill(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        return self._run(*pad_left(prompts, self.model.device))

    def step(self, ids: Tensor, running: Sequence[bool]) -> Tensor:
        # A finished row keeps its place as padding, which takes no position and is never looked at.
        real = None if all(running) else torch.tensor(running, device=self.model.device)[:, None]
        return self._run(ids[:, None], real)

    def trim(self, length: int) -> None:
        self.cache.truncate(length)

    def _run(self, ids: Tensor, real: Tensor | None) -> Tensor:
        return self.model(ids, attention_mask=real, cache=self.cache, last_only=True)[:, -1].float()


class NativeForward:
    """Rows stand next to each other without padding; only running ones are computed."""

    def __init__(self, model: Model, rows: int, capacity: int):
        self.decoder = Decoder(model, rows, capacity)
        self.lengths = [0] * rows

    def prefill(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        tokens = [token for prompt in prompts for token in prompt]
        slots = [slot for slot, prompt in enumerate(prompts) for _ in prompt]
        positions = [place for prompt in prompts for place in range(len(prompt))]
        self.lengths = [len(prompt) for prompt in prompts]
        ends = torch.tensor(self.lengths).cumsum(0) - 1
        return self.decoder.forward(tokens, slots, positions, ends.tolist())

    def step(self, ids: Tensor, running: Sequence[bool]) -> Tensor:
        slots = [slot for slot, runs in enumerate(running) if runs]
        chosen = ids.tolist()
        found = self.decoder.forward(
            [chosen[slot] for slot in slots], slots, [self.lengths[slot] for slot in slots], range(len(slots))
        )  # (running, V)
        for slot in slots:
            self.lengths[slot] += 1
        return (
            found
            if len(slots) == len(running)
            else found.new_zeros(len(running), found.shape[1]).index_copy(0, torch.tensor(slots), found)
        )

    def trim(self, length: int) -> None:
        self.lengths = [min(length, held) for held in self.lengths]


def pad_left(prompts: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor | None]:
    """Ids (B, T) and which are real (B, T); None where all are, which spares the model a mask."""
    longest = max(len(prompt) for prompt in prompts)
    ids = torch.tensor([[0] * (longest - len(prompt)) + list(prompt) for prompt in prompts], device=device)
    if all(len(prompt) == longest for prompt in prompts):
        return ids, None
    lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)
    return ids, torch.arange(longest, device=device) >= longest - lengths[:, None]
