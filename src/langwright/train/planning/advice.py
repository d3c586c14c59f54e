"""Whether a run fits, the largest piece that does, and what to change when none does."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from langwright.core.errors import UserError
from langwright.core.hardware import available_memory
from langwright.core.runtime import DTYPES
from langwright.model.config import ModelConfig
from langwright.train.config import RunConfig
from langwright.train.planning.devices import known_devices
from langwright.train.planning.memory import MemoryUse, ParameterCount, Workload, count_weights, memory_use
from langwright.train.spread import AS_ONE, Spread


@dataclass(frozen=True)
class Fit:
    """How a run meets a device's memory: ``rows`` sequences go through at once, ``largest`` is the most that can."""

    use: MemoryUse
    rows: int
    fits: bool
    largest: int
    shards: int
    advice: tuple[str, ...]


def find_fit(
    config: RunConfig,
    shape: ModelConfig,
    kind: str,
    available: float | None,
    count: int = 1,
    weights: ParameterCount | None = None,
    shards: int | None = None,
) -> Fit:
    """Compare the need of ``config``, whose dtype is decided, with ``available`` bytes on each of ``count`` devices.

    Weights, gradients and optimiser are divided among ``shards`` of them; by default each holds everything if that
    fits, else they are divided among all.
    """
    weights = weights or count_weights(shape)
    settings = config.train
    share = math.ceil(settings.batch_size / count)
    rows = min(settings.micro_batch_size or settings.batch_size, share)

    def use(rows: int, shards: int = 1, context: int | None = None) -> MemoryUse:
        work = Workload(
            shape,
            rows,
            math.ceil(share / rows),
            context or settings.context,
            DTYPES[settings.dtype],
            settings.optimiser,
            settings.momentum,
            kind,
            shards,
            settings.save_in_background and 0 < settings.save_every < (settings.max_steps or math.inf),
            config.parallel.checkpoint_activations,
        )
        return memory_use(work, weights)

    limit = math.inf if available is None else available
    advice: list[str] = []
    if shards is None:
        shards = 1 if count == 1 or use(1).peak_bytes <= limit else count
        if shards > 1:
            advice.append(
                f"one device cannot hold the run; divide weights, gradients and optimiser over all {count:,} (FSDP)"
            )
    found = use(rows, shards)
    largest = _largest(lambda size: use(size, shards).peak_bytes <= limit, share)
    if found.peak_bytes > limit and largest:
        advice.append(
            f"--train.micro-batch-size {largest} fits ({gigabytes(use(largest, shards).peak_bytes)}) and gives the "
            f"same result"
        )
    elif found.peak_bytes > limit:
        context = _largest(lambda size: use(1, shards, size).peak_bytes <= limit, settings.context)
        if context >= 16:
            advice.append(f"not one sequence fits; --train.context {context} with --train.micro-batch-size 1 would")
        else:
            advice.append(
                "not even the weights and the optimiser fit; make the model smaller (model.d_model, n_layers)"
            )
        advice += _other_devices(use(1).peak_bytes)
    elif rows < share and largest >= 2 * rows:
        advice.append(f"up to --train.micro-batch-size {largest} fits; larger pieces keep a GPU busier")
    return Fit(found, rows, found.peak_bytes <= limit, largest, shards, tuple(advice))


def check_memory(
    config: RunConfig, shape: ModelConfig, say: Callable[[str], None], *, force: bool, spread: Spread = AS_ONE
) -> Fit:
    """The fit of a decided ``config`` on its own device; raises `UserError` where the free memory is not enough.

    With ``force`` it only says so. The ranks of one machine share its memory, but each has a GPU to itself.
    """
    device, ranks = torch.device(config.device), spread.ranks
    available = available_memory(device)
    if available is not None and device.type == "cpu":
        available /= ranks.local_size
    shards = ranks.size if spread.kind == "fsdp" else 1
    fit = find_fit(config, shape, device.type, available, spread.parts, shards=shards)
    if not fit.fits and available is not None:
        need, there = gigabytes(fit.use.peak_bytes), gigabytes(available)
        found = f"this run needs about {need} on {config.device} and {there} are free; {fit.advice[0]}"
        if not force:
            raise UserError(f"{found}; or add --force to try")
        say(f"{found}; trying all the same")
    return fit


def gigabytes(size: float) -> str:
    """``340 MB``, ``12.3 GB``: in powers of ten, as memory is sold."""
    if size < 1e9:
        return f"{size / 1e6:.0f} MB"
    return f"{size / 1e9:,.1f} GB" if size < 100e9 else f"{size / 1e9:,.0f} GB"


def _largest(works: Callable[[int], bool], most: int) -> int:
    """The largest number up to ``most`` that works, if all smaller ones do; 0 when none does."""
    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if works(middle) else (low, middle - 1)
    return low


def _other_devices(need: float) -> list[str]:
    names = [
        device.title for device in known_devices().values() if device.kind == "cuda" and device.memory * 0.95 > need
    ]
    return [f"one sequence at a time would fit on: {'; '.join(names)}"] if names else []
