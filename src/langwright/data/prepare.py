"""Text in, a folder of token shards out: measure, split, train or load a tokenizer, encode, commit."""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from langwright.core.config import Frozen
from langwright.core.errors import UserError
from langwright.core.files import MANIFEST, committed_folder
from langwright.core.json_text import read_json_object, write_json
from langwright.data.description import DATA_FILE, DataDescription, SourceEntry, SplitEntry, TokenizerEntry
from langwright.data.pieces import cut, cuts_cleanly
from langwright.data.shards import SHARD_TOKENS, ShardWriter, TokenShards
from langwright.data.sources import describe_sources, find_files
from langwright.data.split import SplitName, SplitRule, choose_rule
from langwright.data.texts import Measure, Side, Texts, measure
from langwright.tokenizer.load import load_tokenizer
from langwright.tokenizer.tokenizer import Tokenizer
from langwright.tokenizer.training import train_bpe, train_char

BATCH_CHARS = 2 << 20
"""Text that is encoded in one parallel call."""
SAMPLE_CHARS = 200

Stage = Literal["reading", "training the tokenizer", "encoding"]
Progress = Callable[[Stage, int, int], None]
"""Called with the stage, the bytes of text done, and the bytes in all (0 while they are not known)."""


class PrepareConfig(Frozen):
    """How text becomes tokens."""

    tokenizer: str = "train"
    """train: a new byte-level BPE · char: one token a character · or a folder or file to load a tokenizer from."""
    vocab_size: int = Field(default=8192, ge=257, le=1 << 24)
    """Tokens of a newly trained BPE vocabulary, special tokens included."""
    pre_tokenizer: Literal["gpt2", "llama3", "smollm2"] = "gpt2"
    """How a newly trained BPE splits text before merging."""
    val: tuple[Path, ...] = ()
    """Files or folders to validate on; the inputs are then all for training."""
    val_fraction: float = Field(default=0.05, gt=0, lt=1)
    """Share of the text that validates."""
    split: SplitName = "auto"
    """documents: whole documents, by a hash · tail: the end of every document · auto: documents if there are enough."""
    text_field: str = "text"
    """Field or column of .jsonl and .parquet that holds the text."""
    follow_links: bool = False
    """Follow symbolic links in folders."""
    sample_bytes: int = Field(default=128 << 20, ge=1)
    """Most text that a new BPE is trained on, in bytes; taken evenly from all of the training text."""
    shard_tokens: int = Field(default=SHARD_TOKENS, ge=1)
    """Tokens in one shard file."""
    seed: int = Field(default=0, ge=0, lt=1 << 64)
    """Decides which documents validate."""


@dataclass(frozen=True, slots=True)
class RoundTrip:
    """The start of the first document as it was, and as the written tokens decode."""

    original: str
    decoded: str

    @property
    def equal(self) -> bool:
        """Whether the tokens hold this text exactly."""
        return self.original == self.decoded


@dataclass(frozen=True, slots=True)
class PrepareReport:
    """What was written where, and a sample to look at."""

    folder: Path
    description: DataDescription
    sample: RoundTrip


def prepare(
    inputs: Iterable[Path], out: Path, *, progress: Progress = lambda stage, done, total: None, **options: Any
) -> PrepareReport:
    """Write ``out``: ``train/`` and ``val/`` shards, the tokenizer's files and ``data.json``, wholly or not at all.

    ``options`` are the fields of `PrepareConfig`. The text is streamed, never held: read once to measure it, once to
    train a tokenizer, once to encode. Every document ends with the tokenizer's end-of-text token, and no text can
    become a special token. A prepared folder that stands at ``out`` is replaced.

    Raises `UserError` for wrong options, unreadable or empty input, a side of the split that would be empty, a
    tokenizer without an end-of-text token, and an ``out`` that holds anything else; `FormatError` for damaged files.
    """
    config = PrepareConfig.parse(options, "prepare")
    texts = Texts(tuple(inputs), config.val, config.text_field, config.follow_links, exclude=out)
    _check_target(out, texts)
    found = measure(
        texts,
        val_fraction=config.val_fraction,
        seed=config.seed,
        progress=lambda done: progress("reading", done, 0),
    )
    rule = _decide_rule(config, found)
    tokenizer = _make_tokenizer(config, texts, rule, found, progress)
    sources = _describe_sources(texts)
    with committed_folder(out.resolve()) as folder:
        tokenizer.save(folder)
        written = _encode(folder, config, texts.sides(rule, found.val_hashes), tokenizer, found, progress)
        description = DataDescription(
            fingerprint=hashlib.sha256(" ".join([tokenizer.fingerprint, *written.hashes]).encode()).hexdigest(),
            tokenizer=written.tokenizer,
            split=rule,
            train=written.train,
            val=written.val,
            sources=sources,
            skipped=dict(sorted(found.skipped.items())),
        )
        (folder / DATA_FILE).write_text(write_json(description.model_dump(mode="json")), encoding="utf-8")
    return PrepareReport(out, description, _sample(out, tokenizer, written.start))
