"""Text in, a folder of token shards out: measure, split, train or load a tokenizer, encode, commit."""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from langwright.core.config import Frozen
from langwright.core.errors import UserError
from langwright.core.files import MANIFEST, committed_folder, explained
from langwright.core.json_text import read_json_object, write_json
from langwright.data.description import DATA_FILE, DataDescription, SourceEntry, TokenizerEntry
from langwright.data.encode import RoundTrip, encode_sides
from langwright.data.pieces import cut, cuts_cleanly
from langwright.data.shards import SHARD_TOKENS
from langwright.data.sources import Found, describe_sources, find_files
from langwright.data.split import SplitName, SplitRule, choose_rule
from langwright.data.texts import Measure, Meter, Texts, measure
from langwright.tokenizer.load import load_tokenizer
from langwright.tokenizer.pre_tokenizers import PreTokenizerName
from langwright.tokenizer.tokenizer import TEXT_ENDS, Tokenizer
from langwright.tokenizer.training import SPECIAL_TOKENS, train_bpe, train_char

Stage = Literal["reading", "training the tokenizer", "encoding"]
Progress = Callable[[Stage, int, int], None]
"""Called with the stage, the bytes of text done, and the bytes in all (0 while they are not known)."""


class PrepareConfig(Frozen):
    """How text becomes tokens."""

    tokenizer: str = "train"
    """train: a new byte-level BPE · char: one token a character · or a folder or file to load a tokenizer from."""
    vocab_size: int = Field(default=8192, ge=257, le=1 << 24)
    """Tokens of a newly trained BPE vocabulary, special tokens included."""
    pre_tokenizer: PreTokenizerName = "gpt2"
    """How a newly trained BPE splits text before merging."""
    special_tokens: Literal["text", "fim", "bert"] = "text"
    """Of a new vocabulary. text: end of text · fim: to fill in the middle, and chat, as well · bert: to mask."""
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
class PrepareReport:
    """What was written where, and a sample to look at."""

    folder: Path
    description: DataDescription
    sample: RoundTrip


def prepare(
    inputs: Iterable[str | Path],
    out: str | Path,
    *,
    progress: Progress = lambda stage, done, total: None,
    **options: Any,
) -> PrepareReport:
    """Write ``out``: ``train/`` and ``val/`` shards, the tokenizer's files and ``data.json``, wholly or not at all.

    ``options`` are the fields of `PrepareConfig`. The text is streamed, never held: read once to measure it, once to
    train a tokenizer, once to encode. Every document ends with the tokenizer's end-of-text token, and no text can
    become a special token. A prepared folder that stands at ``out`` is replaced.

    Raises `UserError` for wrong options, unreadable or empty input, a side of the split that would be empty, a
    tokenizer without an end-of-text token, and an ``out`` that holds anything else; `FormatError` for damaged files.
    """
    config = PrepareConfig.parse(options, "prepare")
    out = Path(out)
    texts = Texts(tuple(map(Path, inputs)), config.val, config.text_field, config.follow_links, exclude=out)
    _check_target(out, (*texts.inputs, *texts.val))
    found = measure(
        texts,
        val_fraction=config.val_fraction,
        seed=config.seed,
        progress=lambda done: progress("reading", done, 0),
    )
    if not found.documents:
        raise UserError("every training document also stands in the validation files; give other files with --val")
    rule = _decide_rule(config, found)
    tokenizer = _make_tokenizer(config, texts, rule, found, progress)
    eos_id = end_of_text(tokenizer)
    if eos_id is None:
        raise UserError(f"tokenizer {config.tokenizer}: has no end-of-text token to part documents with; use another")
    sources = _describe_sources(texts)
    total = found.bytes + found.val_bytes
    with committed_folder(out) as folder:
        tokenizer.save(folder)
        encoded = encode_sides(
            folder,
            texts.sides(rule, found.val_hashes),
            tokenizer,
            eos_id=eos_id,
            shard_tokens=config.shard_tokens,
            in_pieces=cuts_cleanly(tokenizer.encode, found.long_text),
            progress=lambda done: progress("encoding", done, total),
        )
        description = DataDescription(
            fingerprint=hashlib.sha256(" ".join((tokenizer.fingerprint, *encoded.hashes)).encode()).hexdigest(),
            tokenizer=TokenizerEntry(
                origin=config.tokenizer,
                fingerprint=tokenizer.fingerprint,
                vocab_size=tokenizer.vocab_size,
                eos_id=eos_id,
            ),
            split=rule,
            train=encoded.train,
            val=encoded.val,
            sources=sources,
            skipped=dict(sorted(found.skipped.items())),
        )
        (folder / DATA_FILE).write_text(write_json(description.model_dump(mode="json")), encoding="utf-8")
    return PrepareReport(out, description, encoded.sample)


