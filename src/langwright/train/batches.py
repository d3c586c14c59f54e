"""Which batch a step learns from."""

from dataclasses import dataclass
from typing import Self

from langwright.data.loader import Batch, Place, PreparedData, batch_at, places_at
from langwright.data.shards import TokenShards
from langwright.train.config import TrainConfig


@dataclass(frozen=True)
class Batches:
    """The batches of a run: called with the number of a step, from 0, always the same one."""

    shards: TokenShards
    seed: int
    batch_size: int
    context: int
    rows: range | None = None
    """Those that this rank learns from; None for all."""

    @classmethod
    def of(cls, config: TrainConfig, data: PreparedData, rows: range | None = None) -> Self:
        """Those of a configuration."""
        return cls(data.train, config.seed, config.train.batch_size, config.train.context, rows)

    def __call__(self, step: int) -> Batch:
        """Batch number ``step``; see `batch_at`."""
        size, context = self.batch_size, self.context
        return batch_at(self.shards, seed=self.seed, step=step, batch_size=size, context=context, rows=self.rows)

    def places(self, step: int) -> list[Place]:
        """Where in the data its rows begin, all of them."""
        return places_at(self.shards, seed=self.seed, step=step, batch_size=self.batch_size, context=self.context)
