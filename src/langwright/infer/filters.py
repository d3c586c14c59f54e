"""Which tokens may be drawn, and the draw: every step a small function on logits (B, V).

`build_warps` and `draw` are the plain way; `draw_among_first` gives the same tokens without ordering a whole
vocabulary.
"""

from collections.abc import Callable

import torch
from torch import Tensor

Warp = Callable[[Tensor], Tensor]
"""Logits (B, V) -> logits (B, V), with -inf for what may not be drawn."""


def scale(temperature: float) -> Warp:
    """Divide by the temperature; the highest logit is taken off first so that nothing overflows."""
    return lambda logits: (logits - logits.amax(-1, keepdim=True)) / temperature


def keep_top_k(k: int) -> Warp:
    """Keep the k most probable tokens; ties with the last one stay."""

    def warp(logits: Tensor) -> Tensor:
        if k >= logits.shape[-1]:
            return logits
        return _at_least(logits, logits.topk(k, dim=-1).values[:, -1:])

    return warp


def keep_top_p(p: float) -> Warp:
    """Keep a token when the more probable ones together hold less than ``p``; ties with the last one stay."""

    def warp(logits: Tensor) -> Tensor:
        ordered = logits.sort(dim=-1, descending=True).values  # (B, V)
        return _at_least(logits, _least_within(ordered, torch.softmax(ordered, -1), p))

    return warp


def keep_min_p(p: float) -> Warp:
    """Keep tokens whose probability is at least ``p`` times the highest."""

    def warp(logits: Tensor) -> Tensor:
        probs = torch.softmax(logits, -1)
        return logits.masked_fill(probs < p * probs.amax(-1, keepdim=True), float("-inf"))

    return warp


def build_warps(temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0) -> list[Warp]:
    """The steps that are not idle, in the order of the arguments."""
    steps = [
        (temperature != 1, scale(temperature)),
        (top_k > 0, keep_top_k(top_k)),
        (top_p < 1, keep_top_p(top_p)),
        (min_p > 0, keep_min_p(min_p)),
    ]
    return [warp for wanted, warp in steps if wanted]


def draw(logits: Tensor, uniforms: Tensor) -> Tensor:
    """One id a row, (B,): where the mass of tokens, the most probable first, passes ``uniforms`` (B,)."""
    ordered, ids = logits.sort(dim=-1, descending=True, stable=True)  # (B, V)
    mass = _mass(torch.softmax(ordered, -1))
    return ids.gather(1, _passing(mass, mass[:, -1:], uniforms))[:, 0]


def draw_among_first(
    logits: Tensor,
    uniforms: Tensor,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    *,
    first: int = 256,
) -> tuple[Tensor, Tensor]:
    """What `build_warps` and then `draw` choose, found among each row's ``first`` tokens: ids (B,), and which are
    certain.

    Ordering 49,152 logits takes 2 ms a row, and every step on all of them is a pass through memory. A row is not
    certain when more tokens than that may be drawn and the draw falls, or might fall, beyond them.
    """
    V = logits.shape[-1]
    best, ids = logits.topk(min(max(first, top_k + 1), V), dim=-1)  # (B, N), descending
    scaled = scale(temperature)(best)
    if 0 < top_k < V:
        scaled = keep_top_k(top_k)(scaled)
        norm = scaled.logsumexp(-1, keepdim=True)
    else:
        whole = logits if temperature == 1 else logits / temperature
        norm = whole.logsumexp(-1, keepdim=True) - best[:, :1] / temperature
    probs = (scaled - norm).exp()
    kept = scaled > float("-inf")
    if top_p < 1:
        kept &= scaled >= _least_within(scaled, probs, top_p)
    if min_p > 0:
        kept &= probs >= min_p * probs[:, :1]
    mass = _mass(probs * kept)  # (B, N)
    if best.shape[-1] == V or 0 < top_k < V or top_p < 1 or min_p > 0:
        total, certain = mass[:, -1:], ~kept[:, -1] | (best.shape[-1] == V)
    else:
        total, certain = torch.ones_like(mass[:, -1:]), uniforms.to(mass) < mass[:, -1]
    place = _passing(mass, total, uniforms).clamp(max=best.shape[-1] - 1)
    return ids.gather(1, place)[:, 0], certain


def _at_least(logits: Tensor, least: Tensor) -> Tensor:
    return logits.masked_fill(logits < least, float("-inf"))


def _least_within(ordered: Tensor, probs: Tensor, p: float) -> Tensor:
    """The last of the ``ordered`` logits (B, N) that the ones before it leave room for below the mass ``p``, (B, 1)."""
    within = probs.cumsum(-1) - probs < p
    within[:, 0] = True
    return ordered.masked_fill(~within, float("inf")).amin(-1, keepdim=True)


def _mass(probs: Tensor) -> Tensor:
    return probs.cumsum(-1, dtype=torch.float32 if probs.device.type == "mps" else torch.float64)


def _passing(mass: Tensor, total: Tensor, uniforms: Tensor) -> Tensor:
    """The first place, (B, 1), where ``mass`` (B, N) is over the share ``uniforms`` (B,) of ``total`` (B, 1)."""
    point = torch.minimum(uniforms[:, None].to(mass) * total, torch.nextafter(total, torch.zeros_like(total)))
    return torch.searchsorted(mass, point, right=True)
