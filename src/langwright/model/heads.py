"""What stands on the backbone: small modules from hidden states (B, T, D) to what a task wants."""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from langwright.model.config import ModelConfig, Pooling
from langwright.model.mlp import ACTIVATIONS
from langwright.model.norm import build_norm

HeadKind = Literal["causal_lm", "masked_lm", "sequence_classifier", "token_classifier", "embedding"]


class CausalLMHead(nn.Module):
    """Logits of the next token, (B, T, V), softly capped where the family does."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.proj = nn.Linear(config.d_model, config.vocab_size, bias=config.head_bias)
        self.cap = config.logit_softcap

    def forward(self, hidden: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        logits = self.proj(hidden)  # (B, T, V)
        return logits if self.cap is None else self.cap * torch.tanh(logits / self.cap)


class DenseActNorm(nn.Module):
    """norm(act(dense(x))): BERT's prediction-head transform."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.dense = nn.Linear(config.d_model, config.d_model, bias=config.head_dense_bias)
        self.norm = build_norm(config)
        self.act = ACTIVATIONS[config.head_activation]

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.act(self.dense(x)))


class DenseTanh(nn.Module):
    """tanh(dense(x)): BERT's pooler and RoBERTa's classifier."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.dense = nn.Linear(config.d_model, config.d_model)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.dense(x))


class MaskedLMHead(nn.Module):
    """Logits of the token at each place, (B, T, V)."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.transform = DenseActNorm(config)
        self.proj = nn.Linear(config.d_model, config.vocab_size, bias=config.head_bias)

    def forward(self, hidden: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        return self.proj(self.transform(hidden))  # (B, T, V)


def pool(hidden: Tensor, attention_mask: Tensor | None, how: Pooling) -> Tensor:
    """(B, T, D) -> (B, D): the first real token (``cls``), the ``mean`` of real tokens, or the ``last`` real token.

    A row without any real token gives zeros for ``mean``, else its first column.
    """
    if attention_mask is None:
        return hidden.mean(1) if how == "mean" else hidden[:, 0 if how == "cls" else -1]
    real = attention_mask.bool()
    if how == "mean":
        counts = real.sum(1, keepdim=True).clamp(min=1)
        return hidden.masked_fill(~real[..., None], 0).sum(1) / counts
    columns = torch.arange(hidden.shape[1], device=hidden.device)
    if how == "cls":
        chosen = torch.where(real, columns, hidden.shape[1]).argmin(1)
    else:
        chosen = torch.where(real, columns, -1).argmax(1)
    return hidden[torch.arange(len(hidden), device=hidden.device), chosen]


def _dropout_rate(config: ModelConfig) -> float:
    return config.dropout if config.head_dropout is None else config.head_dropout


class SequenceClassifierHead(nn.Module):
    """One row of label logits a sequence, (B, n_labels); 2 labels where the config names no number."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.pooling: Pooling = config.pooling or ("last" if config.causal else "cls")
        kinds = {"linear": lambda _: nn.Identity(), "tanh": DenseTanh, "act_norm": DenseActNorm}
        self.transform = kinds[config.classifier](config)
        self.proj = nn.Linear(config.d_model, config.n_labels or 2, bias=config.classifier_bias)
        self.dropout = _dropout_rate(config)

    def forward(self, hidden: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        pooled = self.transform(pool(hidden, attention_mask, self.pooling))  # (B, D)
        return self.proj(F.dropout(pooled, self.dropout, self.training))


class TokenClassifierHead(nn.Module):
    """One row of label logits a token, (B, T, n_labels); 2 labels where the config names no number."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.transform = DenseActNorm(config) if config.classifier == "act_norm" else nn.Identity()
        self.proj = nn.Linear(config.d_model, config.n_labels or 2)
        self.dropout = _dropout_rate(config)

    def forward(self, hidden: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        return self.proj(F.dropout(self.transform(hidden), self.dropout, self.training))


class EmbeddingHead(nn.Module):
    """One vector of length 1 a sequence, (B, D) (Reimers & Gurevych 2019, arXiv:1908.10084)."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.pooling: Pooling = config.pooling or ("last" if config.causal else "mean")

    def forward(self, hidden: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        return F.normalize(pool(hidden, attention_mask, self.pooling).float(), dim=-1)


HEADS: dict[HeadKind, type[nn.Module]] = {
    "causal_lm": CausalLMHead,
    "masked_lm": MaskedLMHead,
    "sequence_classifier": SequenceClassifierHead,
    "token_classifier": TokenClassifierHead,
    "embedding": EmbeddingHead,
}
