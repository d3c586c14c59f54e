"""What data.json says of a prepared folder."""

from typing import Literal

from langwright.core.config import Frozen
from langwright.data.split import SplitRule

DATA_FILE = "data.json"


class SourceEntry(Frozen):
    """A path that was given: how many files it stands for, their bytes, and one SHA-256 over all of them."""

    path: str
    role: Literal["input", "val"]
    files: int
    bytes: int
    sha256: str


class TokenizerEntry(Frozen):
    """The tokenizer that made the tokens; its files lie at the top of the folder."""

    origin: str
    """``train``, ``char``, or the path that it was loaded from."""
    fingerprint: str
    vocab_size: int
    eos_id: int


class SplitEntry(Frozen):
    """Counts of one split. ``tokens`` include one end-of-text token a document; ``bytes`` are UTF-8 bytes of text."""

    documents: int
    bytes: int
    tokens: int
    unknown_tokens: int
    bytes_per_token: float


class DataDescription(Frozen):
    """The whole of data.json."""

    format: Literal["langwright-data"] = "langwright-data"
    version: Literal[1] = 1
    fingerprint: str
    """SHA-256 over the tokenizer's fingerprint and the SHA-256 of both token streams."""
    tokenizer: TokenizerEntry
    split: SplitRule
    train: SplitEntry
    val: SplitEntry
    sources: list[SourceEntry]
    skipped: dict[str, int]
    """What was passed over while reading, counted by reason."""
