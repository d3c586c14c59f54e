"""Device, dtype, seeds and threads: explicit, and never decided at import time."""

import ctypes
import os
import platform
import random
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


def set_threads(count: int | None, processes: int = 1) -> int:
    """Use ``count`` CPU threads (None: every core this process may run on, its share of them where there are several
    ``processes``); returns the number in force."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    torch.set_num_threads(count or max(1, usable // processes))
    return torch.get_num_threads()


def keep_freed_memory() -> bool:
    """Have this process keep what it frees for its next allocation; False where the C library is not glibc.

    glibc gives large blocks back to the kernel when they are freed, and the tensors of a training step are large: every
    step had the kernel map and clear its gigabytes anew, a tenth to a fifth of the step's time on a virtual machine.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # malloc.h
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(M_MMAP_MAX, 0)) and bool(mallopt(M_TRIM_THRESHOLD, -1))  # none by mmap, and trim never
