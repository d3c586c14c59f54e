"""Scaled dot-product attention, softmax(Q K^T / sqrt(d_k)) V (Vaswani et al. 2017), with many, few or one key head."""

from dataclasses import dataclass, replace
from types import MappingProxyType

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from langwright.model.cache import KVCache, LayerCache
from langwright.model.config import DynamicScaling, LayerSpec, ModelConfig
from langwright.model.norm import build_norm
from langwright.model.paged import PackedCache, Part
from langwright.model.positions import rotary_tables, rotate


@dataclass(frozen=True)
class LayerContext:
    """What the layers of one type share within a forward."""

    mask: Tensor | None
    """(B or 1, 1, T, S) bool, True where a query may look; None when ``is_causal`` (or nothing) says it all."""
    is_causal: bool
    cos: Tensor | None
    sin: Tensor | None
    """Rotary tables, (B or 1, 1, T, R); None without rotary positions."""
    ids: Tensor | None = None
    """Token ids, (B, T), where layers of this type embed them again."""
    runs: tuple[int, ...] | None = None
    """Lengths of the documents, row after row, B * T tokens in all, none of which sees another; None: no matter."""
    parts: tuple[tuple[Part, "LayerContext"], ...] | None = None
    """The parts of a packed batch, each with what it is to know of masks; None where it is not one."""


AttnContext = MappingProxyType[str, LayerContext]
"""Built once a forward, keyed by layer type, never changed."""


def build_mask(config: ModelConfig, spec: LayerSpec, queries: Tensor, keys: Tensor) -> Tensor:
    """Who may look at whom, (B, 1, T, S) bool, from positions alone: ``queries`` (B, T), ``keys`` (B, S), -1 = padding.

    A padding query may look anywhere: its output is never used, and a row without any key would give NaN, which a
    masked weight of zero does not stop from spreading.
    """
    query, key = queries[:, None, :, None], keys[:, None, None, :]
    distance = query - key
    allowed = key >= 0
    if config.causal:
        allowed = allowed & (distance >= 0)
    if spec.window is not None:
        allowed = allowed & (distance.abs() < spec.window)
    return allowed | (query < 0)


def same_document(runs: tuple[int, ...], T: int, device: torch.device) -> Tensor:
    """(B, 1, T, T) bool, True where query and key are of one document; ``runs`` as in `LayerContext`."""
    numbers = torch.arange(len(runs), device=device).repeat_interleave(torch.tensor(runs, device=device)).view(-1, T)
    return (numbers[:, :, None] == numbers[:, None, :])[:, None]


def build_context(
    config: ModelConfig,
    ids: Tensor,
    positions: Tensor,
    cache: KVCache | PackedCache | None,
    plain: bool,
    runs: tuple[int, ...] | None = None,
) -> AttnContext:
    """Masks and rotary tables for tokens ``ids`` (B, T) at ``positions`` (B or 1, T), -1 for padding.

    ``plain`` promises consecutive positions without padding in this call and in the cache; then the mask can often be
    left to the kernel. So it is with documents, of which ``runs`` are the lengths (see `LayerContext`).
    """
    T = positions.shape[1]
    keys = cache.extend(positions) if isinstance(cache, KVCache) else dict.fromkeys(config.layer_specs, positions)
    queries, span = positions, None
    if runs is not None:
        # Distances within a document are those within its row: one mask of a row does for all.
        queries, span = torch.arange(T, device=ids.device)[None], max(runs)
        keys = dict.fromkeys(config.layer_specs, queries)
    real = positions.clamp(min=0)
    # Only dynamic scaling needs the longest position, and asking for it waits for the device.
    scalings = [spec.rope.scaling for spec in config.layer_specs.values() if spec.rope]
    longest = int(real.max()) + 1 if any(isinstance(s, DynamicScaling) for s in scalings) else 0
    contexts = {}
    for name, spec in config.layer_specs.items():
        cos, sin = rotary_tables(spec.rope, config.d_head, real, longest) if spec.rope else (None, None)
        repeated = ids if spec.value_embed else None
        if isinstance(cache, PackedCache):
            parts = tuple((part, build_part_context(config, spec, part)) for part in cache.parts)
            contexts[name] = LayerContext(None, False, cos, sin, repeated, parts=parts)
            continue
        S = keys[name].shape[1]
        within = spec.window is None or (span or S) <= spec.window
        bare = plain and within and (T in (1, S) or not config.causal)
        mask = None if bare else build_mask(config, spec, queries, keys[name])
        contexts[name] = LayerContext(mask, bare and config.causal and T > 1, cos, sin, repeated, runs)
    return MappingProxyType(contexts)


