"""Decoders out of GGUF files, as llama.cpp's converter writes them.

The file's metadata becomes the ``config.json`` it was converted from, so one strict reader serves both; tensor names go
through the gguf library's own table. The converter also changes some weights, which is undone here.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from langwright.core.errors import FormatError, UserError
from langwright.core.gguf_file import GgufFile
from langwright.model.checkpoint.dequantise import dequantise
from langwright.model.checkpoint.fill import Blocks, Pack, check_head, materialise, refuse_unknown
from langwright.model.config import Llama3Scaling, ModelConfig, Rope
from langwright.model.families import find_family
from langwright.model.families.base import Family
from langwright.model.heads import HeadKind
from langwright.model.model import Model, allocate_model
from langwright.model.positions import rotary_rates
from langwright.model.rename import Rule, bind

# GGUF's architecture: Hugging Face's model_type.
ARCHITECTURES = {
    "llama": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "gemma2": "gemma2",
    "gemma3": "gemma3_text",
    "gpt2": "gpt2",
}

# Metadata key (after the architecture's name): config.json key.
KEYS = {
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "block_count": "num_hidden_layers",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "attention.key_length": "head_dim",
    "rope.freq_base": "rope_theta",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
    "attention.sliding_window": "sliding_window",
}
GPT2_KEYS = {
    "context_length": "n_positions",
    "embedding_length": "n_embd",
    "block_count": "n_layer",
    "feed_forward_length": "n_inner",
    "attention.head_count": "n_head",
    "attention.layer_norm_epsilon": "layer_norm_epsilon",
}
"""GPT-2 spells its sizes in its own way."""
BLOCK_TYPES = ("Q4_0", "Q4_1", "Q8_0")
"""Types that quantised inference takes as they are."""
# Metadata that says nothing new: equal to what the other keys imply, or checked apart.
_IMPLIED = {"vocab_size", "rope.dimension_count", "attention.value_length", "attention.head_count_kv"}


def load_gguf(
    path: Path,
    *,
    dtype: torch.dtype,
    device: torch.device | str = "cpu",
    head: HeadKind | None = None,
    pack: Pack | None = None,
) -> Model:
    """The model in a GGUF file, dequantised to ``dtype``; raises `UserError` or `FormatError` naming what is wrong.

    ``pack``: see `materialise`; it is given the stored blocks where they are of `BLOCK_TYPES`.
    """
    with GgufFile.open(path) as file:
        family, config = read_gguf_config(file, path)
        head = head or "causal_lm"
        check_head(family, head, path)
        model = allocate_model(config, head)
        rules = [
            Rule(item.theirs, item.ours, "same" if item.layout == "transposed" else item.layout)
            for item in bind(family.rules + family.heads[head], config, dict(model.named_parameters()))
        ]
        name_of = name_table(str(file.metadata["general.architecture"]), config)
        stored = {item: name_of(item.theirs) for item in rules}
        missing = [item for item in rules if stored[item] not in file.tensors]
        fresh = [name for item in missing for name in item.ours]
        if lost := [item for item in missing if head == "causal_lm" or not item.ours[0].startswith("head.")]:
            raise FormatError(f"{path}: tensor {stored[lost[0]] or lost[0].theirs!r} is missing")
        spare = set(file.tensors) - set(stored.values()) - {"rope_freqs.weight", "output.weight"}
        refuse_unknown(spare, family, path)

        def fetch(item: Rule) -> Tensor:
            found = file.tensors[stored[item]]
            tensor = dequantise(file.raw(found.name), found.type, found.shape, name=f"{path}: {found.name}")
            return _undo(tensor, item, family, config)

        def fetch_blocks(item: Rule) -> Blocks | None:
            found = file.tensors[stored[item]]
            if found.type not in BLOCK_TYPES or item.layout != "same":
                return None
            rows = torch.from_numpy(file.raw(found.name).reshape(found.shape[0], -1).copy())
            return Blocks(found.type, _undo(rows, item, family, config))

        kept = [item for item in rules if item not in missing]
        return materialise(
            model,
            kept,
            lambda item: file.tensors[stored[item]].shape,
            fetch,
            fresh,
            path,
            dtype,
            device,
            pack,
            fetch_blocks,
        )


def read_gguf_config(file: GgufFile, path: Path) -> tuple[Family, ModelConfig]:
    """The family and configuration that a GGUF file's metadata describes."""
    arch = file.metadata.get("general.architecture")
    if arch not in ARCHITECTURES:
        raise UserError(f"{path}: GGUF architecture {arch!r} is not supported (these are: {', '.join(ARCHITECTURES)})")
    if file.metadata.get("split.count", 1) not in (0, 1):
        raise UserError(
            f"{path}: one part of a model split over files; join them first (llama.cpp's gguf-split --merge)"
        )
    keys = GPT2_KEYS if arch == "gpt2" else KEYS
    own = {k.removeprefix(f"{arch}."): v for k, v in file.metadata.items() if k.startswith(f"{arch}.")}
    values: dict[str, Any] = {theirs: _plain(own.pop(key)) for key, theirs in keys.items() if key in own}
    values |= {"model_type": ARCHITECTURES[arch], "vocab_size": _vocabulary(file, path)}
    scaling = _rope_scaling(own, file, values)
    values |= {"rope_scaling": scaling} if scaling else {}
    tied = "output.weight" not in file.tensors
    values |= {"tie_word_embeddings": tied}
    for name in ("bos", "eos", "padding"):
        key = f"tokenizer.ggml.{name}_token_id"
        if key in file.metadata:
            values[f"{name.replace('padding', 'pad')}_token_id"] = file.metadata[key]
    values |= _habits(arch, file, values)
    if left := sorted(set(own) - _IMPLIED):
        raise UserError(f"{path}: metadata {arch}.{left[0]} (= {own[left[0]]!r:.60}) is not understood, so not ignored")
    family = find_family(values, str(path))
    return family, family.config_from_hf(values, str(path))


