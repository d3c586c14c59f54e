"""The container of a GGUF file, read without believing a word of its header.

Versions 2 and 3, little-endian, as https://github.com/ggml-org/ggml/blob/master/docs/gguf.md describes them. Nothing is
allocated for a count, length or offset before it has been held against the bytes that are really there. This module
knows neither torch nor what a tensor is for: tokenizers read the metadata, models read the weights.
"""

import mmap
import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Self

import numpy as np

from langwright.core.errors import FormatError, UserError

MAX_TENSORS = 1 << 17
MAX_KEYS = 1 << 16
MAX_NAME = (1 << 16) - 1  # bytes in the name of a key (the specification's bound) or of a tensor
MAX_STRING = 1 << 24  # bytes in one metadata string
MAX_ITEMS = 1 << 24  # metadata items in the whole file: a vocabulary of 256 k tokens needs about 1 M
MAX_DEPTH = 4  # arrays in arrays
MAX_ALIGNMENT = 1 << 20

# Type number in the file: (name, elements of one block, bytes of one block). A block never crosses a row.
BLOCKS: dict[int, tuple[str, int, int]] = {
    0: ("F32", 1, 4),
    1: ("F16", 1, 2),
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34),
    9: ("Q8_1", 32, 40),
    10: ("Q2_K", 256, 84),
    11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
    15: ("Q8_K", 256, 292),
    16: ("IQ2_XXS", 256, 66),
    17: ("IQ2_XS", 256, 74),
    18: ("IQ3_XXS", 256, 98),
    19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18),
    21: ("IQ3_S", 256, 110),
    22: ("IQ2_S", 256, 82),
    23: ("IQ4_XS", 256, 136),
    24: ("I8", 1, 1),
    25: ("I16", 1, 2),
    26: ("I32", 1, 4),
    27: ("I64", 1, 8),
    28: ("F64", 1, 8),
    29: ("IQ1_M", 256, 56),
    30: ("BF16", 1, 2),
    34: ("TQ1_0", 256, 54),
    35: ("TQ2_0", 256, 66),
    39: ("MXFP4", 32, 17),
    40: ("NVFP4", 64, 36),
    41: ("Q1_0", 128, 18),
}

_NUMBERS = {
    0: "<u1",
    1: "<i1",
    2: "<u2",
    3: "<i2",
    4: "<u4",
    5: "<i4",
    6: "<f4",
    7: "<u1",
    10: "<u8",
    11: "<i8",
    12: "<f8",
}
_UINT32, _BOOL, _STRING, _ARRAY = 4, 7, 8, 9
_U32, _U64 = struct.Struct("<I"), struct.Struct("<Q")
# The fewest bytes that one of them can take; a count above what is left of the file divided by this is a lie.
_LEAST_KEY, _LEAST_TENSOR, _LEAST_STRING, _LEAST_ARRAY = 13, 24, 8, 12


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """One entry of the tensor list.

    ``shape`` is row-major, as torch and numpy count (the file lists the fastest dimension first), ``type`` is ggml's
    name such as ``Q4_1``, ``offset`` counts from the start of the file, ``bytes`` is the stored size.
    """

    name: str
    shape: tuple[int, ...]
    type: str
    offset: int
    bytes: int