def build_part_context(config: ModelConfig, spec: LayerSpec, part: Part) -> LayerContext:
    """The mask of one part of a packed batch, or that it needs none."""
    T, S = part.queries.shape[1], part.keys.shape[1]
    bare = part.exact and (spec.window is None or S <= spec.window) and T in (1, S)
    return LayerContext(None if bare else build_mask(config, spec, part.queries, part.keys), bare and T > 1, None, None)


def attend_parts(
    attend: nn.Module, q: Tensor, keys: Tensor, values: Tensor, parts: tuple[tuple[Part, LayerContext], ...]
) -> Tensor:
    """Packed queries (1, H, N, E) and pages of the pool (blocks, size, K, E) -> (1, H, N, E), 0 for padding."""
    outs = [part.join(attend(part.cut(q), part.gather(keys), part.gather(values), ctx)) for part, ctx in parts]
    out = outs[0] if len(outs) == 1 else torch.cat(outs)  # (tokens, H, E)
    spare = q.shape[2] - len(out)
    return (F.pad(out, (0, 0, 0, 0, 0, spare)) if spare else out)[None].transpose(1, 2)


class SDPA(nn.Module):
    """Attention by torch's fused kernels."""

    def __init__(self, scale: float, dropout: float):
        super().__init__()
        self.scale, self.dropout = scale, dropout

    def forward(self, q: Tensor, k: Tensor, v: Tensor, ctx: LayerContext) -> Tensor:
        """(B, H, T, E), (B, K, S, E), (B, K, S, E) -> (B, H, T, E)."""
        if ctx.runs is not None:
            return self.attend_runs(q, k, v, ctx, ctx.runs)
        B, H, T, E = q.shape
        K = k.shape[1]
        if T == 1 and H != K:
            # The heads that share a key head stand as rows of one matrix: the kernel then prepares each key head once,
            # which in bf16 is most of its time.
            q = q.reshape(B, K, H // K, E)
        out = F.scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=ctx.mask,
            dropout_p=self.dropout if self.training else 0.0,
            is_causal=ctx.is_causal,
            scale=self.scale,
            enable_gqa=q.shape[1] != K,
        )
        return out.reshape(B, H, T, E)

    def attend_runs(self, q: Tensor, k: Tensor, v: Tensor, ctx: LayerContext, runs: tuple[int, ...]) -> Tensor:
        """Like `forward`, a document at a time: no mask of T x T, and no work on what it would leave out."""
        B = len(q)

        def cut(x: Tensor) -> tuple[Tensor, ...]:
            """(B, H, T, E) -> (1, H, n, E) for every run of n; one split, so that backward is one concatenation."""
            return x.transpose(1, 2).flatten(0, 1).transpose(0, 1)[None].split(runs, dim=2)

        outs = []
        for part in zip(cut(q), cut(k), cut(v), strict=True):
            n = part[0].shape[2]
            mask = None if ctx.mask is None else ctx.mask[..., :n, :n]
            outs.append(self(*part, replace(ctx, mask=mask, runs=None)))
        return torch.cat(outs, dim=2)[0].unflatten(1, (B, -1)).transpose(0, 1)  # (1, H, B * T, E) -> (B, H, T, E)


