"""The compiled core, if it was built: found, opened once, and called with tensors."""

import ctypes
import importlib.machinery
import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from langwright.infer.packing import FORMATS, Packed

_POINTER, _INT = ctypes.c_void_p, ctypes.c_int32
MOST_THREADS = 8
"""More would wait for the same memory."""


class Matrix(ctypes.Structure):
    """`lw_matrix`."""

    _fields_ = (
        ("tiles", _POINTER),
        ("bias", _POINTER),
        ("rows", _INT),
        ("columns", _INT),
        ("format", _INT),
        ("unused", _INT),
    )

    @classmethod
    def of(cls, packed: Packed, bias: Tensor | None) -> "Matrix":
        """A view: whoever holds it must hold the tensors."""
        place = None if bias is None else bias.data_ptr()
        return cls(packed.data.data_ptr(), place, packed.rows, packed.columns, FORMATS.index(packed.format), 0)


@cache
def library() -> ctypes.CDLL | None:
    """The core, with a thread for each of our cores up to `MOST_THREADS`.

    None where it was not built, and where this processor has none but the plain kernels: torch is faster than those.
    """
    names = [f"core{suffix}" for suffix in importlib.machinery.EXTENSION_SUFFIXES]
    path = next((path for name in names if (path := Path(__file__).with_name(name)).is_file()), None)
    if path is None:
        return None
    core = ctypes.CDLL(str(path))
    core.lw_kernels.restype = ctypes.c_char_p
    core.lw_kernels.argtypes = [ctypes.c_char_p]
    core.lw_threads.argtypes = [_INT]
    core.lw_matmul.argtypes = [ctypes.POINTER(Matrix), _INT, _POINTER, _POINTER]
    core.lw_forward.argtypes = [_POINTER, _POINTER, _INT, _POINTER, _POINTER, _POINTER, _INT, _POINTER, _POINTER]
    if core.lw_kernels(None) == b"portable":
        return None
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    core.lw_threads(min(usable, MOST_THREADS))
    return core


def set_kernels(name: str | None) -> str:
    """Use the kernels called ``name`` (``portable``, ``avx2``, ``avx512``), or the best; returns what is in force.

    Raises ValueError where there is no core or this processor cannot run them.
    """
    core = library()
    found = None if core is None else core.lw_kernels(None if name is None else name.encode())
    if found is None:
        raise ValueError(f"no {name or ''} kernels on this machine")
    return found.decode()


def multiply(packed: Packed, bias: Tensor | None, x: Tensor) -> Tensor | None:
    """x W^T + bias of float32 ``x`` (..., K) on the CPU, (..., N); None where there is no core."""
    core = library()
    if core is None:
        return None
    assert x.dtype == torch.float32
    assert x.device.type == "cpu"
    x = x.contiguous()
    out = torch.empty(*x.shape[:-1], packed.rows)
    matrix = Matrix.of(packed, bias)
    core.lw_matmul(ctypes.byref(matrix), x.numel() // packed.columns, x.data_ptr(), out.data_ptr())
    return out


def ints(values: Sequence[int]) -> ctypes.Array:
    """An array of int32."""
    return (_INT * len(values))(*values)
