"""Small configurations of every decoder family, each with something that another lacks."""

import math
from typing import Any

from langwright.model.config import LayerSpec, ModelConfig

_SIZES = {
    "vocab_size": 97,
    "hidden_size": 48,
    "intermediate_size": 101,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": 0,
}


def _rope(kind: str, **values: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 100.0, **values}}


_LLAMA3 = {
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
_YARN = {"factor": 4.0, "original_max_position_embeddings": 16}
_GPT2 = {"vocab_size": 97, "n_embd": 48, "n_layer": 3, "n_head": 4, "n_positions": 64, "bos_token_id": None} | {
    "eos_token_id": None,
    "pad_token_id": 0,
}
_GEMMA = _SIZES | {"head_dim": 16}

DRAWS: dict[str, dict[str, Any]] = {
    "gpt2": _GPT2 | {"model_type": "gpt2"},
    "gpt2-untied": _GPT2 | {"model_type": "gpt2", "tie_word_embeddings": False, "n_inner": 37, "n_head": 1},
    "gpt2-unscaled": _GPT2 | {"model_type": "gpt2", "scale_attn_weights": False, "activation_function": "gelu"},
    "llama": _SIZES | {"model_type": "llama"},
    "llama-mqa": _SIZES | {"model_type": "llama", "num_key_value_heads": 1, "head_dim": 10, "attention_bias": True},
    "llama-mha": _SIZES
    | {"model_type": "llama", "num_key_value_heads": 4, "mlp_bias": True, "tie_word_embeddings": True},
    "llama-linear": _SIZES
    | {"model_type": "llama", "num_attention_heads": 3, "num_key_value_heads": 3}
    | _rope("linear", factor=2.5),
    "llama-dynamic": _SIZES | {"model_type": "llama", "max_position_embeddings": 9} | _rope("dynamic", factor=3.0),
    "llama-yarn": _SIZES | {"model_type": "llama"} | _rope("yarn", **_YARN),
    "llama-llama3": _SIZES | {"model_type": "llama"} | _rope("llama3", **_LLAMA3),
    "mistral": _SIZES | {"model_type": "mistral", "sliding_window": None, "rms_norm_eps": 1e-5},
    "mistral-window": _SIZES | {"model_type": "mistral", "sliding_window": 5, "head_dim": 14},
    "qwen2": _SIZES | {"model_type": "qwen2", "tie_word_embeddings": True},
    "qwen2-window": _SIZES
    | {"model_type": "qwen2", "use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1},
    "qwen2-yarn": _SIZES
    | {"model_type": "qwen2", "num_attention_heads": 6, "num_key_value_heads": 3}
    | _rope("yarn", **_YARN, truncate=False, beta_fast=8.0),
    "qwen3": _SIZES | {"model_type": "qwen3", "head_dim": 20, "tie_word_embeddings": True},
    "qwen3-bias": _SIZES | {"model_type": "qwen3", "head_dim": 8, "attention_bias": True, "num_key_value_heads": 1},
    "qwen3-window": _SIZES
    | {
        "model_type": "qwen3",
        "head_dim": 12,
        "use_sliding_window": True,
        "sliding_window": 6,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    },
    "gemma2": _GEMMA | {"model_type": "gemma2", "sliding_window": 5, "query_pre_attn_scalar": 24},
    "gemma2-uncapped": _GEMMA
    | {
        "model_type": "gemma2",
        "sliding_window": 64,
        "query_pre_attn_scalar": 16,
        "attn_logit_softcapping": None,
        "final_logit_softcapping": None,
        "tie_word_embeddings": False,
    },
    "gemma2-capped": _GEMMA
    | {
        "model_type": "gemma2",
        "sliding_window": 3,
        "attn_logit_softcapping": 1.5,
        "final_logit_softcapping": 2.0,
        "attention_bias": True,
    },
    "gemma3": _GEMMA | {"model_type": "gemma3_text", "sliding_window": 5, "num_hidden_layers": 7},
    "gemma3-scaled": _GEMMA
    | {
        "model_type": "gemma3_text",
        "sliding_window": 4,
        "query_pre_attn_scalar": 20,
        "final_logit_softcapping": 3.0,
        "sliding_window_pattern": 2,
        "rope_parameters": {
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 5000.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 50.0},
        },
    },
    "gpt_neox": {k: v for k, v in _SIZES.items() if k != "num_key_value_heads"}
    | {"model_type": "gpt_neox", "rotary_pct": 0.5},
    "gpt_neox-serial": {k: v for k, v in _SIZES.items() if k != "num_key_value_heads"}
    | {"model_type": "gpt_neox", "use_parallel_residual": False, "attention_bias": False, "hidden_act": "gelu_new"}
    | _rope("linear", factor=2.0, partial_rotary_factor=1.0),
}


def vanilla_config(**changes: Any) -> ModelConfig:
    """A small model of PyTorch's language-modelling tutorial."""
    values = {
        "family": "vanilla",
        "d_model": 36,
        "n_layers": 3,
        "n_heads": 3,
        "n_kv_heads": 3,
        "d_head": 12,
        "d_mlp": 50,
        "vocab_size": 61,
        "max_positions": 40,
        "positions": "sinusoidal",
        "embed_scale": math.sqrt(36),
        "norm": "layernorm",
        "norm_bias": True,
        "norm_slots": ("attn_res", "mlp_res"),
        "final_norm": False,
        "activation": "relu",
        "gated": False,
        "qkv_bias": True,
        "o_bias": True,
        "mlp_bias": True,
        "tie_embeddings": False,
        "head_bias": True,
        "layer_specs": {"full": LayerSpec()},
        "init": "tutorial",
    }
    return ModelConfig.model_validate(values | changes)
