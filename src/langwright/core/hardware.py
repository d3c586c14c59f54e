"""The machine: what it is, what memory is left, what was used."""

import contextlib
import os
import platform
import sys
from pathlib import Path
from typing import Any

import torch


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


def describe_hardware() -> dict[str, Any]:
    """Processor, cores in use, memory, GPUs and versions, for a record that somebody else can read."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    total = _meminfo("MemTotal") or (
        os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if "SC_PHYS_PAGES" in os.sysconf_names else None
    )
    gpus = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    return {
        "processor": _cpu_name() or platform.processor() or platform.machine(),
        "cores": usable,
        "threads": torch.get_num_threads(),
        "memory_bytes": total,
        "gpus": gpus,
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def _cpu_name() -> str | None:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return value.strip()
    return None


def _meminfo(name: str) -> int | None:
    with contextlib.suppress(OSError, ValueError):
        for line in Path("/proc/meminfo").read_text(encoding="utf-8").splitlines():
            key, _, value = line.partition(":")
            if key == name:
                return int(value.split()[0]) * 1024
    return None


def _cgroup_left(root: Path, membership: Path = Path("/proc/self/cgroup")) -> int | None:
    """What the memory limits of this process's control groups leave (version 2, else 1); the least of them.

    Files in the page cache that nobody uses can be given up, and count as free.
    """
    places = [(root, "memory.max", "memory.current", "inactive_file")]
    with contextlib.suppress(OSError):
        for line in membership.read_text(encoding="utf-8").splitlines():
            _, controllers, inner = line.split(":", 2)
            if controllers in ("", "memory"):
                names = ("memory.max", "memory.current", "inactive_file")
                if controllers:
                    names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
                top = root / controllers
                folder = top / inner.lstrip("/")
                places += [(each, *names) for each in (folder, *folder.parents) if each.is_relative_to(top)]
    left = [_left(folder, *names) for folder, *names in places]
    return min((each for each in left if each is not None), default=None)


def _left(folder: Path, limit: str, used: str, spare: str) -> int | None:
    with contextlib.suppress(OSError, ValueError):
        most, now = (int((folder / name).read_text(encoding="ascii")) for name in (limit, used))
        lines = (line.split() for line in (folder / "memory.stat").read_text(encoding="ascii").splitlines())
        return most - now + next((int(line[1]) for line in lines if line[0] == spare), 0)
    return None
