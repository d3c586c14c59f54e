"""The text to prepare, which is read several times and never held: measured first, then divided into both sides."""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from langwright.data.pieces import PIECE
from langwright.data.sources import Document, read_documents
from langwright.data.split import SplitRule, divide, is_held_out, text_hash

Side = Literal["train", "val"]
SIDES: dict[Side, str] = {"train": "training", "val": "validation"}
METER_STEP = 1 << 20


@dataclass(frozen=True, slots=True)
class Texts:
    """Where the text is, and how to read it. ``val`` is empty unless validation is given apart."""

    inputs: tuple[Path, ...]
    val: tuple[Path, ...] = ()
    text_field: str = "text"
    follow_links: bool = False
    exclude: Path | None = None

    def read(self, paths: tuple[Path, ...], skipped: Counter[str] | None = None) -> Iterator[Document]:
        """The documents of ``paths``, in order; see `read_documents`."""
        return read_documents(
            paths, text_field=self.text_field, follow_links=self.follow_links, exclude=self.exclude, skipped=skipped
        )

    def sides(self, rule: SplitRule, val_hashes: frozenset[int]) -> Iterator[tuple[Side, str]]:
        """Every document, or part of one, with its side; ``val_hashes`` as `measure` found them."""
        for document in self.read(self.inputs):
            if rule.rule == "files" and text_hash(document.text) in val_hashes:
                continue
            train, val = divide(document.text, rule)
            if train:
                yield "train", train
            if val:
                yield "val", val
        for document in self.read(self.val) if self.val else ():
            yield "val", document.text


@dataclass(slots=True)
class Meter:
    """Adds up bytes and tells the sum, once in `METER_STEP` bytes: a million short documents make few calls."""

    tell: Callable[[int], None]
    done: int = 0
    told: int = 0

    def add(self, n_bytes: int) -> None:
        self.done += n_bytes
        if self.done - self.told >= METER_STEP:
            self.finish()

    def finish(self) -> None:
        self.told = self.done
        self.tell(self.done)


@dataclass(slots=True)
class Measure:
    """What one pass over the text finds out before anything is decided."""

    documents: int = 0
    bytes: int = 0
    held_out: int = 0
    """Documents that `is_held_out` would set apart, and below their bytes."""
    held_out_bytes: int = 0
    val_bytes: int = 0
    """Bytes of the text given apart for validation, not counted above; and below its documents' hashes."""
    val_hashes: frozenset[int] = frozenset()
    long_text: str = ""
    """The start of the first document that is longer than a piece."""
    skipped: Counter[str] = field(default_factory=Counter)


def measure(texts: Texts, *, val_fraction: float, seed: int, progress: Callable[[int], None]) -> Measure:
    """Read everything once; ``progress`` is told the bytes of text so far. Raises `UserError` for unreadable text."""
    found, meter = Measure(), Meter(progress)

    def note(text: str) -> int:
        size = len(text.encode("utf-8"))
        if not found.long_text and len(text) > PIECE:
            found.long_text = text[: 16 * PIECE]
        meter.add(size)
        return size

    hashes = set()
    for document in texts.read(texts.val, found.skipped) if texts.val else ():
        hashes.add(text_hash(document.text))
        found.val_bytes += note(document.text)
    found.val_hashes = frozenset(hashes)
    for document in texts.read(texts.inputs, found.skipped):
        if hashes and text_hash(document.text) in hashes:
            found.skipped["also in validation"] += 1
            continue
        size = note(document.text)
        found.documents += 1
        found.bytes += size
        if is_held_out(document.text, val_fraction, seed):
            found.held_out += 1
            found.held_out_bytes += size
    meter.finish()
    return found
