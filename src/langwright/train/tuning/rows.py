"""Examples side by side in rows, none of which sees another."""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from langwright.data.loader import IGNORED, Batch


class TrainedIds(NamedTuple):
    """Ids to read and, at every place, the id to predict or `IGNORED`; (n,) int64 both."""

    ids: np.ndarray
    targets: np.ndarray


def as_sequence(ids: Sequence[int], trained: Sequence[bool]) -> TrainedIds:
    """What predicts those of ``ids`` that are ``trained``, each from all before it; one shorter than ``ids``."""
    stream, wanted = np.asarray(ids, dtype=np.int64), np.asarray(trained, dtype=bool)
    return TrainedIds(stream[:-1], np.where(wanted[1:], stream[1:], IGNORED))


def stack(groups: Sequence[Sequence[TrainedIds]], pad_id: int) -> tuple[np.ndarray, np.ndarray]:
    """N groups of K sequences as ids and targets (N, K, T), padded at the end to the longest of them."""
    shape = len(groups), len(groups[0]), max(len(each.ids) for group in groups for each in group)
    ids, targets = np.full(shape, pad_id, dtype=np.int64), np.full(shape, IGNORED, dtype=np.int64)
    for at, group in enumerate(groups):
        for place, each in enumerate(group):
            ids[at, place, : len(each.ids)], targets[at, place, : len(each.ids)] = each
    return ids, targets


def lay_out(lengths: Sequence[int], room: int, *, pack: bool) -> list[tuple[int, ...]]:
    """Which examples share a row of at most ``room`` tokens: longest first, each into the fullest row that has room.

    That is best-fit decreasing, within 11/9 of the fewest rows possible (Johnson 1973). Not to ``pack`` gives every
    example a row. No example may be longer than ``room``.
    """
    assert all(length <= room for length in lengths)
    if not pack:
        return [(number,) for number in range(len(lengths))]
    rows: list[list[int]] = []
    by_room: list[list[int]] = [[] for _ in range(room + 1)]  # rows that have exactly so much room left
    for number in sorted(range(len(lengths)), key=lambda number: (-lengths[number], number)):
        length = lengths[number]
        left = next((left for left in range(length, room + 1) if by_room[left]), None)
        if left is None:
            rows.append([number])
            heapq.heappush(by_room[room - length], len(rows) - 1)
        else:
            row = heapq.heappop(by_room[left])
            rows[row].append(number)
            heapq.heappush(by_room[left - length], row)
    return [tuple(row) for row in rows]


@dataclass(frozen=True)
class Rows:
    """Examples laid out in rows."""

    examples: Sequence[TrainedIds]
    layout: Sequence[tuple[int, ...]]
    pad_id: int
    """Fills rows up; it is read by nobody."""

    def __len__(self) -> int:
        """Rows."""
        return len(self.layout)

    def example(self, number: int) -> int:
        """The first one of that row."""
        return self.layout[number][0]

    def batch(self, numbers: Sequence[int]) -> Batch:
        """The rows of these numbers, (B, T), as long as the longest of them; what fills up is a document of its own."""
        rows = [[self.examples[number] for number in self.layout[row]] for row in numbers]
        T = max(sum(len(each.ids) for each in row) for row in rows)
        ids = np.full((len(rows), T), self.pad_id, dtype=np.int64)
        targets = np.full((len(rows), T), IGNORED, dtype=np.int64)
        documents = np.zeros((len(rows), T), dtype=np.int64)
        for at, row in enumerate(rows):
            start = 0
            for document, example in enumerate(row):
                stop = start + len(example.ids)
                ids[at, start:stop], targets[at, start:stop] = example
                documents[at, start:stop] = document
                start = stop
            documents[at, start:] = len(row)
        return Batch(ids, targets, documents)
