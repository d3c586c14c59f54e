"""Texts that are alike: pairs of them, or texts with the same label, as batches to learn embeddings from."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from langwright.core.errors import UserError
from langwright.data.examples import Completion, Labelled, TextPair
from langwright.data.loader import Batch
from langwright.data.order import draw_order
from langwright.tokenizer.tokenizer import Tokenizer
from langwright.train.tuning.config import TuneConfig
from langwright.train.tuning.framing import Given, TextDescription, fingerprint, folded, frame_texts, side_by_side
from langwright.train.tuning.parts import check_enough, divide, read_kind, tell_dropped


@dataclass(frozen=True)
class AlikeTexts:
    """Distinct ``texts`` as ids, and ``sides`` (n, S) int64: the numbers of an anchor, a positive and, where S is 3, a
    negative; a pair without one has its positive there.

    ``meanings`` (n, S) int64 says what each side means: those that mean the same are no negatives of each other.
    """

    texts: Sequence[Sequence[int]]
    sides: np.ndarray
    meanings: np.ndarray
    pad_id: int

    def __len__(self) -> int:
        """Pairs."""
        return len(self.sides)

    def example(self, number: int) -> int:
        """Itself."""
        return number

    def batch(self, numbers: Sequence[int]) -> Batch:
        """These pairs, (B, S, T), padded at the end."""
        chosen = self.sides[list(numbers)]  # (B, S)
        ids, mask = side_by_side([self.texts[number] for number in chosen.flatten()], self.pad_id)
        shape = (*chosen.shape, ids.shape[1])
        return Batch(ids.reshape(shape), self.meanings[list(numbers)], None, mask.reshape(shape))


def prepare_alike(
    files: Sequence[Path],
    val_files: Sequence[Path],
    tokenizer: Tokenizer,
    config: TuneConfig,
    say: Callable[[str], None],
) -> tuple[AlikeTexts, AlikeTexts, TextDescription]:
    """Read, pair, encode and divide; raises `UserError` naming file, row and fix for whatever cannot be.

    Without ``val_files`` a share of the anchors (of every label's texts, where there are labels) is held out, the same
    for the same seed.
    """
    train, val, dropped = divide(
        lambda paths: _read(paths, config),
        files,
        val_files,
        config.examples.val_share,
        config.seed,
        say,
        alike=_anchor,
        group=_group,
    )
    known = {folded(each.positive) for each in train if isinstance(each, TextPair)}
    if met := sum(isinstance(each, TextPair) and folded(each.positive) in known for each in val):
        say(f"the second text of {met:,} held-out pairs is learnt beside others too; new ones are harder to find")
    parts = []
    for part in (train, val):
        pairs = _pair_up(part, config.seed, dropped)
        parts.append(_encode(pairs, tokenizer, config, dropped))
        if not len(parts[-1]):
            raise UserError(
                f"{files[0]}: no pair is left to {'judge by' if part is val else 'learn from'}; give more examples, or "
                "raise --examples.val-share"
            )
    tell_dropped(dropped, say)
    check_enough(parts[0], config.train.batch_size, files[0], "pairs")
    about = TextDescription(
        files=tuple(str(path) for path in (*files, *val_files)),
        fingerprint=fingerprint((), *(each for part in parts for each in (part.texts, part.sides, part.meanings))),
        train=len(parts[0]),
        val=len(parts[1]),
        dropped=dict(dropped),
    )
    return parts[0], parts[1], about


Source = TextPair | Labelled


def _read(files: Sequence[Path], config: TuneConfig) -> tuple[list[Source], Counter[str]]:
    learns = "embed learns from pairs of texts that are alike, or texts with labels"
    _, examples, dropped = read_kind(files, config.examples, (TextPair, Completion, Labelled), learns)
    found: list[Source] = []
    for example in examples:
        if isinstance(example, Completion):
            example = TextPair(example.prompt, example.completion, None, example.where)
        elif isinstance(example, Labelled) and (example.pair is not None or len(example.labels) != 1):
            what = "two texts and a label" if example.pair is not None else f"{len(example.labels)} labels"
            raise UserError(
                f"{example.where}: has {what}; give texts with one label each, or only the pairs that are alike, "
                "without a label"
            )
        if isinstance(example, TextPair) and folded(example.anchor) == folded(example.positive):
            dropped["two of its texts are the same"] += 1
        else:
            found.append(example)
    if not found:
        raise UserError(f"{files[0]}: the two texts of every pair are the same; there is nothing to learn")
    return found, dropped


def _anchor(example: Source) -> str:
    return folded(example.anchor if isinstance(example, TextPair) else example.text)


def _group(example: Source) -> str | None:
    return None if isinstance(example, TextPair) else example.labels[0]


@dataclass(frozen=True)
class _Pair:
    """Texts, what they mean, and where they stand."""

    texts: tuple[str, ...]
    meanings: tuple[str, ...]
    where: str


def _pair_up(examples: Sequence[Source], seed: int, dropped: Counter[str]) -> list[_Pair]:
    """Pairs as they are; of each label every text with the next of an order that ``seed`` decides, the last with the
    first."""
    found: list[_Pair] = []
    wide = any(isinstance(example, TextPair) and example.negative for example in examples)
    groups: dict[str, dict[str, Labelled]] = {}
    for example in examples:
        if isinstance(example, Labelled):
            groups.setdefault(example.labels[0], {}).setdefault(folded(example.text), example)
            continue
        texts = [example.anchor, example.positive, *([example.negative or example.positive] if wide else [])]
        found.append(_Pair(tuple(texts), tuple(map(folded, texts)), example.where))
    for label, texts in sorted(groups.items()):
        members = list(texts.values())
        if len(members) == 1:
            dropped["no other text has its label"] += 1
            continue
        order = [members[number] for number in draw_order(len(members), seed, range(len(members)))]
        for one, other in zip(order, [*order[1:], order[0]], strict=True):
            found.append(_Pair((one.text, other.text), (label, label), one.where))
    return found


def _encode(pairs: Sequence[_Pair], tokenizer: Tokenizer, config: TuneConfig, dropped: Counter[str]) -> AlikeTexts:
    numbers: dict[str, int] = {}
    given: list[Given] = []
    for pair in pairs:
        for text in pair.texts:
            if numbers.setdefault(text, len(numbers)) == len(given):
                given.append(Given(text, None, pair.where))
    framed = frame_texts(given, tokenizer, config.train.context, config.examples, dropped) if given else []
    kept = [pair for pair in pairs if all(framed[numbers[text]] for text in pair.texts)]
    meanings: dict[str, int] = {}
    S = len(pairs[0].texts) if pairs else 2
    sides = np.array([[numbers[text] for text in pair.texts] for pair in kept], dtype=np.int64).reshape(-1, S)
    means = [[meanings.setdefault(each, len(meanings)) for each in pair.meanings] for pair in kept]
    pad = tokenizer.pad_id if tokenizer.pad_id is not None else 0
    texts = [each.ids if each else [] for each in framed]
    return AlikeTexts(texts, sides, np.array(means, dtype=np.int64).reshape(-1, S), pad)
