"""Writes GGUF files the way llama.cpp's converter does, from a Hugging Face folder of ours; only tests need it."""

import json
from pathlib import Path

import gguf
import numpy as np
import torch

from langwright.core.safetensors_file import open_weights

ARCHITECTURES = {
    "llama": "llama",
    "mistral": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "gemma2": "gemma2",
    "gemma3_text": "gemma3",
    "gpt2": "gpt2",
}


def permute(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Interleave the two halves of each head's rotated dimensions."""
    return weight.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2)


def convert(folder: Path, out: Path, kind: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.F32) -> None:
    """Matrices are stored as ``kind``, vectors as F32. The tokenizer is a list of invented words."""
    config = json.loads((folder / "config.json").read_text())
    arch = ARCHITECTURES[config["model_type"]]
    writer = gguf.GGUFWriter(out, arch)
    get = config.get
    layers = get("num_hidden_layers") or get("n_layer")
    heads = get("num_attention_heads") or get("n_head")
    kv_heads = get("num_key_value_heads") or heads
    width = get("hidden_size") or get("n_embd")
    writer.add_context_length(get("max_position_embeddings") or get("n_positions"))
    writer.add_embedding_length(width)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(get("intermediate_size") or get("n_inner") or 4 * width)
    writer.add_head_count(heads)
    writer.add_vocab_size(config["vocab_size"])
    if arch == "gpt2":
        writer.add_layer_norm_eps(config["layer_norm_epsilon"])
    else:
        writer.add_head_count_kv(kv_heads)
        writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
        writer.add_key_length(config["head_dim"])
        writer.add_value_length(config["head_dim"])
        rope = config["rope_parameters"]
        writer.add_rope_freq_base(rope.get("full_attention", rope)["rope_theta"])
        if arch == "llama":
            writer.add_rope_dimension_count(config["head_dim"])
    if get("sliding_window"):
        writer.add_sliding_window(config["sliding_window"])
    if get("attn_logit_softcapping"):
        writer.add_attn_logit_softcapping(config["attn_logit_softcapping"])
        writer.add_final_logit_softcapping(config["final_logit_softcapping"])
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([f"w{n}" for n in range(config["vocab_size"])])
    writer.add_token_merges(["w 1"])
    writer.add_bos_token_id(config["bos_token_id"])
    writer.add_eos_token_id(config["eos_token_id"])
    names = gguf.get_tensor_name_map(
        next(member for member, name in gguf.MODEL_ARCH_NAMES.items() if name == arch), layers
    )
    with open_weights(folder) as weights:
        for name in weights.names:
            tensor = weights.tensor(name).float()
            if arch == "llama" and ".q_proj." in name:
                tensor = permute(tensor, heads)
            if arch == "llama" and ".k_proj." in name:
                tensor = permute(tensor, kv_heads)
            if arch.startswith("gemma") and name.endswith("norm.weight"):
                tensor = tensor + 1
            if arch == "gpt2" and name.endswith((".c_attn.weight", ".c_proj.weight", ".c_fc.weight")):
                tensor = tensor.T
            stored = names.get_name(name, try_suffixes=(".weight", ".bias"))
            assert stored, name
            array = np.ascontiguousarray(tensor.numpy())
            as_kind = kind if array.ndim == 2 else gguf.GGMLQuantizationType.F32
            writer.add_tensor(stored, gguf.quants.quantize(array, as_kind), raw_dtype=as_kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
