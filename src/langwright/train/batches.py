"""Which batch a step learns from, and how validation text is read."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

from langwright.core.errors import UserError
from langwright.data.fim import FillInTheMiddle
from langwright.data.loader import Batch, Place, PreparedData, batch_at, places_at
from langwright.data.masking import Masking
from langwright.data.packing import number_documents
from langwright.data.shards import TokenShards
from langwright.tokenizer.load import load_tokenizer
from langwright.train.config import LoopSettings, TrainConfig

Change = Callable[[np.ndarray, np.random.Generator], tuple[np.ndarray, np.ndarray]]
"""A window (T + 1,) of the stream -> ids and targets, (T,) both; what it draws, it draws from that generator."""


@dataclass(frozen=True)
class Batches:
    """The batches of a run: called with the number of a step, from 0, always the same one."""

    shards: TokenShards
    seed: int
    batch_size: int
    context: int
    opener: int | None = None
    """The id that documents begin with where they must not see each other (`number_documents`)."""
    change: Change | None = None
    """What is done with a window before it is learnt from; draws are a function of (seed, step, row)."""
    masking: Masking | None = None
    """The same for validation, of which only masked models need one; draws are a function of the window's number."""
    rows: Sequence[int] | None = None
    """The rows of a batch that this rank learns from; None: all."""

    @classmethod
    def of(cls, config: TrainConfig, data: PreparedData, rows: Sequence[int] | None = None) -> Self:
        """Those of a configuration, or ``rows`` of each; raises `UserError` when the tokenizer lacks special tokens."""
        settings, eos_id = config.train, data.train.eos_id
        change = masking = None
        if not config.model.causal:
            masking = change = _masking(settings, data)
        elif settings.fim_rate:
            change = FillInTheMiddle.of(
                load_tokenizer(data.tokenizer_path),
                eos_id,
                rate=settings.fim_rate,
                spm=settings.fim_spm,
                by_lines=settings.fim_lines,
            )
        opener = None
        if settings.packing == "documents":
            opener = eos_id if masking is None else masking.cls_id
        return cls(data.train, config.seed, settings.batch_size, settings.context, opener, change, masking, rows)

    def __call__(self, step: int) -> Batch:
        """Batch number ``step``; see `batch_at`."""
        rows = range(self.batch_size) if self.rows is None else self.rows
        batch = batch_at(
            self.shards, seed=self.seed, step=step, batch_size=self.batch_size, context=self.context, rows=rows
        )
        return self._arranged(batch, self.change, [(self.seed, step, row) for row in rows])

    def places(self, step: int) -> list[Place]:
        """Where in the data its rows begin, all of them."""
        return places_at(self.shards, seed=self.seed, step=step, batch_size=self.batch_size, context=self.context)

    def read(self, windows: Iterable[Batch]) -> Iterator[Batch]:
        """Windows of validation text as this run's model reads text: never rearranged; masked, always alike."""
        number = 0
        for batch in windows:
            seeds = range(number, number + len(batch.ids))
            yield self._arranged(batch, self.masking, [(seed,) for seed in seeds])
            number = seeds.stop

    def _arranged(self, batch: Batch, change: Change | None, seeds: list[tuple[int, ...]]) -> Batch:
        if change is not None:
            windows = np.concatenate([batch.ids, batch.targets[:, -1:]], axis=1)  # (B, T + 1)
            rows = [change(row, np.random.default_rng(seed)) for row, seed in zip(windows, seeds, strict=True)]
            batch = Batch(*(np.stack(part) for part in zip(*rows, strict=True)))
        if self.opener is None:
            return batch
        return batch._replace(documents=number_documents(batch.ids, self.opener))


def _masking(settings: LoopSettings, data: PreparedData) -> Masking:
    if settings.fim_rate:
        raise UserError("train.fim_rate: a model that sees both sides (model.causal is false) fills in what is masked")
    return Masking.of(
        load_tokenizer(data.tokenizer_path),
        rate=settings.mask_rate,
        random=settings.mask_random,
        keep=settings.mask_keep,
        whole_words=settings.mask_words,
        every_document=settings.packing == "documents",
    )
