"""How a model that trains lies on the ranks of a run, and what they add up.

``ddp``: every rank has all of it; the float32 gradients of the masters are summed once a step, after the last
micro-batch. ``fsdp``: every rank has a share of each parameter (`train/shares.py`). With ``tensor`` > 1 the matrices of
a block are divided as well, among neighbouring ranks, which then learn from the same rows.

The model knows of none of this: it is changed from outside, and called through `Spread.run`. What only fsdp needs is
imported when it is asked for, since that takes longer than importing torch.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, Literal, TypeGuard, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from langwright.core.errors import UserError
from langwright.model.config import ModelConfig
from langwright.model.model import Model
from langwright.train.blocks import compile_blocks, recompute_blocks
from langwright.train.compute import ComputeModel
from langwright.train.config import LoopSettings, ParallelSettings
from langwright.train.ranks import ALONE, Ranks

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

T = TypeVar("T")
WITHIN_HEADS = (".q_norm.", ".k_norm.")
"""Parameters that every tensor-parallel rank has whole and uses for its own heads alone: gradients are added up."""
BUCKET = 25_000_000
"""Bytes of gradients that are summed at a time; torch's DistributedDataParallel takes as many."""


class Spread:
    """The layout of one run. Alone, it gives back what it is given.

    `place` lays a model out, before its optimiser is built. Raises `UserError` when the settings do not fit the number
    of ranks.
    """

    def __init__(self, settings: ParallelSettings | None = None, ranks: Ranks = ALONE):
        self.ranks, self._settings = ranks, settings or ParallelSettings()
        self.kind = _kind(self._settings, ranks)
        self.tensor = self._settings.tensor if self.kind == "fsdp" else 1
        if ranks.size % self.tensor:
            raise UserError(
                f"parallel.tensor is {self.tensor}, which does not divide the {ranks.size} processes; start a multiple"
            )
        self.part, self.parts = ranks.rank // self.tensor, ranks.size // self.tensor
        """Which share of every batch this rank learns from, and of how many."""
        self.stopped = False
        """Whether the ranks agreed to stop."""
        self._root: Any = None
        self._tensor_group: Any = None

    def check(self, settings: LoopSettings, model: ModelConfig) -> None:
        """Raise `UserError`, before any work is done, for a run that cannot be laid out so."""
        self.rows(settings.batch_size)
        if not self.ranks.alone and settings.on_bad_step == "rewind":
            raise UserError("train.on_bad_step rewind is for one process; use skip or stop")
        if self.kind == "fsdp" and settings.optimiser == "muon":
            raise UserError(
                "train.optimiser muon needs whole matrices, which fsdp cuts; use parallel.kind ddp, or adamw"
            )
        for name in ("n_heads", "n_kv_heads", "d_mlp"):
            if getattr(model, name) % self.tensor:
                raise UserError(
                    f"parallel.tensor is {self.tensor}, which does not divide model.{name} ({getattr(model, name)}); "
                    "choose a common divisor of n_heads, n_kv_heads and d_mlp"
                )

    def rows(self, batch_size: int) -> range:
        """The rows of a batch that this rank learns from; raises `UserError` unless all ranks get as many."""
        if batch_size % self.parts:
            raise UserError(
                f"train.batch_size ({batch_size}) is not a multiple of the {self.parts} shares it is cut into, one a "
                "process (a group of parallel.tensor processes); change it, or start another number of processes"
            )
        return range(self.part, batch_size, self.parts)

    def deal(self, items: Iterable[T]) -> Iterator[tuple[T, bool]]:
        """This rank's share of ``items``, and whether each counts for it.

        All ranks get as many: fsdp's forwards wait for each other, so who has none left gets one again that does not
        count. Nor does it for tensor-parallel neighbours, but on the first of them.
        """
        first = self.ranks.rank % self.tensor == 0
        last: T | None = None
        number = -1
        for number, item in enumerate(items):
            if number == 0 or number % self.parts == self.part:
                last = item
            if number % self.parts == self.parts - 1:
                assert last is not None
                yield last, first
        left = (number + 1) % self.parts
        if left:
            assert last is not None
            yield last, first and self.part < left

    def place(self, model: Model, device: torch.device, dtype: torch.dtype) -> None:
        """Move ``model`` to ``device``, laid out; under fsdp it computes in ``dtype`` from then on."""
        if self.kind != "fsdp":
            model.to(device)
            return
        from langwright.train.shares import share_model  # takes seconds

        self._prepare_blocks(model)
        self._root, self._tensor_group = share_model(model, device, dtype, (self.parts, self.tensor))

    def compute_model(self, master: Model, dtype: torch.dtype) -> ComputeModel:
        """What runs forward and backward for ``master``: under fsdp itself, which rounds what it gathers."""
        if self.kind == "fsdp":
            return ComputeModel(master, torch.float32)
        compute = ComputeModel(master, dtype)
        self._prepare_blocks(compute.model)
        return compute

    def _prepare_blocks(self, model: Model) -> None:
        if self._settings.compile:
            compile_blocks(model)
        if self._settings.checkpoint_activations:
            recompute_blocks(model)

    def run(self, model: Model, call: Callable[[Model], T]) -> T:
        """``call(model)``, with the parameters that are not a block's whole while it lasts; every rank must ask."""
        if self._root is None:
            return call(model)
        result = self._root(call)
        if not torch.is_grad_enabled():
            self._root.reshard()  # after a backward it happens by itself
        return result

    def agree(self, weight: float, stopping: bool) -> float:
        """The weight of the whole step, all ranks' together, and `stopped` when any of them is to stop."""
        counted = weight if self.ranks.rank % self.tensor == 0 else 0.0  # neighbours hold the same rows
        total, asked = self.ranks.total(counted, float(stopping))
        self.stopped = bool(asked)
        return total

    @torch.no_grad()
    def collect(self, master: Model, loss: Tensor) -> Tensor:
        """Sum over the ranks: ``loss`` (), which is returned, and the gradients of ``master`` that are not yet."""
        if self.kind == "none":
            return loss
        if self.tensor > 1:
            for name, parameter in master.named_parameters():
                if parameter.grad is not None and any(part in name for part in WITHIN_HEADS):
                    dist.all_reduce(local(parameter.grad), group=self._tensor_group)
        if self.kind == "ddp":
            _sum_in_buckets([p.grad for p in master.parameters() if p.grad is not None])
        loss = loss / self.tensor
        dist.all_reduce(loss)
        return loss

    def norm(self, parameters: list[nn.Parameter]) -> Tensor:
        """The norm of all gradients together, on every rank."""
        norms = [get_total_norm([p.grad for p in group if p.grad is not None]) for group in by_mesh(parameters)]
        whole = [norm.full_tensor() if is_shared(norm) else norm for norm in norms]
        return whole[0] if len(whole) == 1 else torch.stack(whole).norm()

    def clip(self, parameters: list[nn.Parameter], longest: float, norm: Tensor) -> None:
        """Scale the gradients down to ``longest``, where ``norm`` is more."""
        for group in by_mesh(parameters):
            clip_grads_with_norm_(group, longest, norm)

    def finite(self, model: Model) -> bool:
        """Whether every weight is, on every rank."""
        broken = any(not bool(local(parameter).isfinite().all()) for parameter in model.parameters())
        return not self.ranks.total(float(broken))[0]