def _check_target(out: Path, inputs: tuple[Path, ...]) -> None:
    """Refuse an ``out`` that holds anything which replacing it would lose."""
    if out.exists() and not out.is_dir():
        raise UserError(f"{out}: is a file; name a folder with --out")
    for path in inputs:
        if path.resolve().is_relative_to(out.resolve()):
            raise UserError(f"{path}: lies in the output folder {out}, which is replaced; choose another --out")
    with explained(out, "read"):
        if not out.exists() or not any(out.iterdir()):
            return
        if not (out / DATA_FILE).is_file() or not (out / MANIFEST).is_file():
            raise UserError(f"{out}: is not empty and holds no prepared data; choose another --out")
        there = {path.relative_to(out).as_posix() for path in out.rglob("*") if not path.is_dir()}
    written = read_json_object(out / MANIFEST).get("files")
    strange = sorted(there - {MANIFEST} - set(written if isinstance(written, dict) else ()))
    if strange:
        raise UserError(f"{out}: holds {strange[0]}, which prepare did not write; move it or choose another --out")


def _decide_rule(config: PrepareConfig, found: Measure) -> SplitRule:
    if config.val:
        return SplitRule(rule="files", val_fraction=0.0, seed=config.seed)
    return choose_rule(
        config.split,
        val_fraction=config.val_fraction,
        seed=config.seed,
        n_documents=found.documents,
        n_bytes=found.bytes,
        held_out=found.held_out,
        held_out_bytes=found.held_out_bytes,
    )


def _make_tokenizer(
    config: PrepareConfig, texts: Texts, rule: SplitRule, found: Measure, progress: Progress
) -> Tokenizer:
    """A BPE learns from training text alone. A character vocabulary is an alphabet: it takes every character there is,
    since one that is missing would make validation text unreadable."""
    if config.tokenizer not in ("train", "char"):
        if config.special_tokens != "text":
            raise UserError(f"--special-tokens {config.special_tokens} is for a new vocabulary, not {config.tokenizer}")
        return load_tokenizer(Path(config.tokenizer))

    def watched(pieces: Iterable[str], total: int) -> Iterator[str]:
        meter = Meter(lambda done: progress("training the tokenizer", done, total))
        for piece in pieces:
            yield piece
            meter.add(len(piece.encode("utf-8")))
        meter.finish()

    sides, special_tokens = texts.sides(rule, found.val_hashes), SPECIAL_TOKENS[config.special_tokens]
    if config.tokenizer == "char":
        texts_of_both = (text for _, text in sides)
        return train_char(watched(texts_of_both, found.bytes + found.val_bytes), special_tokens=special_tokens)
    share = min(1.0, config.sample_bytes / found.bytes)
    sample = _take_evenly((piece for side, text in sides if side == "train" for piece in cut(text)), share)
    return train_bpe(
        watched(sample, int(share * found.bytes)),
        config.vocab_size,
        pre_tokenizer=config.pre_tokenizer,
        special_tokens=special_tokens,
    )


def end_of_text(tokenizer: Tokenizer) -> int | None:
    """What ends a document: not the end of a turn, the ``eos`` of many chat models; [SEP] for BERT and its kin."""
    for token in (*TEXT_ENDS, tokenizer.roles.get("eos"), tokenizer.roles.get("sep")):
        if token and (index := tokenizer.id(token)) in tokenizer.controls:
            return index
    return None


def _take_evenly(pieces: Iterable[str], share: float) -> Iterator[str]:
    credit = 0.0
    for piece in pieces:
        credit += share
        if credit >= 1:
            credit -= 1
            yield piece


def _describe_sources(texts: Texts) -> list[SourceEntry]:
    def find(paths: tuple[Path, ...]) -> Found:
        return find_files(paths, follow_links=texts.follow_links, exclude=texts.exclude)

    return describe_sources(find(texts.inputs), "input") + describe_sources(find(texts.val), "val")
