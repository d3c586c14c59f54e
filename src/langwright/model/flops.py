"""Arithmetic counted from the structure: multiply-adds are two operations, element-wise work is left out."""

from langwright.model.config import ModelConfig


def matmul_parameters(config: ModelConfig) -> int:
    """Weights that every token is multiplied by: projections of all layers and the language-model head."""
    wide, narrow = config.n_heads * config.d_head, config.n_kv_heads * config.d_head
    attention = config.d_model * (2 * wide + 2 * narrow)
    mlp = config.d_model * config.d_mlp * (3 if config.gated else 2)
    return config.n_layers * (attention + mlp) + config.d_model * config.vocab_size


def forward_flops(config: ModelConfig, context: int) -> float:
    """Operations a token of a forward over ``context`` tokens, head included.

    A causal query looks at (context + 1) / 2 keys on average, fewer with a window.
    """
    attention = 0.0
    for kind in config.layer_types:
        window = config.layer_specs[kind].window
        if config.causal:
            reach = min(window or context, context)
            keys = reach - reach * (reach - 1) / (2 * context)
        else:
            keys = min(context, 2 * window - 1) if window else context
        attention += 4 * config.n_heads * config.d_head * keys  # scores and weighted values
    return 2 * matmul_parameters(config) + attention


def training_flops(config: ModelConfig, context: int) -> float:
    """Operations a token of forward and backward: the backward costs two forwards (Kaplan et al. 2020, section 2.1)."""
    return 3 * forward_flops(config, context)
