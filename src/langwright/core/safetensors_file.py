"""Safetensors weights: one file or shards under an index, read lazily and strictly, written without a second copy.

The safetensors library checks a file's header length, offsets, sizes, overlaps, holes and dtypes. Four things it lets
pass, and this module does not: a tensor named twice (the last one would win), a dtype that torch cannot hold, a
dimension past 64 bits, and whatever an index says about its shards. Pickle is never read, not even as a last resort.
"""

import os
import re
import struct
import weakref
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from safetensors import SafetensorError, safe_open

from langwright.core.errors import FormatError, UserError
from langwright.core.files import explained, write_atomic
from langwright.core.json_text import parse_json, read_json_object, write_json

if TYPE_CHECKING:
    from torch import Tensor

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
MAX_HEADER = 100_000_000  # bytes, the format's own bound
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
# The format's name of a dtype: torch's name.
DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U8": "uint8",
    "BOOL": "bool",
}


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """What a file says of a tensor: ``dtype`` by the format's name (``F32``, ``BF16``), ``shape`` row-major."""

    dtype: str
    shape: tuple[int, ...]


class SafetensorsFile:
    """One open file: `names`, `metadata`, and tensors that are views of a private memory map."""

    def __init__(self, path: Path, handle: Any, infos: dict[str, TensorInfo], metadata: dict[str, str]):
        self.path = path
        self.metadata = metadata
        self._infos = infos
        self._handle = handle

    @classmethod
    def open(cls, path: Path) -> Self:
        """Check the header; raises `UserError` when the file cannot be read, `FormatError` when it lies."""
        header = _read_header(path)
        try:
            handle = safe_open(path, framework="pt")
        except (SafetensorError, OSError) as error:
            raise _damaged(path, str(error)) from error
        metadata = header.pop("__metadata__", None) or {}
        infos = {name: TensorInfo(entry["dtype"], tuple(entry["shape"])) for name, entry in header.items()}
        for name, info in infos.items():
            if info.dtype not in DTYPES:
                known = ", ".join(DTYPES)
                raise FormatError(f"{path}: tensor {name!r:.200} has the dtype {info.dtype}; those read are {known}")
            if any(size >= 1 << 63 for size in info.shape):
                raise _damaged(path, f"tensor {name!r:.200} has the shape {info.shape}")
        return cls(path, handle, infos, metadata)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the tensors, in the order of the header."""
        return tuple(self._infos)

    def info(self, name: str) -> TensorInfo:
        """Dtype and shape of a tensor, without reading it."""
        if name not in self._infos:
            raise FormatError(f"{self.path}: holds no tensor {name!r:.200}")
        return self._infos[name]

    def tensor(self, name: str) -> "Tensor":
        """A tensor of the declared dtype and shape over the memory map; writing to it never reaches the file."""
        assert self._handle is not None, "the file is closed"
        self.info(name)
        return self._handle.get_tensor(name)

    def close(self) -> None:
        """Let go of the file; tensors already given stay valid."""
        self._handle = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Weights:
    """The tensors of a checkpoint folder, whichever of its files each is in."""

    def __init__(self, folder: Path, homes: dict[str, SafetensorsFile]):
        self.folder = folder
        self._homes = homes

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all tensors."""
        return tuple(self._homes)

    def file(self, name: str) -> SafetensorsFile:
        """The file that holds a tensor; raises `FormatError` when none does."""
        if name not in self._homes:
            raise FormatError(f"{self.folder}: holds no tensor {name!r:.200}")
        return self._homes[name]

    def info(self, name: str) -> TensorInfo:
        """Dtype and shape of a tensor, without reading it."""
        return self.file(name).info(name)

    def tensor(self, name: str) -> "Tensor":
        """A tensor over the memory map of its file; see `SafetensorsFile.tensor`."""
        return self.file(name).tensor(name)

    def close(self) -> None:
        """Let go of every file; tensors already given stay valid."""
        for file in self._homes.values():
            file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_weights(folder: Path) -> Weights:
    """Open ``model.safetensors`` or the shards that ``model.safetensors.index.json`` lists.

    Raises `FormatError` when a file is damaged, the index and the shards disagree, a shard's name leads out of the
    folder, or there is nothing but pickle; `UserError` when the folder is missing or holds no weights.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    single, index = folder / WEIGHTS, folder / INDEX
    if single.exists() and index.exists():
        raise FormatError(f"{folder}: holds both {WEIGHTS} and {INDEX}; remove the one that is out of date")
    if single.exists():
        file = SafetensorsFile.open(single)
        return Weights(folder, dict.fromkeys(file.names, file))
    if index.exists():
        return Weights(folder, _open_shards(index))
    raise _no_weights(folder)


def write_weights(
    folder: Path,
    tensors: "Iterable[tuple[str, Tensor]]",
    *,
    shard_bytes: int = 5 * 10**9,
    metadata: dict[str, str] | None = None,
) -> dict[str, str]:
    """Write ``tensors`` as ``model.safetensors``, or as shards of at most ``shard_bytes`` with an index.

    A generator is consumed as it goes: only the tensors of one shard are held. A tensor that is the same memory as one
    before it, which the caller still holds, is stored once; the result maps its name to the stored one. ``metadata``
    defaults to ``{"format": "pt"}``, which Hugging Face readers ask for. Raises `UserError` when writing fails. Call
    inside `committed_folder`, which flushes and renames.
    """
    if any(path.suffix == ".safetensors" for path in folder.iterdir()):
        raise UserError(f"{folder}: already holds weights; write to a new folder")
    metadata = metadata or {"format": "pt"}
    seen: dict[tuple[object, ...], tuple[str, weakref.ref[Tensor]]] = {}
    tied: dict[str, str] = {}
    placed: list[list[str]] = []  # the names in each shard
    shard: dict[str, Tensor] = {}
    total = size = 0
    for name, tensor in tensors:
        place = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype, tensor.device)
        kept, alive = seen.get(place, (name, None))
        if alive is not None and alive() is not None and tensor.numel():  # else the address was merely used again
            tied[name] = kept
            continue
        seen[place] = (name, weakref.ref(tensor))
        if shard and size + tensor.nbytes > shard_bytes:
            placed.append(_write_shard(folder / _part(len(placed)), shard, metadata))
            shard, size = {}, 0
        shard[name] = tensor
        size += tensor.nbytes
        total += tensor.nbytes
    placed.append(_write_shard(folder / _part(len(placed)), shard, metadata))
    with explained(folder):
        if len(placed) == 1:
            os.rename(folder / _part(0), folder / WEIGHTS)
            return tied
        weight_map: dict[str, str] = {}
        for number, names in enumerate(placed):
            file_name = f"model-{number + 1:05}-of-{len(placed):05}.safetensors"
            os.rename(folder / _part(number), folder / file_name)
            weight_map |= dict.fromkeys(names, file_name)
    write_atomic(folder / INDEX, write_json({"metadata": {"total_size": total}, "weight_map": weight_map}))
    return tied


def write_tensors(path: Path, tensors: "Mapping[str, Tensor]", *, metadata: dict[str, str] | None = None) -> None:
    """Write one file under a name of its own, which a reader sees whole or not at all.

    Tensors that share memory are each stored. ``metadata`` as in `write_weights`; raises `UserError` if writing fails.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        _write_shard(temporary, dict(tensors), metadata or {"format": "pt"})
        with explained(path):
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def pickle_refusal(path: Path) -> FormatError:
    """The error for weights that come as pickle, with the line of Python that converts them."""
    folder = path.parent
    if (folder / "config.json").exists():
        call = f"transformers.AutoModelForCausalLM.from_pretrained({str(folder)!r}, weights_only=True)"
        line = f"{call}.save_pretrained('NEW_FOLDER')"
    else:
        line = f"safetensors.torch.save_file(torch.load({str(path)!r}, weights_only=True), {WEIGHTS!r})"
    return FormatError(f"{path}: a pickle can run code when it is read, so it is refused; convert it in Python: {line}")


