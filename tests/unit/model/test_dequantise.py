"""Dequantising: bit for bit the gguf library's, and near a plain twin written from ggml's description of the blocks."""

import math
import struct
import tracemalloc
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch

from langwright.core.errors import FormatError
from langwright.core.gguf_file import BLOCKS, GgufFile
from langwright.model.checkpoint import dequantise as module
from langwright.model.checkpoint.dequantise import PLAIN, SUPPORTED, dequantise

SIZES = {name: (block, size) for name, block, size in BLOCKS.values()}
QUANTISED = [name for name in SUPPORTED if name not in PLAIN]


def random_blocks(kind: str, rows: int, per_row: int, seed: int = 0) -> tuple[np.ndarray, tuple[int, int]]:
    """Random bytes as blocks of ``kind``, their fp16 scales finite."""
    block, size = SIZES[kind]
    raw = np.random.default_rng(seed).integers(0, 256, (rows * per_row, size), dtype=np.uint8)
    scales = {"Q6_K": (208,)}.get(kind, (0, 2) if kind in ("Q4_1", "Q5_1", "Q4_K", "Q5_K") else (0,))
    for at in scales:
        raw[:, at + 1] &= 0xBF  # the top bit of the exponent: below 2, never infinite or NaN
    return raw.reshape(-1), (rows, per_row * block)