def _habits(arch: str, file: GgufFile, values: dict[str, Any]) -> dict[str, Any]:
    """What the family's config.json says and GGUF leaves to the architecture's name."""
    if arch == "llama":
        return {
            "attention_bias": "blk.0.attn_q.bias" in file.tensors,
            "mlp_bias": "blk.0.ffn_up.bias" in file.tensors,
        }
    if arch == "qwen2" and "sliding_window" in values:
        return {"use_sliding_window": True}
    if arch in ("gemma2", "gemma3"):
        # GGUF has no key for it; every published model but these two sizes scales by its head size.
        large = {("gemma2", 46): 144, ("gemma3", 62): 168}
        layers = int(values.get("num_hidden_layers", 0))
        return {"query_pre_attn_scalar": large.get((arch, layers), values.get("head_dim", 256))}
    return {}


def _plain(value: Any) -> Any:
    """GGUF stores single precision: 9.9999997e-06 is meant to be 1e-05."""
    return float(str(np.float32(value))) if isinstance(value, float) else value


def _vocabulary(file: GgufFile, path: Path) -> int:
    table = file.tensors.get("token_embd.weight")
    if table is None:
        raise FormatError(f"{path}: tensor 'token_embd.weight' is missing; this is not a language model")
    return table.shape[0]


def _rope_scaling(own: dict[str, Any], file: GgufFile, values: dict[str, Any]) -> dict[str, Any] | None:
    kind = own.pop("rope.scaling.type", None)
    factor = own.pop("rope.scaling.factor", own.pop("rope.scale_linear", None))
    original = own.pop("rope.scaling.original_context_length", None)
    own.pop("rope.scaling.finetuned", None)
    if "rope_freqs.weight" in file.tensors:
        return _llama3_from_factors(file, values)
    if kind in (None, "none"):
        return None
    scaling: dict[str, Any] = {"rope_type": kind, "factor": _plain(factor)}
    return scaling | ({"original_max_position_embeddings": original} if original else {})


def _llama3_from_factors(file: GgufFile, values: dict[str, Any]) -> dict[str, Any]:
    """Llama 3.1's scaling is stored as divisors of the frequencies; find the parameters that give them, or refuse."""
    found = file.tensors["rope_freqs.weight"]
    divisors = dequantise(file.raw(found.name), found.type, found.shape)
    size, theta = 2 * divisors.numel(), float(values.get("rope_theta", 10_000.0))
    guess = Llama3Scaling(
        factor=max(1.0, float(divisors.max())), low_freq_factor=1.0, high_freq_factor=4.0, original_positions=8192
    )
    device = torch.device("cpu")
    plain, _ = rotary_rates(Rope(theta=theta), size, 0, device)
    scaled, _ = rotary_rates(Rope(theta=theta, scaling=guess), size, 0, device)
    if not torch.allclose(plain / scaled, divisors, rtol=1e-3):
        raise UserError("rope_freqs.weight holds rotary divisors that are not Llama 3's; this file is not supported")
    return {
        "rope_type": "llama3",
        "factor": guess.factor,
        "low_freq_factor": guess.low_freq_factor,
        "high_freq_factor": guess.high_freq_factor,
        "original_max_position_embeddings": guess.original_positions,
    }


def name_table(arch: str, config: ModelConfig) -> Callable[[str], str]:
    """From Hugging Face's tensor names to GGUF's."""
    # Imported here: the library takes 0.1 s, and only GGUF files need it.
    from gguf import MODEL_ARCH, MODEL_ARCH_NAMES, get_tensor_name_map

    known = {name: member for member, name in MODEL_ARCH_NAMES.items()}
    table = get_tensor_name_map(MODEL_ARCH(known[arch]), config.n_layers)
    return lambda theirs: table.get_name(theirs, try_suffixes=(".weight", ".bias")) or theirs


def _undo(tensor: Tensor, item: Rule, family: Family, config: ModelConfig) -> Tensor:
    """Take back what the converter did to one tensor."""
    if family.name == "llama" and item.theirs.split(".")[-2] in ("q_proj", "k_proj"):
        # llama.cpp rotates neighbouring pairs for this architecture, so the converter interleaved the two halves.
        heads = config.n_heads if "q_proj" in item.theirs else config.n_kv_heads
        grouped = tensor.unflatten(0, (heads, config.d_head // 2, 2))  # (H, E/2, 2, ...)
        return grouped.transpose(1, 2).flatten(0, 2)
    if family.name.startswith("gemma") and item.theirs.endswith("norm.weight"):
        return tensor - 1  # the converter folds Gemma's 1 + w into w
    return tensor
