"""From shards to batches. Training order is a function of (seed, step); validation reads the stream once, in order.

Batches are numpy int64: `torch.from_numpy` takes them without a copy, and this layer needs no torch.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np

from langwright.core.errors import FormatError, UserError
from langwright.core.files import sha256
from langwright.core.json_text import read_json_object
from langwright.data.description import DATA_FILE, DataDescription
from langwright.data.order import draw_keys, permute
from langwright.data.shards import TokenShards

IGNORED = -100
"""A target that no loss is taken of."""


class Batch(NamedTuple):
    """Token ids and, at every place, the id to predict (or `IGNORED`): the one that follows, where nothing says else.

    ``documents`` numbers the documents of each row that must not see each other; None: a row is one text. All are
    (B, T) int64. Of classifiers ``targets`` are the labels, (B,) numbers or (B, n_labels) of 0 and 1, in float32 what
    is to be told of each text; ``mask`` (B, T) bool says which tokens are real, None: all; ``types`` (B, T) which text
    of a pair they are of. Of pairs of answers ``ids`` and ``targets`` are (B, 2, T), and ``reference`` (B, 2) float32
    is what the answers are worth to the model that tuning began with. Of texts that are alike ``ids`` and ``mask`` are
    (B, S, T), and ``targets`` (B, S) number what they mean. ``reward`` (B,) float32 says how good each row is: more
    than 0 becomes likelier, less becomes rarer.
    """

    ids: np.ndarray
    targets: np.ndarray
    documents: np.ndarray | None = None
    mask: np.ndarray | None = None
    reference: np.ndarray | None = None
    reward: np.ndarray | None = None
    types: np.ndarray | None = None

    @property
    def n_tokens(self) -> int:
        """What is read, padding left out where ``mask`` tells it."""
        return self.ids.size if self.mask is None else int(self.mask.sum())

    def part(self, rows: slice) -> Self:
        """Some rows, without the columns at the end that are padding in all of them, as far as that is said.

        ``mask`` says it; of answers side by side nothing after the last target is read by what is learnt.
        """
        told = None if self.mask is None else self.mask[rows]
        if told is None and self.ids.ndim == 3:
            told = self.targets[rows] != IGNORED
        width = self.ids.shape[-1]
        if told is not None:
            width = int(np.flatnonzero(told.reshape(-1, width).any(0)).max(initial=0)) + 1
        by_token = self.targets.shape == self.ids.shape and self.targets.dtype == np.int64
        return self._replace(
            ids=self.ids[rows][..., :width],
            targets=self.targets[rows][..., :width] if by_token else self.targets[rows],
            documents=None if self.documents is None else self.documents[rows][..., :width],
            mask=None if self.mask is None else self.mask[rows][..., :width],
            types=None if self.types is None else self.types[rows][..., :width],
            reference=None if self.reference is None else self.reference[rows],
            reward=None if self.reward is None else self.reward[rows],
        )


class Place(NamedTuple):
    """Token ``start`` of a stream, which is token ``offset`` of its document number ``document``; all from 0."""

    start: int
    document: int
    offset: int


@dataclass(frozen=True, slots=True)
class PreparedData:
    """What `langwright prepare` wrote: both splits, the tokenizer's place, and what is known of them."""

    folder: Path
    train: TokenShards
    val: TokenShards
    description: DataDescription

    @property
    def tokenizer_path(self) -> Path:
        """The folder that the tokenizer is loaded from."""
        return self.folder

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the tokenizer and all tokens: equal for equal data."""
        return self.description.fingerprint


def open_data(folder: str | Path) -> PreparedData:
    """Open a prepared folder; raises `UserError` when it is none, `FormatError` when its parts do not fit together."""
    folder = Path(folder)
    if not (folder / DATA_FILE).is_file():
        raise UserError(
            f"{folder}: not a folder of prepared data; make one with langwright prepare TEXT --out {folder}"
        )
    description = DataDescription.parse(read_json_object(folder / DATA_FILE), str(folder / DATA_FILE))
    shards = {name: TokenShards.open(folder / name) for name in ("train", "val")}
    for name, split in shards.items():
        told = getattr(description, name)
        same = (told.documents, told.bytes, told.tokens) == (split.n_documents, split.n_bytes, split.n_tokens)
        if not same or split.vocab_size != description.tokenizer.vocab_size:
            raise FormatError(f"{split.folder}: does not belong to {folder / DATA_FILE}; prepare the data again")
    tokenizer = folder / "tokenizer.json"
    if not tokenizer.is_file() or sha256(tokenizer) != description.tokenizer.fingerprint:
        raise FormatError(f"{tokenizer}: not the tokenizer that made these tokens; prepare the data again")
    return PreparedData(folder, shards["train"], shards["val"], description)


def windows_per_epoch(shards: TokenShards, context: int) -> int:
    """How many windows of ``context`` tokens one pass over the stream has; raises `UserError` when there is none."""
    places = shards.n_tokens - 1  # the last token is only a target
    if not 1 <= context <= places:
        raise UserError(
            f"{shards.folder}: {shards.n_tokens} tokens are too few for a context of {context}; "
            f"use a context of at most {places} or prepare more text"
        )
    return max(1, (places - context + 1) // context)


def batch_at(
    shards: TokenShards, *, seed: int, step: int, batch_size: int, context: int, rows: Sequence[int] | None = None
) -> Batch:
    """Batch number ``step`` (from 0) of a training run, or only its ``rows``: ids and targets (B, T).

    Every epoch cuts the stream into windows of ``context`` from a place of its own, and takes each window once, in an
    order of its own. Row ``r`` of step ``s`` is window ``s * batch_size + r`` of that order, so rank ``k`` of ``n``
    may ask for ``range(k, batch_size, n)``, and a resumed run for any step, at no cost. Raises `UserError` when the
    data are shorter than one window, `FormatError` when a damaged file holds an id outside the vocabulary.
    """
    starts = _window_starts(shards, seed, step, batch_size, context, range(batch_size) if rows is None else rows)
    windows = np.empty((len(starts), context + 1), dtype=np.int64)  # (B, T + 1)
    for row, start in enumerate(starts):
        windows[row] = shards.tokens[start : start + context + 1]
    return _batch(windows, shards)


def _window_starts(
    shards: TokenShards, seed: int, step: int, batch_size: int, context: int, rows: Sequence[int]
) -> list[int]:
    assert step >= 0
    assert all(0 <= row < batch_size for row in rows)
    n_windows = windows_per_epoch(shards, context)
    slack = shards.n_tokens - 1 - n_windows * context
    epochs, places = np.divmod(np.asarray(rows, dtype=np.int64) + step * batch_size, n_windows)  # (B,)
    starts = np.empty(len(rows), dtype=np.int64)
    for epoch in np.unique(epochs):
        keys = draw_keys(seed, int(epoch))
        here = epochs == epoch
        starts[here] = permute(places[here], n_windows, keys) * context + int(keys[-1]) % (slack + 1)
    return starts.tolist()


def places_at(shards: TokenShards, *, seed: int, step: int, batch_size: int, context: int) -> list[Place]:
    """Where the rows of `batch_at` begin."""
    starts = _window_starts(shards, seed, step, batch_size, context, range(batch_size))
    documents = np.searchsorted(shards.documents, starts, side="right") - 1
    return [
        Place(start, int(document), start - int(shards.documents[document]))
        for start, document in zip(starts, documents, strict=True)
    ]


def eval_windows(
    shards: TokenShards, *, context: int, batch_size: int = 1, limit: int | None = None
) -> Iterator[Batch]:
    """Every token of ``shards.spread(limit)`` once as a target, in order.

    Batches (B, T) of windows side by side; what is left at the end of a span is a shorter one. A span's first token is
    predicted from the token before it, the stream's first from the end-of-text id, as at the start of every later
    document. Bits per byte is the summed negative log-likelihood / ln 2 / the spans' bytes, over exactly their tokens
    as targets (end-of-text ids count as tokens and have no bytes).
    """
    assert context >= 1
    assert batch_size >= 1
    for span in shards.spread(limit):
        start, end = span.start, span.start + span.n_tokens
        while start < end:
            left = end - start
            rows, width = (min(batch_size, left // context), context) if left >= context else (1, left)
            stop = start + rows * width
            stream = np.empty(rows * width + 1, dtype=np.int64)
            stream[0] = shards.tokens[start - 1 : start][0] if start else shards.eos_id
            stream[1:] = shards.tokens[start:stop]
            yield _batch(np.lib.stride_tricks.sliding_window_view(stream, width + 1)[::width], shards)
            start = stop


def _batch(windows: np.ndarray, shards: TokenShards) -> Batch:
    """Windows (B, T + 1) as ids and targets; an id that no embedding has stops here rather than in a kernel."""
    if int(windows.max()) >= shards.vocab_size:
        raise FormatError(f"{shards.folder}: holds an id outside its vocabulary; the file is damaged, prepare it again")
    return Batch(np.ascontiguousarray(windows[:, :-1]), np.ascontiguousarray(windows[:, 1:]))
