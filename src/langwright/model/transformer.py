"""The residual equation, and the backbone that repeats it.

    x = attn_res(x + attn_out(attn(attn_in(x))))
    x = mlp_res(x + mlp_out(mlp(mlp_in(x))))

The slots named ``*_in``, ``*_out`` and ``*_res`` are norms, or `nn.Identity` where a family has none: GPT-2 and Llama
fill ``in``, Gemma ``in`` and ``out``, BERT and the Transformer of 2017 ``res``. Inspectors hook the same names in every
family.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from langwright.core.errors import UserError
from langwright.model.attention import Attention, LayerContext, build_context
from langwright.model.cache import KVCache, LayerCache
from langwright.model.config import ModelConfig
from langwright.model.mlp import MLP
from langwright.model.norm import build_norm
from langwright.model.paged import PackedCache
from langwright.model.positions import sinusoid


class Block(nn.Module):
    """One layer: attention and MLP, each added to the stream."""

    def __init__(self, config: ModelConfig, layer: int):
        super().__init__()
        filled, spec = config.slots(layer), config.layer_specs[config.layer_types[layer]]

        def norm(slot: str) -> nn.Module:
            return build_norm(config) if slot in filled else nn.Identity()

        self.attn_in, self.attn, self.attn_out, self.attn_res = (
            norm("attn_in"),
            Attention(config, spec),
            norm("attn_out"),
            norm("attn_res"),
        )
        self.mlp_in, self.mlp, self.mlp_out, self.mlp_res = (
            norm("mlp_in"),
            MLP(config),
            norm("mlp_out"),
            norm("mlp_res"),
        )
        self.parallel, self.dropout = config.parallel_residual, config.dropout

    def forward(self, x: Tensor, ctx: LayerContext, cache: LayerCache | None = None) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        start = x
        x = self.attn_res(x + self.drop(self.attn_out(self.attn(self.attn_in(x), ctx, cache))))
        return self.mlp_res(x + self.drop(self.mlp_out(self.mlp(self.mlp_in(start if self.parallel else x)))))

    def drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout, self.training)


class Embedding(nn.Module):
    """Token, position and segment embeddings, added."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.tokens = nn.Embedding(config.vocab_size, config.d_model)
        if config.positions == "learned":
            self.positions = nn.Embedding(config.max_positions + config.position_offset, config.d_model)
        if config.n_types:
            self.types = nn.Embedding(config.n_types, config.d_model)
        self.norm = build_norm(config) if config.embed_norm else nn.Identity()
        self.config = config

    def forward(self, ids: Tensor, positions: Tensor, type_ids: Tensor | None) -> Tensor:
        """``ids`` (B, T), ``positions`` (B or 1, T) without negatives, ``type_ids`` (B, T) or None -> (B, T, D)."""
        config = self.config
        x = self.tokens(ids)  # (B, T, D)
        if config.embed_scale != 1.0:
            # The factor is rounded to the compute dtype first, as the models that use one were trained.
            x = x * torch.tensor(config.embed_scale, dtype=x.dtype, device=x.device)
        if config.positions == "learned":
            x = x + self.positions(positions + config.position_offset)
        elif config.positions == "sinusoidal":
            x = x + sinusoid(positions, config.d_model).to(x.dtype)
        if config.n_types:
            x = x + self.types(torch.zeros_like(ids) if type_ids is None else type_ids)
        rate = config.dropout if config.embed_dropout is None else config.embed_dropout
        return F.dropout(self.norm(x), rate, self.training)


class Transformer(nn.Module):
    """The backbone: ids in, hidden states out. Heads stand on top of it."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        self.embed = Embedding(config)
        self.layers = nn.ModuleList(Block(config, layer) for layer in range(config.n_layers))
        self.final_norm = build_norm(config) if config.final_norm else nn.Identity()

    def forward(
        self,
        ids: Tensor,
        *,
        attention_mask: Tensor | None = None,
        positions: Tensor | None = None,
        type_ids: Tensor | None = None,
        cache: KVCache | PackedCache | None = None,
        documents: Tensor | None = None,
    ) -> Tensor:
        """Hidden states (B, T, D) of ``ids`` (B, T).

        ``attention_mask`` (B, T) is True for the real ones of these tokens; without ``positions`` (B, T) the real
        tokens of each row are numbered on from what ``cache`` holds. Order is judged by position: a causal query sees
        the keys at its own and lower positions. Raises `UserError` when learned positions or the cache run out.

        ``documents`` (B, T) tells texts in one row apart: wherever the number changes another one begins, which is
        computed as if it stood alone. It goes with none of the other arguments but ``type_ids`` (raises ValueError).
        """
        runs = None
        if documents is not None:
            if not (attention_mask is positions is cache is None):
                raise ValueError("documents decide mask and positions, and take no cache; give them alone")
            runs, positions = find_runs(documents)
        counted = positions is None or runs is not None
        T, held = ids.shape[1], 0 if cache is None else cache.length
        where = locate(ids, attention_mask, positions, cache)  # (B or 1, T), -1 = padding
        room = self.config.max_positions
        if self.config.positions == "learned" and (held + T > room or not counted):
            longest = int(where.max()) + 1  # asking waits for the device, hence only when there is doubt
            if longest > room:
                raise UserError(
                    f"{longest} tokens were given and this model has positions for {room}; shorten the text"
                )
        plain = attention_mask is None and counted and (cache is None or not cache.ragged)
        if cache is not None and not plain:
            cache.ragged = True
        x = self.embed(ids, where.clamp(min=0), type_ids)  # (B, T, D)
        ctx = build_context(self.config, ids, where, cache, plain, runs)
        for number, (layer, kind) in enumerate(zip(self.layers, self.config.layer_types, strict=True)):
            x = layer(x, ctx[kind], None if cache is None else cache.layers[number])
        return self.final_norm(x)


def locate(
    ids: Tensor, attention_mask: Tensor | None, positions: Tensor | None, cache: KVCache | PackedCache | None
) -> Tensor:
    """Positions of ``ids`` (B, T): (B, T), or (1, T) when all rows are alike; -1 marks padding."""
    if attention_mask is not None and attention_mask.shape != ids.shape:
        raise ValueError(
            f"attention_mask is {tuple(attention_mask.shape)}, ids are {tuple(ids.shape)}; they must match"
        )
    if positions is None:
        start = None if cache is None else cache.next_positions()
        if attention_mask is None:
            positions = torch.arange(ids.shape[1], device=ids.device)[None]  # (1, T)
        else:
            positions = attention_mask.long().cumsum(-1) - 1  # (B, T)
        if start is not None:
            positions = positions + start[:, None]
    if attention_mask is not None:
        positions = positions.masked_fill(~attention_mask.bool(), -1)
    return positions


def find_runs(documents: Tensor) -> tuple[tuple[int, ...], Tensor]:
    """The lengths of the runs of equal numbers in ``documents`` (B, T), row after row, and each place's in its run."""
    B, T = documents.shape
    first = torch.ones(B, T, dtype=torch.bool, device=documents.device)
    first[:, 1:] = documents[:, 1:] != documents[:, :-1]
    starts = first.flatten().nonzero()[:, 0]  # (R,)
    lengths = torch.diff(starts, append=starts.new_tensor([B * T]))
    places = torch.arange(B * T, device=documents.device) - starts.repeat_interleave(lengths)
    return tuple(lengths.tolist()), places.view(B, T)
