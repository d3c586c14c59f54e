"""One vector a text."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from langwright.infer.evaluating import evaluating
from langwright.infer.padded import padded
from langwright.model.heads import pool
from langwright.model.model import Model


@torch.inference_mode()
def embed(model: Model, sequences: Sequence[Sequence[int]], *, batch_size: int = 32) -> Tensor:
    """Unit vectors (n, D), float32 on the CPU, of token ids that are not empty.

    Last hidden states pooled as the config says, by default their mean over all tokens, and divided by their length
    (Reimers & Gurevych 2019, arXiv:1908.10084).
    """
    how = model.config.pooling or "mean"
    out = torch.empty(len(sequences), model.config.d_model)
    for batch in padded(sequences, batch_size, model.device):
        with evaluating(model):
            hidden = model.backbone(batch.ids, attention_mask=batch.mask)  # (B, T, D)
        out[batch.numbers] = F.normalize(pool(hidden.float(), batch.real, how), dim=-1).cpu()
    return out