def local(tensor: Tensor) -> Tensor:
    """What this rank holds of ``tensor``: the memory itself."""
    return tensor.to_local() if is_shared(tensor) else tensor


@torch.no_grad()
def whole_model(model: Model, ranks: Ranks) -> Model | None:
    """``model`` put together in the first rank's host memory, or itself where it is whole; None on the other ranks.

    One parameter at a time passes through the devices. All ranks must ask.
    """
    if not any(is_shared(parameter) for parameter in model.parameters()):
        return model if ranks.first else None
    state: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        whole = parameter.full_tensor() if is_shared(parameter) else parameter
        if ranks.first:
            state[name] = whole.cpu()
    if not ranks.first:
        return None
    with torch.device("meta"):
        found = Model(model.config, model.head_kind)
    found.load_state_dict(state, assign=True)
    found.tie()
    return found.train(model.training)


def is_shared(tensor: Tensor) -> TypeGuard["DTensor"]:
    """Whether it lies on several ranks."""
    return hasattr(tensor, "device_mesh")  # asking for the class would import it


def by_mesh(parameters: list[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    """Groups of parameters that lie on the same ranks in the same dimensions: no operation takes two of them."""
    groups: dict[Any, list[nn.Parameter]] = {}
    for parameter in parameters:
        groups.setdefault(getattr(parameter, "device_mesh", None), []).append(parameter)
    yield from groups.values()


def _kind(settings: ParallelSettings, ranks: Ranks) -> Literal["none", "ddp", "fsdp"]:
    kind = settings.kind
    if ranks.alone:
        return "none"
    if kind == "none":
        raise UserError(
            f"parallel.kind is none, and {ranks.size} processes were started; use ddp or fsdp, or start one process"
        )
    if kind == "auto":
        return "fsdp" if settings.tensor > 1 else "ddp"
    return kind


def _sum_in_buckets(gradients: list[Tensor]) -> None:
    """Sum over the ranks, in place, many small tensors at a time: one sum a tensor would be all waiting."""
    bucket: list[Tensor] = []
    size = 0
    for gradient in [*gradients, None]:
        if gradient is None or (bucket and size + gradient.nbytes > BUCKET):
            flat = torch.cat([each.flatten() for each in bucket]) if len(bucket) > 1 else bucket[0].flatten()
            dist.all_reduce(flat)
            for each, part in zip(bucket, flat.split([each.numel() for each in bucket]), strict=True):
                each.copy_(part.view_as(each))
            bucket, size = [], 0
        if gradient is not None:
            bucket.append(gradient)
            size += gradient.nbytes


AS_ONE = Spread()
"""A process alone, with nothing asked of it."""
