"""Both sides of the text -> token shards, in parallel batches and bounded memory."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from langwright.core.errors import UserError
from langwright.data.description import SplitEntry
from langwright.data.pieces import cut
from langwright.data.shards import ShardWriter, TokenShards
from langwright.data.texts import SIDES, Side
from langwright.tokenizer.tokenizer import Tokenizer

BATCH_CHARS = 2 << 20
"""Text that is encoded in one parallel call."""
SAMPLE_CHARS = 200


class _Piece(NamedTuple):
    side: Side
    text: str
    ends_document: bool


@dataclass(frozen=True, slots=True)
class RoundTrip:
    """The start of the first training document as it was, and as the written tokens decode."""

    original: str
    decoded: str

    @property
    def equal(self) -> bool:
        """Whether the tokens hold this text exactly."""
        return self.original == self.decoded


@dataclass(frozen=True, slots=True)
class Encoded:
    """What was written: counts and the SHA-256 of the token stream for each side, and a sample to look at."""

    train: SplitEntry
    val: SplitEntry
    hashes: tuple[str, str]
    sample: RoundTrip


def encode_sides(
    folder: Path,
    sides: Iterable[tuple[Side, str]],
    tokenizer: Tokenizer,
    *,
    eos_id: int,
    shard_tokens: int,
    in_pieces: bool,
    progress: Callable[[int], None],
) -> Encoded:
    """Write ``folder/train`` and ``folder/val``; ``in_pieces`` cuts long documents, as `langwright.data.pieces` says.

    ``progress`` is told the bytes of text so far. Raises `UserError` when a side gets no text.
    """
    unknown: Counter[Side] = Counter()
    done = 0
    start = ""
    with ExitStack() as stack:
        writers: dict[Side, ShardWriter] = {
            side: stack.enter_context(
                ShardWriter(folder / side, vocab_size=tokenizer.vocab_size, eos_id=eos_id, shard_tokens=shard_tokens)
            )
            for side in SIDES
        }
        for batch in _batches(_pieces(sides, in_pieces)):
            encoded = tokenizer.encode_batch([piece.text for piece in batch])
            for piece, ids in zip(batch, encoded, strict=True):
                size = len(piece.text.encode("utf-8"))
                writers[piece.side].add(ids, size, ends_document=piece.ends_document)
                unknown[piece.side] += 0 if tokenizer.unk_id is None else ids.count(tokenizer.unk_id)
                start = start or (piece.text[:SAMPLE_CHARS] if piece.side == "train" else "")
                done += size
            progress(done)
        for side, name in SIDES.items():
            if not writers[side].n_documents:
                raise UserError(
                    f"the {name} side of the split is empty: the text is too short to divide, or stands on the other "
                    "side; give more text, another --val-fraction, or other validation files with --val"
                )
    train, val = (_entry(writers[side], unknown[side]) for side in SIDES)
    hashes = (writers["train"].sha256, writers["val"].sha256)
    return Encoded(train, val, hashes, _round_trip(folder / "train", tokenizer, start))


def _pieces(sides: Iterable[tuple[Side, str]], in_pieces: bool) -> Iterator[_Piece]:
    for side, text in sides:
        *pieces, last = cut(text) if in_pieces else [text]
        for piece in pieces:
            yield _Piece(side, piece, ends_document=False)
        yield _Piece(side, last, ends_document=True)


def _batches(pieces: Iterable[_Piece]) -> Iterator[list[_Piece]]:
    batch: list[_Piece] = []
    size = 0
    for piece in pieces:
        batch.append(piece)
        size += len(piece.text)
        if size >= BATCH_CHARS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _entry(writer: ShardWriter, unknown: int) -> SplitEntry:
    return SplitEntry(
        documents=writer.n_documents,
        bytes=writer.n_bytes,
        tokens=writer.n_tokens,
        unknown_tokens=unknown,
        bytes_per_token=round(writer.n_bytes / writer.n_tokens, 4),
    )


def _round_trip(folder: Path, tokenizer: Tokenizer, start: str) -> RoundTrip:
    shards = TokenShards.open(folder)
    end = int(shards.documents[1]) - 1  # without its end-of-text token
    # A character is seldom more than 8 tokens; more of them would not show.
    ids = shards.tokens[: min(end, 8 * SAMPLE_CHARS)]
    return RoundTrip(start, tokenizer.decode(ids.tolist())[: len(start)])
