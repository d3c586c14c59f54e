"""A run's tensors on disk in the shares of its ranks: ``shards/`` of a checkpoint, for any number of ranks to read.

torch.distributed.checkpoint plans who writes and reads what; its own format keeps a pickled index, so the writer and
reader for safetensors are used. There every file says in its header which part of each tensor it holds. Before anything
is read, all headers are checked: the parts of a tensor must fill it, once.
"""

import math
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from langwright.core.errors import FormatError, UserError
from langwright.core.files import explained
from langwright.core.json_text import parse_json
from langwright.core.safetensors_file import SafetensorsFile, TensorInfo

SHARDS = "shards"
PARTS, OFFSETS = "DCP_SHARDING_INFO", "saved_offsets"
"""Where torch's writer says in a header what the file holds."""
FILE_BYTES = 500_000_000
"""Each rank's part of a tensor list is cut into files of about this size, because the writer makes one in memory."""


def stage(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Copies in the host's memory, laid out as the originals are, to be written while training goes on."""
    return dict(HuggingFaceStorageWriter("").stage(dict(tensors)))


def write_shards(folder: Path, tensors: Mapping[str, Any], group: Any) -> None:
    """Write this rank's parts of ``tensors`` into ``folder``, the same on all ranks of ``group``, which all must ask.

    Raises `UserError` on all of them when the disk is full or not writable for one.
    """
    sizes = [tensor.numel() * tensor.element_size() for tensor in tensors.values()]
    ranks = torch.distributed.get_world_size(group)
    files = [1 + done // (FILE_BYTES * ranks) for done in accumulate(sizes, initial=0)]
    writer = HuggingFaceStorageWriter(
        str(folder), dict(zip(tensors, files, strict=False)), save_distributed=True, thread_count=1
    )
    with _agreed(folder, "written"):
        save(dict(tensors), storage_writer=writer, process_group=group)


def read_shards(folder: Path, tensors: Mapping[str, Tensor], group: Any = None) -> None:
    """Fill this rank's parts of ``tensors``, in place, from what any number of ranks wrote.

    With a ``group`` all of its ranks must ask; without, this process reads for itself. What is there is checked with
    `check_shards` before; raises `UserError` when a file cannot be read.
    """
    with _agreed(folder, "read"), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")
        alone = group is None
        load(dict(tensors), storage_reader=HuggingFaceStorageReader(str(folder)), process_group=group, no_dist=alone)


def check_shards(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """Raise `FormatError` when a file is damaged, or one of ``tensors`` is not there in that shape."""
    there = inspect_shards(folder)
    for name, tensor in tensors.items():
        if name not in there or there[name].shape != tuple(tensor.shape):
            found = f"has the shape {there[name].shape}" if name in there else "is missing"
            raise FormatError(f"{folder}: {name!r:.200} {found}, and the model needs {tuple(tensor.shape)}")


def inspect_shards(folder: Path) -> dict[str, TensorInfo]:
    """What is in ``folder``, by name: dtype and shape of whole tensors.

    Raises `FormatError` unless the parts that the files hold make up every tensor, without holes and without overlaps.
    """
    parts: dict[str, list[tuple[tuple[int, ...], TensorInfo]]] = {}
    for path in sorted(folder.glob("*.safetensors")) if folder.is_dir() else ():
        with SafetensorsFile.open(path) as file:
            told = parse_json(file.metadata[PARTS], str(path)) if PARTS in file.metadata else {}
            for name in file.names:
                info = file.info(name)
                parts.setdefault(name, []).append((_offset_of(path, told, name, info), info))
    if not parts:
        raise FormatError(f"{folder}: holds no tensors")
    return {name: _join(folder, name, found) for name, found in parts.items()}


@contextmanager
def _agreed(folder: Path, verb: str) -> Iterator[None]:
    """Raise what went wrong on one rank, which torch tells all of them in an exception of its own."""
    with explained(folder, verb):
        try:
            yield
        except CheckpointException as error:
            rank, (cause, _) = min(error.failures.items())
            if isinstance(cause, OSError | UserError):
                raise cause from None
            raise RuntimeError(f"rank {rank}: {type(cause).__name__}: {cause}") from error


def _offset_of(path: Path, told: Any, name: str, info: TensorInfo) -> tuple[int, ...]:
    entry = told.get(name, {}) if isinstance(told, dict) else None
    offset = entry.get(OFFSETS, [0] * len(info.shape)) if isinstance(entry, dict) else None
    if (
        not isinstance(offset, list)
        or len(offset) != len(info.shape)
        or not all(type(start) is int and 0 <= start < 1 << 48 for start in offset)
    ):
        raise FormatError(f"{path}: does not say where its part of {name!r:.200} belongs; the file is damaged")
    return tuple(offset)


def _join(folder: Path, name: str, found: list[tuple[tuple[int, ...], TensorInfo]]) -> TensorInfo:
    """The whole that the parts make up."""
    if len({(info.dtype, len(info.shape)) for _, info in found}) > 1:
        raise FormatError(f"{folder}: the parts of {name!r:.200} have several dtypes or dimensions")
    real = [(offset, info.shape) for offset, info in found if 0 not in info.shape]
    dims = len(found[0][1].shape)
    boxes = np.array(real, dtype=np.int64).reshape(len(real), 2, dims)
    starts, sizes = boxes[:, 0], boxes[:, 1]  # (N, dims)
    ends = starts + sizes
    shape = tuple(ends.max(0).tolist()) if real else found[0][1].shape
    volume = sum(math.prod(size) for size in sizes.tolist())
    apart = np.any((ends[:, None] <= starts) | (ends <= starts[:, None]), axis=-1)  # (N, N): two that do not overlap
    apart = apart | np.eye(len(real), dtype=bool)
    if not np.all(apart) or volume != math.prod(shape):
        raise FormatError(f"{folder}: the parts of {name!r:.200} do not fit together; a file is missing or damaged")
    return TensorInfo(found[0][1].dtype, shape)
