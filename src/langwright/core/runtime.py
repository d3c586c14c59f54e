"""Device, dtype, seeds and threads: explicit, and never decided at import time."""

import contextlib
import os
import random
import sys
from pathlib import Path
from typing import Literal

import torch

from langwright.core.errors import UserError

DType = Literal["float32", "bfloat16", "float16"]
DTYPES: dict[str, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def pick_device(name: str = "auto") -> torch.device:
    """``auto`` is CUDA, else MPS, else CPU; anything else must exist here or `UserError` says so."""
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        why = str(error).splitlines()[0]
        raise UserError(f"device {name!r} is not available here; use auto or cpu ({why})") from None
    return device


def pick_dtype(name: str) -> torch.dtype:
    """The torch dtype of that name; raises `UserError` for others."""
    if name not in DTYPES:
        raise UserError(f"dtype {name!r} is unknown; use one of {', '.join(DTYPES)}")
    return DTYPES[name]


def seed_everything(seed: int) -> None:
    """Seed Python's and torch's generators (every device)."""
    random.seed(seed)
    torch.manual_seed(seed)


def set_threads(count: int | None) -> int:
    """Use ``count`` CPU threads (None: every core this process may run on); returns the number in force."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    torch.set_num_threads(count or usable)
    return torch.get_num_threads()


def available_memory(device: torch.device) -> int | None:
    """Bytes that this process can still get on ``device`` without swapping; None where the system does not tell.

    On Linux that is what the kernel calls available, or what the control group of a container leaves, if that is less.
    """
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
    limits = [_meminfo("MemAvailable"), _cgroup_left(Path("/sys/fs/cgroup"))]
    known = [limit for limit in limits if limit is not None]
    if not known and hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        known = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]  # macOS tells only what there is in all
    return min(known, default=None)


def peak_memory(device: torch.device) -> int | None:
    """The most bytes that were ever held: by torch's tensors on a GPU, else by this process; None if unknown."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    with contextlib.suppress(ImportError):
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024
    return None


def _meminfo(name: str) -> int | None:
    with contextlib.suppress(OSError, ValueError):
        for line in Path("/proc/meminfo").read_text(encoding="utf-8").splitlines():
            key, _, value = line.partition(":")
            if key == name:
                return int(value.split()[0]) * 1024
    return None


def _cgroup_left(root: Path) -> int | None:
    """What the memory limit of the control group leaves (versions 2 and 1); files in the page cache can be given up."""
    for limit, used, statistics, cached in (
        ("memory.max", "memory.current", "memory.stat", "inactive_file"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat", "total_inactive_file"),
    ):
        with contextlib.suppress(OSError, ValueError):
            most, now = (int((root / name).read_text(encoding="ascii")) for name in (limit, used))
            lines = (line.split() for line in (root / statistics).read_text(encoding="ascii").splitlines())
            spare = next((int(line[1]) for line in lines if line[0] == cached), 0)
            return most - now + spare if most < 1 << 60 else None
    return None
