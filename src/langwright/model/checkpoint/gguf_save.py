"""Decoders into GGUF files: what llama.cpp's converter would write, and `gguf_model.load_gguf` reads.

Before anything is written the metadata is read back as a configuration, so what GGUF has no words for is refused.
"""

from collections.abc import Iterator, Mapping
from math import prod
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from langwright.core.errors import UserError
from langwright.core.files import explained
from langwright.core.gguf_file import BLOCKS, GgufFile, GgufTensor
from langwright.model.adapters.attach import is_plain
from langwright.model.checkpoint.gguf_model import ARCHITECTURES, GPT2_KEYS, KEYS, name_table, read_gguf_config
from langwright.model.config import LinearScaling, Llama3Scaling, ModelConfig, Rope, YarnScaling
from langwright.model.families import FAMILIES
from langwright.model.families.base import NOT_IN_FORWARD
from langwright.model.model import Model, count_parameters
from langwright.model.positions import rotary_rates
from langwright.model.rename import Rule, bind, join

Stored = Literal["float32", "float16", "bfloat16", "q8_0"]
TYPES: Mapping[str, tuple[str, int]] = {
    "float32": ("F32", 0),
    "float16": ("F16", 1),
    "bfloat16": ("BF16", 32),
    "q8_0": ("Q8_0", 7),
}
"""ggml's type of the matrices, and the number by which llama.cpp calls such a file."""
ARCHITECTURE_OF = {theirs: ours for ours, theirs in ARCHITECTURES.items()} | {"mistral": "llama"}
_NOT_COMPARED = NOT_IN_FORWARD | {"family", "bos_id", "eos_ids", "pad_id", "n_labels", "labels"}
_ROWS = 4096
"""Rows of a matrix that are quantised at a time: the library's temporaries are several times as large."""


def save_gguf(
    model: Model,
    path: Path,
    tokenizer: Mapping[str, Any],
    *,
    dtype: Stored = "float32",
    about: Mapping[str, Any] | None = None,
) -> None:
    """Write ``model`` with the metadata of its ``tokenizer`` (`langwright.tokenizer.gguf.tokenizer_to_gguf`).

    Matrices are stored as ``dtype`` (with q8_0 as float16 where rows do not divide into blocks of 32), vectors and
    position tables in float32. ``about`` are further keys, such as ``general.license``. For a file that appears whole
    or not at all write to a `core.files.atomic_file`. Raises `UserError` for a model that is no decoder, whose family
    llama.cpp does not know, or that says what GGUF cannot; ValueError for a model with adapters.
    """
    if not is_plain(model):
        raise ValueError("the model has adapters or a quantised base; write what fuse gives")
    config, arch = model.config, gguf_architecture(model)
    family = FAMILIES[config.family]
    factors = _rope_factors(config)
    metadata = _metadata(model, arch, dtype) | dict(tokenizer) | dict(about or {})
    parameters = dict(model.named_parameters())
    name_of = name_table(arch, config)
    rules = [
        Rule(item.theirs, item.ours, "same" if item.layout == "transposed" else item.layout)
        for item in bind(family.rules + family.heads["causal_lm"], config, parameters)
    ]
    shapes = {item: (sum(len(parameters[n]) for n in item.ours), *parameters[item.ours[0]].shape[1:]) for item in rules}
    types = {name_of(item.theirs): _type_of(name_of(item.theirs), shapes[item], dtype) for item in rules}
    tensors = {name_of(item.theirs): shapes[item] for item in rules}
    if factors is not None:
        tensors = {"rope_freqs.weight": tuple(factors.shape)} | tensors
        types["rope_freqs.weight"] = "F32"
    _check_written(path, config, metadata, tensors, factors)

    def arrays() -> Iterator[np.ndarray]:
        if factors is not None:
            yield factors.numpy()
        for item in rules:
            parts = [parameters[name].detach().float().cpu() for name in item.ours]
            name = name_of(item.theirs)
            yield _encode(_redo(join(item, parts, config), item, config), types[name], name)

    _write(path, arch, metadata, tensors, types, arrays())


def gguf_architecture(model: Model) -> str:
    """llama.cpp's name for what ``model`` is; raises `UserError` for an encoder, a classifier, and unknown families."""
    known = {name: ARCHITECTURE_OF.get(family.model_types[0]) for name, family in FAMILIES.items()}
    arch = known[model.config.family]
    if arch is None or model.head_kind != "causal_lm":
        what = f"a {model.config.family} model" if arch is None else f"a model with a {model.head_kind} head"
        able = ", ".join(sorted(name for name, there in known.items() if there))
        raise UserError(f"{what} has no form in a GGUF file here (decoders of {able} have); use --format hf")
    return arch


def _metadata(model: Model, arch: str, dtype: Stored) -> dict[str, Any]:
    """General and architecture's keys; the latter are the inverse of how they are read."""
    from gguf import size_label

    config = model.config
    values = FAMILIES[config.family].config_to_hf(config, "causal_lm")
    keys = GPT2_KEYS if arch == "gpt2" else KEYS
    own = {key: values[theirs] for key, theirs in keys.items() if values.get(theirs) is not None}
    if arch != "gpt2":
        own |= {"attention.value_length": config.d_head, "rope.dimension_count": config.d_head}
    if any(spec.window for spec in config.layer_specs.values()) and not arch.startswith("gemma"):
        raise UserError(f"llama.cpp has no sliding windows for {config.family}; use --format hf")
    scaling = _full_rope(config).scaling if config.positions == "rotary" else None
    if isinstance(scaling, LinearScaling | YarnScaling):
        own |= {"rope.scaling.type": scaling.kind, "rope.scaling.factor": float(scaling.factor)}
        if isinstance(scaling, YarnScaling):
            own["rope.scaling.original_context_length"] = scaling.original_positions
    elif scaling is not None and not isinstance(scaling, Llama3Scaling):
        raise UserError(f"a GGUF file cannot say rotary scaling {scaling.kind!r}; use --format hf")
    total = count_parameters(model)
    return {
        "general.architecture": arch,
        "general.type": "model",
        "general.size_label": size_label(total, 0, 0, 0),
        "general.file_type": TYPES[dtype][1],
        "general.quantization_version": 2,
        **{f"{arch}.{key}": value for key, value in own.items()},
        f"{arch}.vocab_size": config.vocab_size,
    }


