"""Whole steps of a Llama-like decoder in the native core, over a cache of its own."""

import ctypes
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor

from langwright.infer.native.library import Matrix, ints, library
from langwright.infer.quantised import PackedEmbedding, PackedLinear
from langwright.model.config import DynamicScaling
from langwright.model.model import Model
from langwright.model.positions import rotary_rates

_POINTER, _INT, _FLOAT = ctypes.c_void_p, ctypes.c_int32, ctypes.c_float
_MATRICES = ("q", "k", "v", "o", "gate", "up", "down")


class _Layer(ctypes.Structure):
    _fields_ = (
        *((name, Matrix) for name in _MATRICES),
        *((name, _POINTER) for name in ("attn_norm", "mlp_norm", "q_norm", "k_norm")),
    )


class _Model(ctypes.Structure):
    _fields_ = (
        ("layers", ctypes.POINTER(_Layer)),
        ("embed", Matrix),
        ("head", Matrix),
        *((name, _POINTER) for name in ("final_norm", "cos", "sin")),
        *((n, _INT) for n in "n_layers d_model n_heads n_kv_heads d_head d_mlp rotated unused".split()),
        ("eps", _FLOAT),
        ("scale", _FLOAT),
    )


class _Cache(ctypes.Structure):
    _fields_ = (("keys", _POINTER), ("values", _POINTER), ("slots", _INT), ("capacity", _INT))


def serves(model: Model) -> bool:
    """Whether the core was built and ``model`` is a quantised decoder of the one form that it computes."""
    config, spec = model.config, model.config.layer_specs[model.config.layer_types[0]]
    form = {
        "positions": "rotary",
        "norm": "rmsnorm",
        "norm_bias": False,
        "norm_slots": ("attn_in", "mlp_in"),
        "final_norm": True,
        "parallel_residual": False,
        "activation": "silu",
        "gated": True,
        "embed_scale": 1.0,
        "embed_norm": False,
        "n_types": 0,
        "attn_softcap": None,
        "logit_softcap": None,
        "causal": True,
    }
    return (
        isinstance(model.backbone.embed.tokens, PackedEmbedding)
        and model.head_kind == "causal_lm"
        and all(getattr(config, name) == value for name, value in form.items())
        and len(set(config.layer_types)) == 1
        and not spec.value_embed
        and spec.norm_slots is None
        and spec.window is None
        and spec.rope is not None
        and not isinstance(spec.rope.scaling, DynamicScaling)
        and library() is not None
    )


class Decoder:
    """``model`` (which `serves`) with room for ``slots`` sequences of ``capacity`` tokens."""

    def __init__(self, model: Model, slots: int, capacity: int):
        core, config = library(), model.config
        assert core is not None
        self._core, self.slots, self.capacity, self.vocab_size = core, slots, capacity, config.vocab_size
        self._held: list[Any] = [model]  # what the pointers below point to
        rope = config.layer_specs[config.layer_types[0]].rope
        assert rope is not None
        rates, factor = rotary_rates(rope, config.d_head, 0, torch.device("cpu"))
        angles = torch.arange(capacity)[:, None].float() * rates  # (capacity, R / 2)
        cos, sin = angles.cos() * factor, angles.sin() * factor
        layers = (_Layer * config.n_layers)(*(self._layer(cast(Any, block)) for block in model.backbone.layers))
        self._keys = torch.empty(config.n_layers, slots, config.n_kv_heads, capacity, config.d_head)
        self._values = torch.empty_like(self._keys)
        self._model = _Model(
            layers,
            Matrix.of(cast(PackedEmbedding, model.backbone.embed.tokens).packed, None),
            self._matrix(cast(Any, model.head).proj),
            *(self._place(each) for each in (cast(Any, model.backbone.final_norm).weight, cos, sin)),
            config.n_layers,
            config.d_model,
            config.n_heads,
            config.n_kv_heads,
            config.d_head,
            config.d_mlp,
            2 * len(rates),
            0,
            config.norm_eps,
            config.d_head**-0.5 if config.attn_scale is None else config.attn_scale,
        )
        self._cache = _Cache(self._place(self._keys), self._place(self._values), slots, capacity)

    def forward(
        self, tokens: Sequence[int], slots: Sequence[int], positions: Sequence[int], wanted: Sequence[int]
    ) -> Tensor:
        """Put ``tokens`` of ``slots`` at ``positions``; logits (len(wanted), V) after those numbered ``wanted``.

        What a slot holds at lower positions is what its tokens see, and whatever else it holds is forgotten once
        written over: going back takes no call. Raises ValueError for what is out of bounds. Calls of several threads
        wait for each other.
        """
        logits = torch.empty(len(wanted), self.vocab_size)
        outcome = self._core.lw_forward(
            ctypes.byref(self._model),
            ctypes.byref(self._cache),
            len(tokens),
            ints(tokens),
            ints(slots),
            ints(positions),
            len(wanted),
            ints(wanted),
            logits.data_ptr(),
        )
        if outcome:
            raise ValueError(
                f"a token, slot or position is out of bounds ({self.slots} slots of {self.capacity} tokens), "
                "or the wanted rows do not ascend"
            )
        return logits

    def _layer(self, block: Any) -> _Layer:
        attn, mlp = block.attn, block.mlp
        linears = (attn.q_proj, attn.k_proj, attn.v_proj, attn.o_proj, mlp.gate_proj, mlp.up_proj, mlp.down_proj)
        norms = (block.attn_in, block.mlp_in, attn.q_norm, attn.k_norm)
        weights = (getattr(norm, "weight", None) for norm in norms)
        return _Layer(*map(self._matrix, linears), *(None if w is None else self._place(w) for w in weights))

    def _matrix(self, linear: PackedLinear) -> Matrix:
        return Matrix.of(linear.packed, linear.bias)

    def _place(self, tensor: Tensor) -> int:
        assert tensor.dtype == torch.float32
        assert tensor.is_contiguous()
        self._held.append(tensor)
        return tensor.data_ptr()