class Eager(nn.Module):
    """Attention step by step: the plain twin of `SDPA`, and the only one that can cap its scores.

    ``scores`` and ``pattern`` are empty modules for inspectors to hook: (B, H, T, S) before and after the softmax.
    """

    def __init__(self, scale: float, dropout: float, softcap: float | None = None):
        super().__init__()
        self.scale, self.dropout, self.softcap = scale, dropout, softcap
        self.scores, self.pattern = nn.Identity(), nn.Identity()

    def attend(self, q: Tensor, k: Tensor, v: Tensor, ctx: LayerContext) -> tuple[Tensor, Tensor, Tensor]:
        """The output (B, H, T, E), the masked scores and the pattern, both (B, H, T, S)."""
        repeats = q.shape[1] // k.shape[1]
        k, v = k.repeat_interleave(repeats, 1), v.repeat_interleave(repeats, 1)  # (B, H, S, E)
        scores = q @ k.transpose(-1, -2) * self.scale  # (B, H, T, S)
        if self.softcap is not None:
            scores = self.softcap * torch.tanh(scores / self.softcap)
        T, S = scores.shape[-2:]
        mask = ctx.mask
        if ctx.is_causal:
            mask = torch.ones(T, S, dtype=torch.bool, device=q.device).tril(S - T)
        if ctx.runs is not None:
            same = same_document(ctx.runs, T, q.device)
            mask = same if mask is None else same & mask
        if mask is not None:
            scores = scores.masked_fill(~mask, float("-inf"))
        scores = self.scores(scores)
        pattern = self.pattern(torch.softmax(scores, dim=-1, dtype=torch.promote_types(torch.float32, q.dtype)))
        kept = F.dropout(pattern, self.dropout, self.training).to(v.dtype)
        return kept @ v, scores, pattern

    def forward(self, q: Tensor, k: Tensor, v: Tensor, ctx: LayerContext) -> Tensor:
        """(B, H, T, E), (B, K, S, E), (B, K, S, E) -> (B, H, T, E)."""
        return self.attend(q, k, v, ctx)[0]


class Attention(nn.Module):
    """Project, rotate, attend, project back."""

    def __init__(self, config: ModelConfig, spec: LayerSpec):
        super().__init__()
        self.d_head = config.d_head
        wide, narrow = config.n_heads * config.d_head, config.n_kv_heads * config.d_head
        self.q_proj = nn.Linear(config.d_model, wide, bias=config.qkv_bias)
        self.k_proj = nn.Linear(config.d_model, narrow, bias=config.qkv_bias)
        self.v_proj = nn.Linear(config.d_model, narrow, bias=config.qkv_bias)
        self.o_proj = nn.Linear(wide, config.d_model, bias=config.o_bias)
        self.q_norm = build_norm(config, config.d_head) if config.qk_norm else nn.Identity()
        self.k_norm = build_norm(config, config.d_head) if config.qk_norm else nn.Identity()
        if spec.value_embed:
            self.value_embed = nn.Embedding(config.vocab_size, narrow)
        self.attend = build_attend(config, "eager" if config.attn_softcap is not None else "sdpa")

    def forward(self, x: Tensor, ctx: LayerContext, cache: LayerCache | None = None) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        heads = (-1, self.d_head)
        q = self.q_norm(self.q_proj(x).unflatten(-1, heads)).transpose(1, 2)  # (B, H, T, E)
        k = self.k_norm(self.k_proj(x).unflatten(-1, heads)).transpose(1, 2)  # (B, K, T, E)
        v = self.v_proj(x)
        if ctx.ids is not None:
            v = v + self.value_embed(ctx.ids)
        v = v.unflatten(-1, heads).transpose(1, 2)  # (B, K, T, E)
        if ctx.cos is not None and ctx.sin is not None:
            q, k = rotate(q, ctx.cos, ctx.sin), rotate(k, ctx.cos, ctx.sin)
        if cache is not None:
            k, v = cache.update(k, v)  # (B, K, S, E)
        out = self.attend(q, k, v, ctx) if ctx.parts is None else attend_parts(self.attend, q, k, v, ctx.parts)
        return self.o_proj(out.transpose(1, 2).flatten(-2))  # from (B, T, H * E)


def build_attend(config: ModelConfig, kind: str) -> nn.Module:
    """``sdpa`` or ``eager``; a model that caps its scores has only ``eager``."""
    scale = config.d_head**-0.5 if config.attn_scale is None else config.attn_scale
    if kind == "eager":
        return Eager(scale, config.attn_dropout, config.attn_softcap)
    if config.attn_softcap is not None:
        raise ValueError("this model caps attention scores, which torch's fused kernels cannot; use eager")
    return SDPA(scale, config.attn_dropout)


def set_attention(model: nn.Module, config: ModelConfig, kind: str) -> None:
    """Swap every attention of ``model`` to ``sdpa`` or ``eager``."""
    for module in model.modules():
        if isinstance(module, Attention):
            module.attend = build_attend(config, kind).train(module.training)
