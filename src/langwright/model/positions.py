"""Where a token stands: sinusoidal and rotary tables. Positions are always explicit integers, never implied."""

import math

import torch
from torch import Tensor

from langwright.model.config import (
    DynamicScaling,
    LinearScaling,
    Llama3Scaling,
    Rope,
    YarnScaling,
)
from langwright.model.kernels import Rotation, by_hand


def sinusoid(positions: Tensor, d_model: int) -> Tensor:
    """Sine and cosine interleaved (Vaswani et al. 2017, section 3.5): ``positions`` (B, T) -> (B, T, D) float32."""
    rate = torch.exp(torch.arange(0, d_model, 2, device=positions.device).float() * (-math.log(10_000.0) / d_model))
    angle = positions[..., None].float() * rate  # (B, T, D/2)
    return torch.stack((angle.sin(), angle.cos()), dim=-1).flatten(-2)  # (B, T, D)


def _yarn(rate: Tensor, theta: float, size: int, scaling: YarnScaling) -> tuple[Tensor, float]:
    def dimension(rotations: float) -> float:
        """The (fractional) dimension that turns ``rotations`` times within the original context."""
        return size * math.log(scaling.original_positions / (rotations * 2 * math.pi)) / (2 * math.log(theta))

    low, high = dimension(scaling.beta_fast), dimension(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, size - 1)
    ramp = (torch.arange(size // 2, device=rate.device).float() - low) / (high - low or 0.001)
    keep = 1 - ramp.clamp(0, 1)
    blended = rate / scaling.factor * (1 - keep) + rate * keep

    def mscale(weight: float = 1.0) -> float:
        return 1.0 if scaling.factor <= 1 else 0.1 * weight * math.log(scaling.factor) + 1.0

    if scaling.attention_factor is not None:
        return blended, scaling.attention_factor
    if scaling.mscale and scaling.mscale_all_dim:
        return blended, mscale(scaling.mscale) / mscale(scaling.mscale_all_dim)
    return blended, mscale()


def _llama3(rate: Tensor, scaling: Llama3Scaling) -> Tensor:
    wavelength = 2 * math.pi / rate
    long_wave = scaling.original_positions / scaling.low_freq_factor
    short_wave = scaling.original_positions / scaling.high_freq_factor
    smooth = (scaling.original_positions / wavelength - scaling.low_freq_factor) / (
        scaling.high_freq_factor - scaling.low_freq_factor
    )
    blended = (1 - smooth) * rate / scaling.factor + smooth * rate
    out = torch.where(wavelength > long_wave, rate / scaling.factor, rate)
    return torch.where((wavelength <= long_wave) & (wavelength >= short_wave), blended, out)


def rotary_rates(rope: Rope, d_head: int, longest: int, device: torch.device) -> tuple[Tensor, float]:
    """Radians a position of each rotated pair, (R/2,) float32, and the factor on the tables.

    ``longest`` is the number of positions in use; only dynamic scaling depends on it.
    """
    size = int(d_head * rope.fraction)  # R: rotated dimensions
    theta, scaling = rope.theta, rope.scaling
    if isinstance(scaling, DynamicScaling) and longest > scaling.original_positions:
        stretch = scaling.factor * longest / scaling.original_positions - (scaling.factor - 1)
        theta = theta * stretch ** (size / (size - 2))
    rate = 1.0 / theta ** (torch.arange(0, size, 2, device=device).float() / size)
    if isinstance(scaling, LinearScaling):
        return rate / scaling.factor, 1.0
    if isinstance(scaling, Llama3Scaling):
        return _llama3(rate, scaling), 1.0
    if isinstance(scaling, YarnScaling):
        return _yarn(rate, theta, size, scaling)
    return rate, 1.0


def rotary_tables(rope: Rope, d_head: int, positions: Tensor, longest: int) -> tuple[Tensor, Tensor]:
    """Cosine and sine tables, each (B, 1, T, R) float32, for ``positions`` (B, T)."""
    rate, factor = rotary_rates(rope, d_head, longest, positions.device)
    angle = positions[:, None, :, None].float() * rate  # (B, 1, T, R/2)
    angle = torch.cat((angle, angle), dim=-1)  # (B, 1, T, R)
    return angle.cos() * factor, angle.sin() * factor


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the first R of the E dimensions of ``x`` (B, H, T, E) by the tables (B, 1, T, R), pairs (i, i + R/2)."""
    size = cos.shape[-1]
    if size == x.shape[-1] and by_hand(x):
        return Rotation.apply(x, cos.to(x.dtype), sin.to(x.dtype))
    turned, kept = x[..., :size], x[..., size:]
    first, second = turned.chunk(2, dim=-1)
    swapped = torch.cat((-second, first), dim=-1)
    turned = turned * cos.to(x.dtype) + swapped * sin.to(x.dtype)
    return turned if not kept.shape[-1] else torch.cat((turned, kept), dim=-1)