def _part(number: int) -> str:
    return f"part-{number}.safetensors"


def _write_shard(path: Path, shard: "dict[str, Tensor]", metadata: dict[str, str]) -> list[str]:
    from safetensors.torch import save_file

    storages: set[int] = set()
    stored: dict[str, Tensor] = {}
    for name, tensor in shard.items():
        tensor = tensor.detach().contiguous()
        # The library refuses views of one storage (a slice of a fused matrix); those are copied.
        storage = tensor.untyped_storage().data_ptr()
        stored[name] = tensor.clone() if storage in storages else tensor
        storages.add(storage)
    with explained(path.parent):
        try:
            save_file(stored, path, metadata)
        except SafetensorError as error:
            code = re.search(r"os error (\d+)", str(error))
            if not code:
                raise UserError(f"{path.parent}: the weights cannot be written: {error}") from error
            raise OSError(int(code[1]), os.strerror(int(code[1]))) from error
    return list(stored)


def _read_header(path: Path) -> dict[str, Any]:
    """The header as strict JSON: an object without duplicate keys, no longer than the file."""
    try:
        if not path.is_file():
            raise UserError(f"{path}: not a file" if path.exists() else f"{path}: no such file")
        with path.open("rb") as file:
            start = file.read(8)
            if len(start) < 8:
                raise _damaged(path, "it is shorter than its header")
            if start == b"version ":
                raise FormatError(f"{path}: a Git LFS pointer, not the file itself; run `git lfs pull` in its folder")
            [length] = struct.unpack("<Q", start)
            if length > min(MAX_HEADER, path.stat().st_size - 8):
                raise _damaged(path, f"it announces a header of {length} bytes")
            header = parse_json(file.read(length), f"{path} (header)")
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from error
    if not isinstance(header, dict):
        raise _damaged(path, f"its header is a {type(header).__name__}")
    return header


