"""Where the memory of a training run goes: a sum of named terms for every moment that could be the fullest.

The terms follow the code of the loop: what stays (weights, their rounded copy, gradients, optimiser), what a forward
keeps (`activations`), what the head holds beside it (`langwright.train.linear_nll`), and what a process needs anyway.
"""

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from langwright.model.config import ModelConfig
from langwright.model.model import Model, count_parameters
from langwright.train.linear_nll import CHUNK, FEWEST_ROWS
from langwright.train.planning.activations import (
    Pass,
    Saved,
    block_activations,
    embedding_activations,
    final_activations,
    mlp_gradients,
)

MASTER = 4
"""Bytes of a weight, of its gradient and of each of an optimiser's moments: float32."""
MOMENTS = {"adamw": 2, "muon": 2, "sgd": 0}
"""Numbers that an optimiser keeps of every weight; Muon keeps one of a hidden matrix's."""
MUON_COPIES = 5
"""Muon works on all matrices of one shape at once: looked ahead, stacked, before and after an iteration, scaled."""
CPU_PROCESS = 350 << 20
"""Python, torch, their threads and kernels on a CPU, measured; a GPU's libraries are outside of torch's allocator."""
CPU_FRAGMENTS = 0.44
"""What the C library's allocator, told to keep freed memory, cannot fill again, over what comes and goes; measured.

It asks for some bytes more than an aligned tensor has, so a hole that one left does not fit another of its size.
"""


@dataclass(frozen=True)
class ParameterCount:
    """Weights of a model. ``embeddings`` are tables that are looked up; ``head`` is the matrix to the vocabulary."""

    total: int
    embeddings: int
    head: int
    tied: bool
    matrices: int
    """Of the layers."""
    largest_shape: int
    """All the layers' matrices of one shape, the most common by weights."""

    @property
    def rounded(self) -> int:
        """Those of which a bfloat16 copy is kept: all but the tables, and a tied one as the head."""
        return self.total - self.embeddings + (self.head if self.tied else 0)


@dataclass(frozen=True)
class Workload:
    """What decides the memory. ``rows`` go through the model at once; ``pieces`` of them make a step."""

    model: ModelConfig
    rows: int
    pieces: int
    context: int
    dtype: torch.dtype
    optimiser: str = "adamw"
    momentum: float = 0.0
    device: str = "cpu"
    shards: int = 1
    """Devices that weights, gradients and optimiser are divided over."""
    snapshot: bool = False
    """Whether checkpoints are written from a copy, while training goes on."""
    recompute: bool = False
    """Whether blocks keep their input alone and are computed again in the backward."""


@dataclass(frozen=True)
class Moment:
    """A moment of a step: bytes by the name of what holds them."""

    name: str
    terms: dict[str, int]

    @property
    def bytes(self) -> int:
        return sum(self.terms.values())


@dataclass(frozen=True)
class MemoryUse:
    """Every moment that may be the fullest; `peak` is."""

    moments: tuple[Moment, ...]

    @property
    def peak(self) -> Moment:
        return max(self.moments, key=lambda moment: moment.bytes)

    @property
    def peak_bytes(self) -> int:
        return self.peak.bytes


def count_weights(config: ModelConfig) -> ParameterCount:
    """The weights of a model that is built without memory for them."""
    with torch.device("meta"), _Uninitialised():
        model = Model(config)
    tables = sum(module.weight.numel() for module in model.modules() if isinstance(module, nn.Embedding))
    shapes: dict[torch.Size, int] = defaultdict(int)
    for module in model.backbone.modules():
        if isinstance(module, nn.Linear):
            shapes[module.weight.shape] += module.weight.numel()
    return ParameterCount(
        total=count_parameters(model),
        embeddings=tables,
        head=config.d_model * config.vocab_size,
        tied=config.tie_embeddings,
        matrices=sum(shapes.values()),
        largest_shape=max(shapes.values()),
    )


