"""What an adapter is, as data."""

import math

from pydantic import Field, field_validator

from langwright.core.config import Frozen
from langwright.model.config import Positive, Rate

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""The matrices of a layer that may be adapted, by our names."""


class AdapterConfig(Frozen):
    """Low-rank adapters (LoRA; Hu et al. 2021, arXiv:2106.09685): W + scale B A, where W is frozen."""

    rank: Positive = 16
    """Rows of A and columns of B."""
    alpha: float = Field(default=32.0, gt=0)
    """What B A adds is multiplied by alpha / rank."""
    dropout: Rate = 0.0
    """On what the adapters read, in training."""
    rank_stabilised: bool = False
    """Multiply by alpha / sqrt(rank) instead, which lets larger ranks learn (Kalajdzievski 2023, arXiv:2312.03732)."""
    dora: bool = False
    """Train the length of each row of the weight apart from its direction (DoRA; Liu et al. 2024, arXiv:2402.09353)."""
    targets: tuple[str, ...] = ()
    """The projections that are adapted, in every layer (q_proj, up_proj, ...); empty: all that the model has."""
    train_head: bool = False
    """Train the whole head of a classifier too; a fresh one has to be."""

    @field_validator("targets")
    @classmethod
    def _known(cls, targets: tuple[str, ...]) -> tuple[str, ...]:
        if unknown := [name for name in targets if name not in PROJECTIONS]:
            raise ValueError(f"no projection is called {unknown[0]!r}; there are {', '.join(PROJECTIONS)}")
        return tuple(name for name in PROJECTIONS if name in targets)

    @property
    def scale(self) -> float:
        """What B A is multiplied by."""
        return self.alpha / (math.sqrt(self.rank) if self.rank_stabilised else self.rank)
