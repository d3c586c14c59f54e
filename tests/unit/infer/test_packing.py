"""Matrices in 8 and 4 bits: what they stand for, what is taken without loss, and what is refused."""

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, quants
from hypothesis import given, settings
from hypothesis import strategies as st

from langwright.core.errors import UserError
from langwright.infer.packing import pack_blocks, pack_floats, unpack
from langwright.model.checkpoint.fill import Blocks


def draw(rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def blocks_of(weight: torch.Tensor, kind: str) -> tuple[Blocks, torch.Tensor]:
    """What gguf's reference makes of ``weight``, and the numbers that it says these blocks are."""
    stored = quants.quantize(weight.numpy(), GGMLQuantizationType[kind])
    return Blocks(kind, torch.from_numpy(stored)), torch.from_numpy(
        quants.dequantize(stored, GGMLQuantizationType[kind])
    )


@given(rows=st.integers(1, 70), groups=st.integers(1, 4), bits=st.sampled_from((4, 8)), seed=st.integers(0, 99))
@settings(max_examples=20, deadline=None)
def test_rounding_is_to_the_nearest_or_better(rows, groups, bits, seed):
    weight = draw(rows, groups * 32, seed)
    found = unpack(pack_floats(weight, bits))
    assert found.shape == weight.shape
    if bits == 8:
        assert bool(((found - weight).abs() <= weight.abs().amax(1, keepdim=True) / 127 * 0.501).all())
        return
    parts = weight.unflatten(1, (-1, 32))
    least, scale = parts.amin(-1, keepdim=True), (parts.amax(-1, keepdim=True) - parts.amin(-1, keepdim=True)) / 15
    scale, least = scale.half().float(), least.half().float()  # as they are kept
    plain = ((parts - least) / scale).round().clamp(0, 15) * scale + least
    errors = [(each.unflatten(1, (-1, 32)) - parts).square().mean(-1) for each in (found, plain.flatten(1))]
    assert float(errors[0].mean()) <= float(errors[1].mean()) * 1.001
    assert bool((errors[0] <= errors[1] * 1.1).all())


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "Q4_1"])
def test_ggmls_blocks_are_taken_without_loss(kind):
    blocks, expected = blocks_of(draw(45, 96), kind)
    packed = pack_blocks(blocks, "file")
    assert packed is not None
    assert torch.equal(unpack(packed), expected)


def test_a_code_that_cannot_be_negated_is_left_to_rounding():
    blocks, _ = blocks_of(draw(1, 32), "Q8_0")
    blocks.rows[0, 5] = 0x80
    assert pack_blocks(blocks, "file") is None


def test_constant_groups_and_zeros_are_exact():
    for weight in (torch.zeros(3, 64), torch.full((3, 64), 0.5), torch.full((3, 64), -1.0)):
        for bits in (4, 8):
            torch.testing.assert_close(unpack(pack_floats(weight, bits)), weight, rtol=1e-6, atol=0)


def test_what_cannot_be_packed_is_refused():
    with pytest.raises(UserError, match="multiple of 32"):
        pack_floats(draw(4, 40), 8)
    for bits in (4, 8):
        for bad in (torch.nan, torch.inf):
            weight = draw(4, 32)
            weight[2, 3] = bad
            with pytest.raises(UserError, match="not finite"):
                pack_floats(weight, bits)


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "Q4_1"])
def test_a_scale_that_is_no_number_is_refused(kind):
    blocks, _ = blocks_of(draw(2, 64), kind)
    blocks.rows[1, :2] = torch.from_numpy(np.array([np.nan], np.float16).view(np.uint8))
    with pytest.raises(UserError, match="file: .* not finite"):
        pack_blocks(blocks, "file")
