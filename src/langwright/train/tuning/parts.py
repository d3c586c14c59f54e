"""Parts of the examples: what is learnt, what is held out, and the batches that are drawn from either."""

from collections import Counter
from collections.abc import Callable, Hashable, Sequence, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np

from langwright.core.errors import UserError
from langwright.data.examples import Example, read_examples
from langwright.data.loader import Batch, Place
from langwright.data.order import draw_keys, draw_order, permute
from langwright.train.tuning.config import ExampleSettings

E = TypeVar("E")
Kind = TypeVar("Kind", bound=Example)


class Part(Protocol):
    """Entries that batches are made of: rows of examples, labelled texts, pairs of answers."""

    def __len__(self) -> int:
        """Entries."""
        ...

    def batch(self, numbers: Sequence[int]) -> Batch:
        """The entries of these numbers, padded to the longest of them."""
        ...

    def example(self, number: int) -> int:
        """The number of the (first) example in an entry."""
        ...


@dataclass(frozen=True)
class ShuffledBatches:
    """The batches of a run: called with the number of a step, from 0, always the same one.

    Every epoch takes each entry once, in an order of its own; those of step ``s`` are numbers ``s * batch_size`` on.
    With ``lengths`` the short ones of a batch come first, so that of several micro-batches each is padded little, and
    the step is the same.
    """

    part: Part
    seed: int
    batch_size: int
    wanted: Sequence[int] | None = None
    """The rows of a batch that this rank learns from; None: all."""
    lengths: Sequence[int] | None = None
    """Of the entries, in tokens."""

    def __call__(self, step: int) -> Batch:
        """Batch number ``step``."""
        return self.part.batch(self._numbers(step, range(self.batch_size) if self.wanted is None else self.wanted))

    def places(self, step: int) -> list[Place]:
        """Each row's entry, and its first example."""
        return [Place(number, self.part.example(number), 0) for number in self._numbers(step, range(self.batch_size))]

    def _numbers(self, step: int, rows: Sequence[int]) -> list[int]:
        places = range(step * self.batch_size, (step + 1) * self.batch_size)
        numbers = draw_order(len(self.part), self.seed, places)
        if self.lengths is not None:
            numbers.sort(key=self.lengths.__getitem__)
        return [numbers[row] for row in rows]


def read_kind(
    files: Sequence[Path], settings: ExampleSettings, kinds: tuple[type[Kind], ...], learns: str
) -> tuple[str, list[Kind], Counter[str]]:
    """The format that was found, examples of these kinds and how many were dropped, by the reason.

    ``learns`` is what is said of the method when there is an example of another kind: a `UserError` naming its row.
    """
    found = read_examples(files, fields=settings.fields, format=settings.format)
    examples: list[Kind] = []
    for example in found.items:
        if not isinstance(example, kinds):
            raise UserError(
                f"{example.where}: {learns}, and this is a {type(example).__name__.lower()} example; use another "
                "method, or map fields with --examples.fields"
            )
        examples.append(example)
    return found.format, examples, Counter(found.dropped)


def hold_out(
    examples: Sequence[E],
    share: float,
    seed: int,
    file: Path,
    *,
    alike: Callable[[E], Hashable],
    group: Callable[[E], Hashable] = lambda _: None,
) -> tuple[list[E], list[E]]:
    """What is learnt and what is judged: a ``share`` of each ``group``, the same for the same ``seed``.

    Examples that are ``alike`` count once and stand on one side. A group is never held out whole. Raises `UserError`
    when nothing would be held out.
    """
    groups: dict[Hashable, dict[Hashable, None]] = {}  # of each, what is in it once
    seen: set[Hashable] = set()
    for example in examples:
        if (key := alike(example)) not in seen:
            seen.add(key)
            groups.setdefault(group(example), {})[key] = None
    held: set[Hashable] = set()
    for keys in map(list, groups.values()):
        n = len(keys)
        order = permute(np.arange(n), n, draw_keys(seed, 0))
        held |= {keys[number] for number in order[: min(round(n * share), n - 1)]}
    if not held:
        raise UserError(
            f"{file}: holding out {share:g} of {len(seen)} different examples leaves none to judge by; give --val FILE "
            "or more examples"
        )
    train = [example for example in examples if alike(example) not in held]
    return train, [example for example in examples if alike(example) in held]


def divide(
    read: Callable[[Sequence[Path]], tuple[list[E], Counter[str]]],
    files: Sequence[Path],
    val_files: Sequence[Path],
    share: float,
    seed: int,
    say: Callable[[str], None],
    *,
    alike: Callable[[E], Hashable],
    group: Callable[[E], Hashable] = lambda _: None,
) -> tuple[list[E], list[E], Counter[str]]:
    """What is learnt, what is judged and what was left out, of the examples that ``read`` finds in files.

    Without ``val_files`` a ``share`` is held out (`hold_out`); with them it is only said how many stand on both sides.
    """
    train, dropped = read(files)
    if not val_files:
        return *hold_out(train, share, seed, files[0], alike=alike, group=group), dropped
    val, more = read(val_files)
    if both := {alike(example) for example in train} & {alike(example) for example in val}:
        say(f"{len(both):,} held-out texts are also learnt from; the figures will look better than they are")
    return train, val, dropped + more


def check_enough(part: Sized, batch_size: int, file: Path, what: str) -> None:
    """Raise `UserError` where a part does not fill one batch; ``what`` are its entries."""
    if len(part) < batch_size:
        raise UserError(
            f"{file}: {len(part)} {what} are fewer than train.batch_size ({batch_size}); lower it or give more examples"
        )


def tell_dropped(dropped: Counter[str], say: Callable[[str], None]) -> None:
    """Say what was left out, by the reason."""
    if dropped:
        say("left out: " + ", ".join(f"{count} ({reason})" for reason, count in dropped.most_common()))