class GgufFile:
    """An open GGUF file: checked metadata, checked tensor list, and the tensors' bytes through a memory map.

    As with every memory map, a program that shortens the file while it is open ends this process.
    """

    def __init__(self, path: Path, data: np.ndarray, metadata: dict[str, Any], tensors: dict[str, GgufTensor]):
        self.path = path
        self.metadata = metadata
        self.tensors = tensors
        self._data: np.ndarray | None = data

    @classmethod
    def open(cls, path: Path) -> Self:
        """Read and check the header; raises `UserError` when the file cannot be read, `FormatError` when it lies."""
        try:
            if not path.is_file():
                raise UserError(f"{path}: no such file" if not path.exists() else f"{path}: not a file")
            with path.open("rb") as file:
                size = file.seek(0, 2)
                if size == 0:
                    raise FormatError(f"{path}: the file is empty; download it again")
                data = mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ)
        except OSError as error:
            raise UserError(f"{path}: cannot be read: {error.strerror or error}") from error
        header = _Header(path, data)
        return cls(path, np.frombuffer(data, np.uint8), *header.read())

    def raw(self, name: str) -> np.ndarray:
        """The stored bytes of a tensor: read-only uint8, one dimension, a view that outlives `close`."""
        assert self._data is not None, "the file is closed"
        if name not in self.tensors:
            raise FormatError(f"{self.path}: holds no tensor {name!r:.200}")
        tensor = self.tensors[name]
        return self._data[tensor.offset : tensor.offset + tensor.bytes]

    def close(self) -> None:
        """Let go of the memory map; it is unmapped when the last view that `raw` gave is gone."""
        self._data = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Header:
    """A position in the file that only moves over bytes that exist."""

    def __init__(self, path: Path, data: mmap.mmap):
        self.path = path
        self.data = data
        self.size = len(data)
        self.at = 0
        self.items_left = MAX_ITEMS

    def read(self) -> tuple[dict[str, Any], dict[str, GgufTensor]]:
        """The metadata and the tensors of the file."""
        if self.data[:4] != b"GGUF":
            raise FormatError(f"{self.path}: not a GGUF file (its first bytes are {self.data[:4]!r})")
        self.skip(4)
        version = self.u32()
        if version & 0xFFFF == 0:
            raise FormatError(f"{self.path}: is big-endian; convert it with gguf-convert-endian FILE little")
        if version not in (2, 3):
            raise FormatError(f"{self.path}: has GGUF version {version}; versions 2 and 3 can be read")
        n_tensors = self.count("tensors", _LEAST_TENSOR, MAX_TENSORS)
        n_keys = self.count("keys", _LEAST_KEY, MAX_KEYS)
        metadata: dict[str, Any] = {}
        alignment = 32
        for _ in range(n_keys):
            key = self.string(MAX_NAME)
            if key in metadata:
                raise self.wrong(f"key {key!r:.200} stands twice")
            kind = self.u32()
            metadata[key] = self.values(kind, 1, depth=0)[0]
            if key == "general.alignment":
                alignment = self.check_alignment(kind, metadata[key])
        return metadata, self.tensors(n_tensors, alignment)

    def tensors(self, count: int, alignment: int) -> dict[str, GgufTensor]:
        """The tensor list, each entry with a place inside the file that is its own."""
        entries = [self.tensor_entry() for _ in range(count)]
        start = -(-self.at // alignment) * alignment
        found: dict[str, GgufTensor] = {}
        for name, shape, kind, offset in entries:
            if name in found:
                raise self.wrong(f"tensor {name!r:.200} stands twice")
            if kind not in BLOCKS:
                raise self.wrong(f"tensor {name!r:.200} has the unknown type {kind}")
            type_name, block, block_bytes = BLOCKS[kind]
            if block > 1 and (not shape or shape[-1] % block):
                raise self.wrong(f"tensor {name!r:.200} of shape {shape} has rows of broken {type_name} blocks")
            if offset % alignment:
                raise self.wrong(f"tensor {name!r:.200}: offset {offset} is not a multiple of {alignment}")
            length = prod(shape) // block * block_bytes
            if start + offset + length > self.size:
                raise self.wrong(f"tensor {name!r:.200} ends {start + offset + length - self.size} bytes past the file")
            found[name] = GgufTensor(name, shape, type_name, start + offset, length)
        end = 0
        for tensor in sorted(found.values(), key=lambda tensor: tensor.offset):
            if tensor.offset < end:
                raise self.wrong(f"tensor {tensor.name!r:.200} lies over another one")
            end = tensor.offset + tensor.bytes
        return found

    def tensor_entry(self) -> tuple[str, tuple[int, ...], int, int]:
        name = self.string(MAX_NAME)
        n_dims = self.u32()
        if n_dims > 4:
            raise self.wrong(f"tensor {name!r:.200} has {n_dims} dimensions, more than 4")
        dims = [self.u64() for _ in range(n_dims)]
        if 0 in dims:
            raise self.wrong(f"tensor {name!r:.200} has a dimension of 0")
        return name, tuple(reversed(dims)), self.u32(), self.u64()

    def values(self, kind: int, count: int, depth: int) -> list[Any]:
        """``count`` metadata values of type ``kind``, as plain Python objects."""
        self.items_left -= count
        if self.items_left < 0:
            raise self.wrong(f"more than {MAX_ITEMS} metadata items")
        if kind == _STRING:
            return self.strings(count)
        if kind == _ARRAY:
            if depth == MAX_DEPTH:
                raise self.wrong(f"arrays nested more than {MAX_DEPTH} deep")
            return [self.array(depth) for _ in range(count)]
        if kind not in _NUMBERS:
            raise self.wrong(f"unknown metadata type {kind}")
        dtype = np.dtype(_NUMBERS[kind])
        start = self.skip(count * dtype.itemsize)
        numbers = np.frombuffer(self.data, dtype, count, start).tolist() if count else []
        if kind != _BOOL:
            return numbers
        if not set(numbers) <= {0, 1}:
            raise self.wrong("a truth value that is neither 0 nor 1")
        return [number == 1 for number in numbers]

    def array(self, depth: int) -> list[Any]:
        kind = self.u32()
        least = {_STRING: _LEAST_STRING, _ARRAY: _LEAST_ARRAY}.get(kind, 1)
        return self.values(kind, self.count("array items", least, MAX_ITEMS), depth + 1)

    def strings(self, count: int) -> list[str]:
        # A vocabulary is 100,000 strings and more: this loop is what opening a file costs, hence the local names.
        data, size, at, length_at = self.data, self.size, self.at, _U64.unpack_from
        found: list[str] = []
        for _ in range(count):
            start = at + 8
            if start > size:
                raise self.wrong("it ends inside its header")
            at = start + length_at(data, at)[0]
            if at > size or at - start > MAX_STRING:
                raise self.wrong(f"a string of {at - start} bytes")
            try:
                found.append(data[start:at].decode("utf-8"))
            except UnicodeDecodeError:
                raise self.wrong(f"a string at byte {start} is not UTF-8") from None
        self.at = at
        return found

    def string(self, limit: int) -> str:
        [text] = self.strings(1)
        if len(text) > limit:
            raise self.wrong(f"a name of {len(text)} characters")
        return text

    def u32(self) -> int:
        return _U32.unpack_from(self.data, self.skip(4))[0]

    def u64(self) -> int:
        return _U64.unpack_from(self.data, self.skip(8))[0]

    def count(self, what: str, least: int, limit: int) -> int:
        """Read how many ``what`` follow, each of at least ``least`` bytes."""
        count = self.u64()
        if count > limit or count * least > self.size - self.at:
            raise self.wrong(f"it announces {count} {what}")
        return count

    def skip(self, length: int) -> int:
        """Move over ``length`` bytes and return where they start."""
        start = self.at
        if length > self.size - start:
            raise self.wrong("it ends inside its header")
        self.at = start + length
        return start

    def check_alignment(self, kind: int, value: Any) -> int:
        if kind != _UINT32 or not 8 <= value <= MAX_ALIGNMENT or value & (value - 1):
            raise self.wrong(f"general.alignment is {value!r:.60}, not a power of two from 8 to {MAX_ALIGNMENT}")
        return value

    def wrong(self, what: str) -> FormatError:
        return FormatError(f"{self.path}: damaged or cut-off GGUF file ({self.size} bytes): {what}; download it again")