def _full_rope(config: ModelConfig) -> Rope:
    """Of the layers that see everything: those that a scaling is for."""
    spec = config.layer_specs.get("full") or config.layer_specs[config.layer_types[-1]]
    assert spec.rope is not None
    return spec.rope


def _rope_factors(config: ModelConfig) -> Tensor | None:
    """Llama 3's scaling as divisors of the frequencies, (E/2,), which is how llama.cpp has it; None for others."""
    if config.positions != "rotary" or not isinstance(scaling := _full_rope(config).scaling, Llama3Scaling):
        return None
    rope, device = _full_rope(config), torch.device("cpu")
    plain, _ = rotary_rates(rope.replace(scaling=None), config.d_head, 0, device)
    scaled, _ = rotary_rates(rope, config.d_head, 0, device)
    factors = plain / scaled
    whole = torch.isclose(factors, torch.tensor(scaling.factor), rtol=1e-5)
    return torch.where(whole, torch.tensor(scaling.factor), factors)


def _type_of(name: str, shape: tuple[int, ...], dtype: Stored) -> str:
    if len(shape) == 1 or name == "position_embd.weight":
        return "F32"
    kind = TYPES[dtype][0]
    return "F16" if kind == "Q8_0" and shape[-1] % 32 else kind


def _check_written(
    path: Path,
    config: ModelConfig,
    metadata: Mapping[str, Any],
    tensors: Mapping[str, tuple[int, ...]],
    factors: Tensor | None,
) -> None:
    """Read the metadata back as `load_gguf` would; raises `UserError` for what is lost on the way."""
    data = np.zeros(0, np.uint8) if factors is None else factors.numpy().view(np.uint8)
    entries = {name: GgufTensor(name, shape, "F32", 0, 4 * prod(shape)) for name, shape in tensors.items()}
    try:
        _, again = read_gguf_config(GgufFile(path, data, dict(metadata), entries), path)
    except UserError as error:
        raise UserError(f"a GGUF file has no words for this {config.family} model: {error}; use --format hf") from None
    for name in ModelConfig.model_fields:
        if name not in _NOT_COMPARED and getattr(again, name) != getattr(config, name):
            raise UserError(f"a GGUF file cannot say {name} = {getattr(config, name)!r:.80}; use --format hf")


def _redo(tensor: Tensor, item: Rule, config: ModelConfig) -> Tensor:
    """Change one tensor as llama.cpp wants it; the inverse of what `load_gguf` undoes."""
    if config.family in ("llama", "mistral") and item.theirs.split(".")[-2] in ("q_proj", "k_proj"):
        heads = config.n_heads if "q_proj" in item.theirs else config.n_kv_heads
        halves = tensor.unflatten(0, (heads, 2, config.d_head // 2))  # (H, 2, E/2, ...)
        return halves.transpose(1, 2).flatten(0, 2)
    if config.family.startswith("gemma") and item.theirs.endswith("norm.weight"):
        return tensor + 1
    return tensor


def _encode(tensor: Tensor, kind: str, name: str) -> np.ndarray:
    """The bytes of ``tensor`` (float32) stored as ``kind``."""
    if kind == "F32":
        return tensor.contiguous().numpy()
    if kind == "BF16":
        return tensor.bfloat16().contiguous().view(torch.int16).numpy()
    if kind == "F16":
        half = tensor.half().contiguous()
        if not torch.isfinite(half).all():
            raise UserError(f"{name} holds numbers beyond float16's 65,504; use --dtype bfloat16")
        return half.numpy()
    from gguf import GGMLQuantizationType
    from gguf.quants import quantize

    rows = tensor.contiguous().split(_ROWS)
    return np.concatenate([quantize(part.numpy(), GGMLQuantizationType[kind]) for part in rows])


def _write(
    path: Path,
    arch: str,
    metadata: Mapping[str, Any],
    tensors: Mapping[str, tuple[int, ...]],
    types: Mapping[str, str],
    arrays: Iterator[np.ndarray],
) -> None:
    """The container, by the gguf library, one tensor in memory at a time."""
    from gguf import GGMLQuantizationType, GGUFValueType, GGUFWriter

    kinds = {
        bool: GGUFValueType.BOOL,
        int: GGUFValueType.UINT32,
        float: GGUFValueType.FLOAT32,
        str: GGUFValueType.STRING,
        list: GGUFValueType.ARRAY,
    }
    sizes = {kind: (block, block_bytes) for kind, block, block_bytes in BLOCKS.values()}
    writer = GGUFWriter(path, arch)
    try:
        for key, value in metadata.items():
            if key != "general.architecture":  # the library's own
                writer.add_key_value(key, value, kinds[type(value)])
        for name, shape in tensors.items():
            block, block_bytes = sizes[types[name]]
            size = prod(shape) // block * block_bytes
            writer.add_tensor_info(name, shape, np.dtype(np.float32), size, GGMLQuantizationType[types[name]])
        with explained(path):
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_ti_data_to_file()
            for array in arrays:
                writer.write_tensor_data(array)
    finally:
        writer.close()
