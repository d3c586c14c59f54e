"""GGUF containers: what the gguf library writes is read, and a header that lies is caught before it costs anything."""

import random
import struct
import tracemalloc
from collections.abc import Callable
from math import prod
from pathlib import Path

import gguf
import numpy as np
import pytest

from langwright.core.errors import FormatError, UserError
from langwright.core.gguf_file import BLOCKS, GgufFile

U8, U32, F32, BOOL, STRING, ARRAY = 0, 4, 6, 7, 8, 9
HUGE = 2**64 - 1


def text(value: str | bytes) -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(raw)) + raw


def pair(key: str, kind: int, value: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + value


def array(kind: int, count: int, items: bytes = b"") -> bytes:
    return struct.pack("<IQ", kind, count) + items


def entry(name: str, dims: tuple[int, ...], kind: int = 0, offset: int = 0, n_dims: int | None = None) -> bytes:
    n_dims = len(dims) if n_dims is None else n_dims
    return text(name) + struct.pack(f"<I{len(dims)}QIQ", n_dims, *dims, kind, offset)


def container(
    *pairs: bytes,
    tensors: tuple[bytes, ...] = (),
    data: bytes = b"",
    version: int = 3,
    n_pairs: int | None = None,
    n_tensors: int | None = None,
) -> bytes:
    counts = struct.pack(
        "<IQQ", version, len(tensors) if n_tensors is None else n_tensors, len(pairs) if n_pairs is None else n_pairs
    )
    header = b"GGUF" + counts + b"".join(pairs) + b"".join(tensors)
    return header + bytes(-len(header) % 32) + data


@pytest.fixture
def write(tmp_path: Path) -> Callable[[bytes], Path]:
    def write(content: bytes) -> Path:
        path = tmp_path / "model.gguf"
        path.write_bytes(content)
        return path

    return write


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small file with every kind of value, written by the gguf library."""
    path = tmp_path_factory.mktemp("gguf") / "sample.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    for width in (8, 16, 32, 64):
        getattr(writer, f"add_uint{width}")(f"uint{width}", 2**width - 1)
        getattr(writer, f"add_int{width}")(f"int{width}", -(2 ** (width - 1)))
    writer.add_float32("float32", 0.1)
    writer.add_float64("float64", 0.1)
    writer.add_bool("yes", True)
    writer.add_string("greeting", "héllo 你好 🙂")
    writer.add_array("tokens", ["a", "Ġb", ""])
    writer.add_array("scores", [1.5, -2.0])
    writer.add_array("kinds", [1, 2, -3])
    writer.add_array("flags", [True, False])
    writer.add_array("nested", [[1, 2], [3]])
    rng = np.random.default_rng(0)
    writer.add_tensor("plain", rng.standard_normal((2, 3), dtype=np.float32))
    writer.add_tensor("half", rng.standard_normal(5, dtype=np.float32).astype(np.float16))
    blocks = gguf.quants.quantize(rng.standard_normal((3, 64), dtype=np.float32), gguf.GGMLQuantizationType.Q4_1)
    writer.add_tensor("blocks", blocks, raw_dtype=gguf.GGMLQuantizationType.Q4_1)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_reads_what_the_library_wrote(sample: Path) -> None:
    with GgufFile.open(sample) as file:
        meta = file.metadata
        assert meta["general.architecture"] == "llama"
        for width in (8, 16, 32, 64):
            assert meta[f"uint{width}"] == 2**width - 1
            assert meta[f"int{width}"] == -(2 ** (width - 1))
        assert meta["float32"] == float(np.float32(0.1))
        assert meta["float64"] == 0.1
        assert meta["yes"] is True
        assert meta["greeting"] == "héllo 你好 🙂"
        assert meta["tokens"] == ["a", "Ġb", ""]
        assert meta["scores"] == [1.5, -2.0]
        assert meta["kinds"] == [1, 2, -3]
        assert meta["flags"] == [True, False]
        assert meta["nested"] == [[1, 2], [3]]
        assert all(type(value) in (int, float, bool, str, list) for value in meta.values())


def test_tensors_are_those_of_the_library(sample: Path) -> None:
    file = GgufFile.open(sample)
    reference = gguf.GGUFReader(sample)
    assert list(file.tensors) == [tensor.name for tensor in reference.tensors]
    for theirs in reference.tensors:
        ours = file.tensors[theirs.name]
        assert ours.shape == tuple(reversed(theirs.shape.tolist()))
        assert (ours.type, ours.offset, ours.bytes) == (theirs.tensor_type.name, theirs.data_offset, theirs.n_bytes)
        assert file.raw(theirs.name).tobytes() == theirs.data.tobytes()


def test_raw_is_a_read_only_view_that_outlives_the_file(sample: Path) -> None:
    with GgufFile.open(sample) as file:
        view = file.raw("plain")
        again = file.raw("plain")
    assert np.shares_memory(view, again)
    assert not view.flags.writeable
    assert view.size == 24
    with pytest.raises(AssertionError, match="closed"):
        file.raw("plain")


def test_unknown_tensor_is_named(sample: Path) -> None:
    with GgufFile.open(sample) as file, pytest.raises(FormatError, match="holds no tensor 'absent'"):
        file.raw("absent")


def test_type_table_agrees_with_the_library() -> None:
    theirs = {int(kind): (kind.name, *sizes) for kind, sizes in gguf.GGML_QUANT_SIZES.items()}
    common = BLOCKS.keys() & theirs.keys()
    assert {kind: BLOCKS[kind] for kind in common} == {kind: theirs[kind] for kind in common}
    assert {BLOCKS[kind][0] for kind in common} >= {"F32", "F16", "BF16", "Q8_0", "Q4_1", "Q4_K", "Q5_K", "Q6_K"}


def test_an_empty_model_and_version_2_are_fine(write: Callable[[bytes], Path]) -> None:
    assert GgufFile.open(write(container(version=2))).tensors == {}


def test_alignment_of_the_file_is_used(write: Callable[[bytes], Path]) -> None:
    pairs = (pair("general.alignment", U32, struct.pack("<I", 64)),)
    tensors = (entry("a", (4,)), entry("b", (4,), offset=64))
    header = len(container(*pairs, tensors=tensors))
    content = container(*pairs, tensors=tensors)[:header] + bytes(-header % 64) + bytes(64) + b"\1" * 16
    file = GgufFile.open(write(content))
    assert file.raw("b").tolist() == [1] * 16
    assert file.tensors["b"].offset % 64 == 0


LIES = {
    "empty": (b"", "empty"),
    "other file": (b"PK\3\4" + bytes(60), "not a GGUF file"),
    "version 1": (container(version=1), "version 1"),
    "version 4": (container(version=4), "version 4"),
    "big-endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian"),
    "2^63 tensors": (container(n_tensors=2**63), "announces 9223372036854775808 tensors"),
    "2^64-1 tensors": (container(n_tensors=HUGE), "tensors"),
    "2^63 keys": (container(n_pairs=2**63), "keys"),
    "more keys than fit": (container(pair("a", U8, b"\0"), n_pairs=4), "announces 4 keys|ends inside"),
    "string of 2^64-1": (container(pair("a", STRING, struct.pack("<Q", HUGE))), "a string of"),
    "string past the end": (container(pair("a", STRING, struct.pack("<Q", 1000))), "a string of 1000 bytes"),
    "key of 2^64-1": (container(struct.pack("<Q", HUGE) + bytes(20)), "a string of"),
    "key too long": (container(pair("k" * 70_000, U8, b"\0")), "a name of 70000"),
    "bad UTF-8": (container(pair("a", STRING, text(b"\xff\xfe"))), "not UTF-8"),
    "bad UTF-8 key": (container(text(b"\xff") + struct.pack("<IB", U8, 0) + bytes(9)), "not UTF-8"),
    "unknown type": (container(pair("a", 13, bytes(8))), "unknown metadata type 13"),
    "unknown item type": (container(pair("a", ARRAY, array(99, 1, bytes(8)))), "unknown metadata type 99"),
    "truth value of 2": (container(pair("a", BOOL, b"\2")), "truth value"),
    "array of 2^64-1": (container(pair("a", ARRAY, array(U8, HUGE))), "array items"),
    "array of 2^61 words": (container(pair("a", ARRAY, array(12, 2**61, bytes(64)))), "array items"),
    "array of too many words": (container(pair("a", ARRAY, array(12, 40, bytes(64)))), "ends inside"),
    "array of too many strings": (container(pair("a", ARRAY, array(STRING, 99, bytes(64)))), "array items"),
    "endless depth": (container(pair("a", ARRAY, array(ARRAY, 1) * 50)), "nested more than 4"),
    "same key twice": (container(pair("a", U8, b"\0"), pair("a", U8, b"\0")), "'a' stands twice"),
    "alignment 0": (container(pair("general.alignment", U32, struct.pack("<I", 0))), "general.alignment is 0"),
    "alignment 3": (container(pair("general.alignment", U32, struct.pack("<I", 3))), "general.alignment is 3"),
    "alignment 2^31": (container(pair("general.alignment", U32, struct.pack("<I", 2**31))), "general.alignment"),
    "alignment as text": (container(pair("general.alignment", STRING, text("32"))), "general.alignment is '32'"),
    "alignment as float": (container(pair("general.alignment", F32, struct.pack("<f", 32))), "general.alignment"),
    "2^32-1 dimensions": (container(tensors=(entry("t", (1, 1), n_dims=2**32 - 1),)), "4294967295 dimensions"),
    "5 dimensions": (container(tensors=(entry("t", (1,) * 5),), data=bytes(64)), "5 dimensions"),
    "dimension 0": (container(tensors=(entry("t", (0, 4)),), data=bytes(64)), "dimension of 0"),
    "product 2^64": (container(tensors=(entry("t", (2**32, 2**32)),), data=bytes(64)), "past the file"),
    "product wraps to 16": (container(tensors=(entry("t", (2**62 + 1, 16)),), data=bytes(64)), "past the file"),
    "type unknown": (container(tensors=(entry("t", (4,), kind=4),), data=bytes(64)), "unknown type 4"),
    "broken block": (container(tensors=(entry("t", (33,), kind=3),), data=bytes(64)), "broken Q4_1 blocks"),
    "scalar of blocks": (container(tensors=(entry("t", (), kind=3),), data=bytes(64)), "broken Q4_1 blocks"),
    "offset 2^64-32": (container(tensors=(entry("t", (4,), offset=2**64 - 32),), data=bytes(64)), "past the file"),
    "offset not aligned": (container(tensors=(entry("t", (4,), offset=4),), data=bytes(64)), "not a multiple of 32"),
    "offset past the end": (container(tensors=(entry("t", (4,), offset=64),), data=bytes(64)), "ends 16 bytes past"),
    "one byte short": (container(tensors=(entry("t", (4,)),), data=bytes(15)), "ends 1 bytes past"),
    "same tensor twice": (container(tensors=(entry("t", (4,)),) * 2, data=bytes(64)), "'t' stands twice"),
    "overlap": (container(tensors=(entry("t", (16,)), entry("u", (4,), offset=32)), data=bytes(64)), "lies over"),
    "same place": (container(tensors=(entry("t", (4,)), entry("u", (4,))), data=bytes(64)), "lies over"),
}


@pytest.mark.parametrize(("content", "what"), LIES.values(), ids=LIES.keys())
def test_lies_are_refused_in_one_line(write: Callable[[bytes], Path], content: bytes, what: str) -> None:
    path = write(content)
    tracemalloc.start()
    try:
        with pytest.raises(FormatError, match=what) as caught:
            GgufFile.open(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    assert len(message) < 600
    assert peak < 2 << 20


def test_many_items_are_bounded_in_the_whole_file(
    write: Callable[[bytes], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("langwright.core.gguf_file.MAX_ITEMS", 100)
    rows = array(U8, 60, bytes(60))
    assert len(GgufFile.open(write(container(pair("a", ARRAY, rows)))).metadata["a"]) == 60
    with pytest.raises(FormatError, match="more than 100 metadata items"):
        GgufFile.open(write(container(pair("a", ARRAY, rows), pair("b", ARRAY, rows))))


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        GgufFile.open(tmp_path / "absent.gguf")
    with pytest.raises(UserError, match="not a file"):
        GgufFile.open(tmp_path)


def survives(path: Path) -> bool:
    """Open ``path`` and touch everything; False when a one-line `FormatError` refused it. Any other error gets out."""
    try:
        with GgufFile.open(path) as file:
            for name, tensor in file.tensors.items():
                block, block_bytes = next(sizes for kind, *sizes in BLOCKS.values() if kind == tensor.type)
                assert file.raw(name).size == tensor.bytes == prod(tensor.shape) // block * block_bytes
                file.raw(name).sum()
        return True
    except FormatError as error:
        if "\n" in str(error):
            raise
        return False


def test_every_truncation_is_refused(sample: Path, write: Callable[[bytes], Path]) -> None:
    content = sample.read_bytes()
    tensors = GgufFile.open(sample).tensors.values()
    end = max(tensor.offset + tensor.bytes for tensor in tensors)
    start = min(tensor.offset for tensor in tensors)
    assert survives(write(content[:end]))
    for length in [*range(start), *range(start, end, 7), end - 1]:
        assert not survives(write(content[:length])), length


def test_flipped_bits_never_do_worse_than_a_refusal(sample: Path, write: Callable[[bytes], Path]) -> None:
    content = sample.read_bytes()
    rng = random.Random(0)
    refused = peak = 0
    tracemalloc.start()
    for attempt in range(3000):
        if attempt == 400:  # watching every allocation is slow
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        damaged = bytearray(content)
        for _ in range(rng.choice((1, 1, 1, 4))):
            bit = rng.randrange(8 * len(content))
            damaged[bit // 8] ^= 1 << bit % 8
        refused += not survives(write(bytes(damaged)))
    assert refused > 300
    assert peak < 4 << 20