def _open_shards(index: Path) -> dict[str, SafetensorsFile]:
    """Tensor name -> open shard, with the index and the shards in full agreement."""
    content = read_json_object(index)
    weight_map = content.pop("weight_map", None)
    if not isinstance(weight_map, dict) or not weight_map or not content.keys() <= {"metadata"}:
        raise FormatError(f"{index}: should hold weight_map and metadata, and nothing else")
    files: dict[str, SafetensorsFile] = {}
    for shard in dict.fromkeys(str(shard) for shard in weight_map.values()):
        if not re.fullmatch(r"[\w.\-]+\.safetensors", shard, re.ASCII):
            raise FormatError(f"{index}: {shard!r:.200} is not the plain name of a .safetensors file")
        if not (index.parent / shard).exists():
            raise FormatError(f"{index.parent / shard}: is named in the index and missing; download it again")
        files[shard] = SafetensorsFile.open(index.parent / shard)
    held = {(name, shard) for shard, file in files.items() for name in file.names}
    for name, shard in held.symmetric_difference(weight_map.items()):
        lie = f"{shard} holds {name!r:.200}" if (name, shard) not in held else f"{name!r:.200} is not in {shard}"
        raise FormatError(f"{index}: says that {lie}, which is not true; download the folder again")
    return {name: files[shard] for name, shard in weight_map.items()}


def _no_weights(folder: Path) -> UserError:
    pickles = sorted(path for path in folder.iterdir() if path.suffix in PICKLES)
    return pickle_refusal(pickles[0]) if pickles else UserError(f"{folder}: holds no {WEIGHTS} and no {INDEX}")


def _damaged(path: Path, what: str) -> FormatError:
    what = " ".join(what.removeprefix("Error while deserializing header: ").split())
    return FormatError(f"{path}: damaged or cut-off safetensors file: {what:.300}; download it again")
