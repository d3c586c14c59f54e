"""One vector a text."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from langwright.infer.evaluating import evaluating
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
    order = sorted(range(len(sequences)), key=lambda number: len(sequences[number]))
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        rows = [torch.tensor(sequences[number]) for number in chosen]
        ids = pad_sequence(rows, batch_first=True).to(model.device)  # (B, T)
        lengths = torch.tensor([len(row) for row in rows], device=model.device)
        real = torch.arange(ids.shape[1], device=model.device) < lengths[:, None]
        with evaluating(model):
            hidden = model.backbone(ids, attention_mask=None if bool(real.all()) else real)  # (B, T, D)
        out[chosen] = F.normalize(pool(hidden.float(), real, how), dim=-1).cpu()
    return out