class _Uninitialised(TorchFunctionMode):
    """Leaves out `torch.nn.init`, whose first use on tensors without memory makes torch load two seconds of code."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", None) == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


def memory_use(work: Workload, weights: ParameterCount | None = None) -> MemoryUse:
    """The memory of a step, of the process that takes it, and of a validation between steps."""
    weights = weights or count_weights(work.model)
    step = Pass(work.model, work.rows, work.context, work.dtype.itemsize, work.device, work.recompute)
    kept, held = forward_activations(step, recompute=work.recompute), _resident(work, weights)
    gradients = MASTER * weights.total / work.shards
    d_weight, d_rounded = MASTER * weights.head, step.width * weights.head
    stream = step.tokens * step.model.d_model * step.width
    chunk = _chunk_of_logits(step)
    process = {"process": float(CPU_PROCESS)} if work.device == "cpu" else {}
    summed = {"gradients": gradients} if work.pieces > 1 else {}
    rounded = step.width * weights.rounded if step.width < MASTER else 0.0
    top = sum(final_activations(step).values())
    moments = {
        "forward, in the head": held | kept | summed | process | {"logits": chunk, "head": 2 * stream + d_weight},
        "backward, in the head": held
        | kept
        | summed
        | process
        | {"head": 2 * stream + 2 * d_weight + (d_rounded if rounded else 0)},
        "backward, in the last block": _plus(
            held | kept | process,
            recomputed(step) if work.recompute else {},
            {"activations: norms and stream": -top, "gradients": gradients if summed else d_rounded},
            {"backward": mlp_gradients(step)},
        ),
        "backward, in the embedding": held
        | process
        | {"gradients": gradients + rounded, "backward": stream + (d_weight if weights.tied else 0)},
        "update": held
        | process
        | {
            "gradients": gradients + (d_rounded if rounded else 0),
            "Muon": MASTER * MUON_COPIES * weights.largest_shape if work.optimiser == "muon" else 0.0,
        },
        "validation": held | process | _validation(work, step),
    }
    if work.device == "cpu":
        for terms in moments.values():
            terms["fragments"] = CPU_FRAGMENTS * (
                sum(terms.values()) - CPU_PROCESS - sum(_resident(work, weights).values())
            )
    return MemoryUse(tuple(Moment(name, _whole(terms)) for name, terms in moments.items()))


def forward_activations(step: Pass, *, recompute: bool = False) -> dict[str, float]:
    """What a forward keeps for its backward, summed over the model, by kind.

    With ``recompute`` that is the input of every block alone; see `recomputed`.
    """
    saved: dict[str, float] = defaultdict(float)
    kinds: dict[tuple[Any, ...], Saved] = {}
    for layer, kind in enumerate(step.model.layer_types):
        key = (kind, step.model.slots(layer))
        if key not in kinds:
            kinds[key] = block_activations(step, layer)
        if recompute:
            saved["activations: inputs of blocks"] += step.tokens * step.model.d_model * step.width
            continue
        for name, size in kinds[key].items():
            saved[_kind(name)] += size
    for name, size in (embedding_activations(step) | final_activations(step)).items():
        saved[_kind(name)] += size
    saved["batch"] += 16 * step.tokens  # ids and targets, 8 bytes each
    return dict(saved)


def recomputed(step: Pass) -> dict[str, float]:
    """What the block holds that is computed again in the backward, its input not included."""
    saved: dict[str, float] = defaultdict(float)
    for name, size in block_activations(step, step.model.n_layers - 1).items():
        if name != "stream.start":
            saved[_kind(name)] += size
    return saved


def _kind(name: str) -> str:
    module = name.partition(".")[0]
    kind = module if module in ("attn", "mlp", "dropout") else "norms and stream"
    return f"activations: {kind}"


def _resident(work: Workload, weights: ParameterCount) -> dict[str, float]:
    """What stays between steps."""
    held = {"weights": MASTER * weights.total / work.shards}
    if work.dtype.itemsize < MASTER:
        held["rounded weights"] = work.dtype.itemsize * weights.rounded / work.shards
    moments = MOMENTS[work.optimiser] + (work.optimiser == "sgd" and work.momentum > 0)
    numbers = moments * weights.total - (weights.matrices if work.optimiser == "muon" else 0)
    held["optimiser"] = MASTER * numbers / work.shards
    if work.snapshot and work.device == "cpu":  # elsewhere the copy is in the host's memory
        held["copy for a checkpoint"] = held["weights"] + held["optimiser"]
    return held


def _chunk_of_logits(step: Pass) -> float:
    """Logits in float32 and, where the arithmetic is narrower, once more in that: of a chunk, and of the one before it,
    which is there until the next is made. A soft cap adds its slope and what that is made from."""
    vocab, rounded = step.model.vocab_size, step.width if step.width < MASTER else 0
    rows = min(step.tokens, max(FEWEST_ROWS, CHUNK // vocab))
    before = min(rows, step.tokens - rows)
    one = MASTER + rounded if step.model.logit_softcap is None else 3 * MASTER
    alone = vocab * (rows * one + step.model.d_model * rounded)
    return max(alone, vocab * (rows * one + before * (MASTER + rounded)) if before else 0)


def _validation(work: Workload, step: Pass) -> dict[str, float]:
    """A float32 forward that keeps nothing: the stream, and the widest module's own tensors."""
    config = work.model
    wide = Pass(config, step.rows, step.context, MASTER, step.device)
    widest = max(
        2 * config.n_heads * config.d_head + 2 * config.n_kv_heads * config.d_head,
        config.d_mlp * (3 if config.gated else 2),
    )
    return {
        "activations: validation": wide.tokens * MASTER * (2 * config.d_model + widest),
        "logits": _chunk_of_logits(wide),
    }


def _plus(*parts: dict[str, float]) -> dict[str, float]:
    total: dict[str, float] = defaultdict(float)
    for part in parts:
        for name, size in part.items():
            total[name] += size
    return dict(total)


def _whole(terms: dict[str, float]) -> dict[str, int]:
    return {name: round(size) for name, size in terms.items() if round(size) > 0}