def library(raw: np.ndarray, kind: str, shape: tuple[int, ...]) -> np.ndarray:
    block, size = SIZES[kind]
    rows = raw.reshape(shape[0], shape[1] // block * size)
    return gguf.quants.dequantize(rows, gguf.GGMLQuantizationType[kind])


@pytest.mark.parametrize("kind", SUPPORTED)
@pytest.mark.parametrize("piece", [256, 1 << 15])
def test_equals_the_library_bit_for_bit(kind: str, piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PIECE", piece)
    raw, shape = random_blocks(kind, rows=37, per_row=256 if kind in PLAIN else 3)
    if kind == "F32":
        raw = np.random.default_rng(1).standard_normal(raw.size // 4, dtype=np.float32).view(np.uint8)
    ours = dequantise(raw, kind, shape)
    assert ours.dtype == torch.float32
    np.testing.assert_array_equal(ours.numpy().view(np.uint32), library(raw, kind, shape).view(np.uint32))


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # the library's own, when called directly
@pytest.mark.parametrize("kind", QUANTISED)
@pytest.mark.parametrize("byte", [0x00, 0x01, 0x7B, 0x7C, 0x7F, 0x80, 0xFC, 0xFF])
def test_extreme_bytes(kind: str, byte: int) -> None:
    block, size = SIZES[kind]
    raw = np.full(4 * size, byte, dtype=np.uint8)
    np.testing.assert_array_equal(dequantise(raw, kind, (4, block)).numpy(), library(raw, kind, (4, block)))


@pytest.mark.parametrize("kind", QUANTISED)
def test_agrees_with_the_plain_twin(kind: str) -> None:
    raw, shape = random_blocks(kind, rows=3, per_row=2, seed=1)
    size = SIZES[kind][1]
    expected = [x for start in range(0, raw.size, size) for x in TWINS[kind](raw[start : start + size].tobytes())]
    np.testing.assert_allclose(dequantise(raw, kind, shape).numpy().reshape(-1), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", PLAIN)
def test_plain_types_keep_their_values(kind: str) -> None:
    values = torch.tensor([0.0, -0.0, 1.5, -3.25, math.inf, 2.0**-20, 65504.0, 0.1]).to(PLAIN[kind])
    raw = values.view(torch.uint8).numpy()
    assert torch.equal(dequantise(raw, kind, (2, 4)), values.float().view(2, 4))
    same = torch.empty(2, 4, dtype=PLAIN[kind])
    assert torch.equal(dequantise(raw, kind, (2, 4), same), values.view(2, 4))


def test_writes_into_the_destination_and_rounds_once() -> None:
    raw, shape = random_blocks("Q4_1", rows=4, per_row=2)
    exact = dequantise(raw, "Q4_1", shape)
    whole = torch.zeros(6, 64, dtype=torch.bfloat16)
    out = whole[1:5]
    assert dequantise(raw, "Q4_1", shape, out) is out
    assert torch.equal(whole[1:5], exact.bfloat16())
    assert not whole[0].any()
    assert not whole[5].any()
    parameter = torch.nn.Parameter(torch.zeros(shape))
    dequantise(raw, "Q4_1", shape, parameter)
    assert torch.equal(parameter.detach(), exact)


def test_extra_memory_is_bounded() -> None:
    raw, shape = random_blocks("Q4_1", rows=1024, per_row=512)  # 16 M weights: 64 MiB in fp32
    out = torch.empty(shape)
    dequantise(raw[: SIZES["Q4_1"][1]], "Q4_1", (1, 32))  # imports are not what is measured
    tracemalloc.start()
    dequantise(raw, "Q4_1", shape, out)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 << 20


def test_unsupported_types_and_wrong_sizes_are_named() -> None:
    with pytest.raises(FormatError, match=r"blk\.0\.x: stored as IQ2_XXS, which cannot be read; convert to one of F32"):
        dequantise(np.zeros(66, np.uint8), "IQ2_XXS", (1, 256), name="blk.0.x")
    with pytest.raises(FormatError, match="blk: 17 bytes of Q4_0"):
        dequantise(np.zeros(17, np.uint8), "Q4_0", (1, 32), name="blk")
    with pytest.raises(FormatError, match="do not make a tensor"):
        dequantise(np.zeros(18, np.uint8), "Q4_0", (1, 33))


def test_a_library_file_comes_back_as_it_was_quantised(tmp_path: Path) -> None:
    weights = np.random.default_rng(0).standard_normal((6, 96), dtype=np.float32)
    path = tmp_path / "model.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    for kind in ("Q8_0", "Q5_1", "Q4_1", "BF16"):
        member = gguf.GGMLQuantizationType[kind]
        writer.add_tensor(kind, gguf.quants.quantize(weights, member), raw_dtype=member)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with GgufFile.open(path) as file:
        for name, tensor in file.tensors.items():
            back = dequantise(file.raw(name), tensor.type, tensor.shape)
            error = (back - torch.from_numpy(weights)).abs().max().item()
            assert error < {"Q8_0": 0.02, "Q5_1": 0.12, "Q4_1": 0.25, "BF16": 0.02}[name]


# The plain twins: one block of bytes -> its values, in Python's double precision, following ggml's block layouts.


def f16(block: bytes, at: int) -> float:
    return struct.unpack_from("<e", block, at)[0]


def low_high(packed: bytes) -> list[int]:
    return [byte & 15 for byte in packed] + [byte >> 4 for byte in packed]


def fifth_bits(block: bytes, at: int) -> list[int]:
    bits = struct.unpack_from("<I", block, at)[0]
    return [(bits >> i & 1) << 4 for i in range(32)]


def q4_0(b: bytes) -> list[float]:
    return [f16(b, 0) * (q - 8) for q in low_high(b[2:])]


def q4_1(b: bytes) -> list[float]:
    return [f16(b, 0) * q + f16(b, 2) for q in low_high(b[4:])]


def q5_0(b: bytes) -> list[float]:
    return [f16(b, 0) * ((q | top) - 16) for q, top in zip(low_high(b[6:]), fifth_bits(b, 2), strict=True)]


def q5_1(b: bytes) -> list[float]:
    return [f16(b, 0) * (q | top) + f16(b, 2) for q, top in zip(low_high(b[8:]), fifth_bits(b, 4), strict=True)]


def q8_0(b: bytes) -> list[float]:
    return [f16(b, 0) * q for q in struct.unpack_from("<32b", b, 2)]


def scale_and_minimum(packed: bytes, group: int) -> tuple[int, int]:
    """Eight 6-bit scales and eight 6-bit minima share twelve bytes."""
    if group < 4:
        return packed[group] & 63, packed[group + 4] & 63
    low = packed[group + 4]
    return low & 15 | packed[group - 4] >> 6 << 4, low >> 4 | packed[group] >> 6 << 4


def q45_k(b: bytes, top_bits: bytes, packed: bytes) -> list[float]:
    values = []
    for group in range(8):
        scale, minimum = scale_and_minimum(b[4:16], group)
        part = packed[group // 2 * 32 : group // 2 * 32 + 32]
        for i, byte in enumerate(part):
            q = byte >> 4 if group % 2 else byte & 15
            q |= (top_bits[i] >> group & 1) << 4
            values.append(f16(b, 0) * scale * q - f16(b, 2) * minimum)
    return values


def q4_k(b: bytes) -> list[float]:
    return q45_k(b, bytes(32), b[16:])


def q5_k(b: bytes) -> list[float]:
    return q45_k(b, b[16:48], b[48:])


def q6_k(b: bytes) -> list[float]:
    values = []
    for i in range(256):
        half, quarter, at = i // 128, i % 128 // 32, i % 32
        low = b[64 * half + 32 * (quarter % 2) + at]
        low = low >> 4 if quarter >= 2 else low & 15
        top = b[128 + 32 * half + at] >> 2 * quarter & 3
        scale = struct.unpack_from("<b", b, 192 + i // 16)[0]
        values.append(f16(b, 208) * scale * ((low | top << 4) - 32))
    return values


TWINS = {
    "Q4_0": q4_0,
    "Q4_1": q4_1,
    "Q5_0": q5_0,
    "Q5_1": q5_1,
    "Q8_0": q8_0,
    "Q4_K": q4_k,
    "Q5_K": q5_k,
    "Q6_K": q6_k,
}
