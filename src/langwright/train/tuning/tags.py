"""Words with tags: batches to learn them from."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from langwright.core.errors import UserError
from langwright.data.examples import TokenLabelled
from langwright.data.loader import IGNORED, Batch
from langwright.infer.prompts import frame
from langwright.infer.tagging import lay_words
from langwright.tokenizer.segments import encode_words
from langwright.tokenizer.tokenizer import Tokenizer
from langwright.train.tuning.config import TuneConfig
from langwright.train.tuning.framing import TextDescription, cuts, fingerprint, folded, side_by_side
from langwright.train.tuning.parts import divide, read_kind, tell_dropped


@dataclass(frozen=True)
class TaggedTexts:
    """Token ids of texts, and at every place the number of the tag that is told there, or `IGNORED`."""

    texts: Sequence[Sequence[int]]
    tags: Sequence[Sequence[int]]
    pad_id: int

    def __len__(self) -> int:
        """Texts."""
        return len(self.texts)

    def example(self, number: int) -> int:
        """Itself."""
        return number

    def batch(self, numbers: Sequence[int]) -> Batch:
        """These texts, padded at the end to the longest of them."""
        ids, mask = side_by_side([self.texts[number] for number in numbers], self.pad_id)
        return Batch(ids, side_by_side([self.tags[number] for number in numbers], IGNORED)[0], None, mask)


def prepare_tagged(
    files: Sequence[Path],
    val_files: Sequence[Path],
    tokenizer: Tokenizer,
    config: TuneConfig,
    say: Callable[[str], None],
    *,
    causal: bool,
) -> tuple[TaggedTexts, TaggedTexts, TextDescription]:
    """Read, encode, check and divide; raises `UserError` naming file, row and fix for whatever cannot be.

    A word's tag is told at its first token, by a ``causal`` model at its last, where it has read the word; no other
    token is learnt.
    """

    names: tuple[str, ...] = ()

    def read(paths: Sequence[Path]) -> tuple[list[TokenLabelled], Counter[str]]:
        nonlocal names
        _, examples, dropped = read_kind(paths, config.examples, (TokenLabelled,), "tag learns words with tags")
        found = sorted({tag for example in examples for tag in example.tags})
        if not names and len(found) < 2:
            raise UserError(f"{files[0]}: all words have the tag {found[0]!r:.60}; give examples of another one")
        names = names or tuple(found)
        return examples, dropped

    train, val, dropped = divide(
        read,
        files,
        val_files,
        config.examples.val_share,
        config.seed,
        say,
        alike=lambda each: folded(" ".join(each.words)),
    )
    for example in val:
        if unknown := [tag for tag in example.tags if tag not in names]:
            raise UserError(f"{example.where}: tag {unknown[0]!r:.60} does not occur in {files[0]}")
    parts = [_encode(part, names, tokenizer, config, dropped, causal=causal) for part in (train, val)]
    if not all(map(len, parts)):
        raise UserError(f"{files[0]}: no example is left; look at it with langwright inspect data")
    tell_dropped(dropped, say)
    about = TextDescription(
        files=tuple(str(path) for path in (*files, *val_files)),
        fingerprint=fingerprint(names, *(each for part in parts for each in (part.texts, part.tags))),
        labels=names,
        train=len(parts[0]),
        val=len(parts[1]),
        dropped=dict(dropped),
    )
    return parts[0], parts[1], about


def _encode(
    part: Sequence[TokenLabelled],
    names: Sequence[str],
    tokenizer: Tokenizer,
    config: TuneConfig,
    dropped: Counter[str],
    *,
    causal: bool,
) -> TaggedTexts:
    number, context = {name: at for at, name in enumerate(names)}, config.train.context
    before, _, after = frame(tokenizer, "a")
    texts, tags = [], []
    for example, words in zip(part, encode_words(tokenizer, [each.words for each in part]), strict=True):
        if empty := [word for word, ids in zip(example.words, words, strict=True) if not ids]:
            raise UserError(f"{example.where}: the word {empty[0]!r:.40} has no tokens; take it and its tag out")
        size = len(before) + sum(map(len, words)) + len(after)
        if size > context and not cuts(size, example.where, context, config.examples, dropped):
            continue
        ids, places = lay_words(words, before, after, context, last=causal)
        if not places:
            raise UserError(f"{example.where}: its first word does not fit into {context} tokens; raise train.context")
        told = [IGNORED] * len(ids)
        for place, tag in zip(places, example.tags, strict=False):
            told[place] = number[tag]
        texts.append(ids)
        tags.append(told)
    return TaggedTexts(texts, tags, tokenizer.pad_id if tokenizer.pad_id is not None else 0)
