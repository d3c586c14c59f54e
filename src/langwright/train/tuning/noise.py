"""Noise on embeddings in training, which keeps a model from learning its examples word by word (NEFTune)."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from langwright.model.model import Model
from langwright.model.transformer import find_runs
from langwright.train.objective import Objective, Piece


def noisy(objective: Objective, alpha: float) -> Objective:
    """``objective`` with uniform noise in +-``alpha`` / sqrt(L D) on the token embeddings (B, T, D), where L is the
    length of each text (Jain et al. 2023, arXiv:2310.05914). None for 0, and none in evaluation.

    It draws from torch's generator, which the loop seeds for every step.
    """
    if not alpha:
        return objective

    def loss(model: Model, piece: Piece) -> Tensor:
        bound = alpha / (text_lengths(piece) * model.config.d_model).sqrt()[..., None]  # (B, T, 1)

        def add(module: nn.Module, args: Any, embedded: Tensor) -> Tensor:
            return embedded + bound.to(embedded.dtype) * torch.empty_like(embedded).uniform_(-1, 1)

        if not model.training:
            return objective.loss(model, piece)
        hook = model.backbone.embed.tokens.register_forward_hook(add)
        try:
            return objective.loss(model, piece)
        finally:
            hook.remove()

    return replace(objective, loss=loss)


def text_lengths(piece: Piece) -> Tensor:
    """How many tokens the text has that each of the tokens (B, T) stands in, float32."""
    documents = torch.zeros_like(piece.ids) if piece.documents is None else piece.documents
    lengths, _ = find_runs(documents)
    counts = torch.tensor(lengths, device=piece.ids.device)
    return counts.repeat_interleave(counts).view(piece.ids.shape).float()
