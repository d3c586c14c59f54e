"""From ggml's block formats to torch weights, a bounded piece at a time.

The arithmetic is the gguf library's (`gguf.quants.dequantize`, the reference implementation in numpy). What is ours is
the feeding: handed whole tensors, the library returns a whole fp32 copy of each, so it is handed one long row of at
most `PIECE` elements, and each result goes straight into the destination.
"""

from collections.abc import Sequence
from math import prod

import numpy as np
import torch

from langwright.core.errors import FormatError
from langwright.core.gguf_file import BLOCKS

# Elements. Larger temporaries go back to the system after every piece and are faulted in again (four times slower), and
# torch wakes all its threads to copy more than this at once (seconds, on a busy machine).
PIECE = 1 << 15
PLAIN: dict[str, torch.dtype] = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
SUPPORTED = (*PLAIN, "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q4_K", "Q5_K", "Q6_K")


def dequantise(
    raw: np.ndarray,
    type: str,
    shape: Sequence[int],
    out: torch.Tensor | None = None,
    *,
    name: str = "tensor",
) -> torch.Tensor:
    """The weights that ``raw`` (uint8, one dimension) stores as ``type`` (ggml's name), written into ``out``.

    ``shape`` is row-major. ``out`` is a contiguous tensor of that shape, any floating dtype, any device (None: a new
    fp32 tensor on the CPU); it is returned. Values are exact in fp32 and rounded once to the dtype of ``out``. Raises
    `FormatError` naming ``name`` when the type is not supported or the bytes do not fill the shape.
    """
    if type not in SUPPORTED:
        raise FormatError(f"{name}: stored as {type}, which cannot be read; convert to one of {', '.join(SUPPORTED)}")
    block, block_bytes = next(sizes for known, *sizes in BLOCKS.values() if known == type)
    if prod(shape) % block or raw.size != prod(shape) // block * block_bytes:
        raise FormatError(f"{name}: {raw.size} bytes of {type} do not make a tensor of shape {tuple(shape)}")
    if out is None:
        out = torch.empty(tuple(shape))
    assert out.shape == tuple(shape), f"{name}: out has the shape {tuple(out.shape)}, not {tuple(shape)}"
    flat = out.detach().view(-1)
    piece = PIECE // block * block
    for start in range(0, flat.numel(), piece):
        stop = min(start + piece, flat.numel())
        part = raw[start // block * block_bytes : stop // block * block_bytes]
        flat[start:stop].copy_(_decode(part, type))
    return out


def _decode(part: np.ndarray, type: str) -> torch.Tensor:
    """The elements of ``part``, one dimension: fp32 for block formats, their own dtype for plain ones."""
    if type in PLAIN:
        return torch.from_numpy(part.copy()).view(PLAIN[type])  # a copy, as torch takes no read-only memory
    from gguf import GGMLQuantizationType  # 0.1 s of imports that folders of safetensors never need
    from gguf.quants import dequantize

    with np.errstate(all="ignore"):  # a scale may be infinite; the result says so without numpy's warning
        return torch.from_numpy(dequantize(part.reshape(1, -1), GGMLQuantizationType[type])[0])
