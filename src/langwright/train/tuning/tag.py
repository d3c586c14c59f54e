"""Labels of words: an encoder or a decoder with a head that tells the tag of every word, such as names in a text."""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from torch.nn import functional as F

from langwright.core.files import write_atomic
from langwright.core.json_text import write_json
from langwright.data.loader import IGNORED
from langwright.infer.tagging import Span, are_spans, find_spans
from langwright.model.model import Model
from langwright.train.card import RunFacts
from langwright.train.loop import Score
from langwright.train.objective import Objective, Piece, count_targets
from langwright.train.planning.advice import check_memory
from langwright.train.pretraining import decide
from langwright.train.spread import AS_ONE, Spread
from langwright.train.task import Task
from langwright.train.tuning.base import check_layout, foretell, gather_facts, headed, open_headed
from langwright.train.tuning.card import tagger_card
from langwright.train.tuning.config import TuneConfig
from langwright.train.tuning.framing import TextDescription
from langwright.train.tuning.intervals import interval, told
from langwright.train.tuning.judged import Judged, judge
from langwright.train.tuning.parts import ShuffledBatches
from langwright.train.tuning.reading import read, read_all
from langwright.train.tuning.tags import TaggedTexts, prepare_tagged

TAGS = "tags.json"


def tag_loss(model: Model, piece: Piece) -> Tensor:
    """Sum of -ln p(tag) over the words, in nats."""
    told = piece.targets != IGNORED
    return F.cross_entropy(read(model, piece)[told], piece.targets[told], reduction="sum")


TAGGING = Objective(count_targets, tag_loss)
"""A step's loss is the mean over its words."""


@dataclass(frozen=True)
class JudgedTags:
    """Held-out words, each judged by itself in ``words``, and the spans that ``names`` of tags make of them.

    ``rows`` (n,) says which text each word is of; a text's words stand side by side.
    """

    words: Judged
    rows: np.ndarray
    names: tuple[str, ...]

    @property
    def tokens(self) -> int:
        """Tokens that were read."""
        return self.words.tokens

    @property
    def is_finite(self) -> bool:
        """Whether the weights that were judged are sound."""
        return self.words.is_finite

    @cached_property
    def spans(self) -> np.ndarray | None:
        """Of each text how many spans were found exactly (same words, same label), told and true: (texts, 3)."""
        if not are_spans(self.names):
            return None
        return np.array([[len(true & said), len(said), len(true)] for true, said in self._sets], dtype=np.int64)

    @cached_property
    def _sets(self) -> list[tuple[set[Span], set[Span]]]:
        """True and told spans of every text."""
        starts = np.flatnonzero(np.diff(self.rows, prepend=-1)).tolist()
        found = []
        for start, stop in zip(starts, [*starts[1:], len(self.rows)], strict=True):
            tags = ([self.names[number] for number in each[start:stop]] for each in (self.words.true, self.words.said))
            true, said = (set(find_spans(each)) for each in tags)
            found.append((true, said))
        return found

    def score(self, step: int) -> Score:
        """As the figures of that step."""
        found = self.words.score(step)
        if self.spans is None:
            return found
        return found.replace(macro_f1=None, more={"entity_f1": rates(self.spans)[2]})

    def values(self) -> dict[str, Any]:
        """All of it by name, with 95 % confidence intervals, for which whole texts are redrawn: words of one text are
        no independent examples."""
        right = np.bincount(self.rows, self.words.true == self.words.said)
        count = np.bincount(self.rows)
        found = self.words.values(self.names)
        found["texts"] = len(count)
        found["ci95"]["accuracy"] = interval(lambda some: float(right[some].sum() / count[some].sum()), len(count))
        spans = self.spans
        if spans is None:
            return found
        names = ("precision", "recall", "f1")
        by_label: dict[str, Counter[str]] = {}
        for true, said in self._sets:
            for kind, group in (("hits", true & said), ("said", said), ("true", true)):
                for span in group:
                    by_label.setdefault(span.label, Counter())[kind] += 1
        found["entities"] = {
            "n": int(spans[:, 2].sum()),
            **dict(zip(names, rates(spans), strict=True)),
            "ci95": {
                name: interval(lambda some, spans=spans, at=at: rates(spans[some])[at], len(spans))
                for at, name in enumerate(names)
            },
            "labels": {
                label: {"n": each["true"]}
                | dict(zip(names, rates(np.array([[each["hits"], each["said"], each["true"]]])), strict=True))
                for label, each in sorted(by_label.items())
            },
        }
        return found

    def lines(self, values: dict[str, Any]) -> list[str]:
        """The gist of its `values`."""
        accuracy = f"accuracy of words {told(self.words.accuracy, values['ci95']['accuracy'], self.words.n)}"
        entities = values.get("entities")
        if entities is None:
            macro = told(self.words.macro_f1, values["ci95"]["macro_f1"], self.words.n)
            return [f"{accuracy}, macro F1 {macro}; tags make no spans (B-, I-, O), so none are judged"]
        parts = [
            f"{name} {told(entities[key], entities['ci95'][key], entities['n'])}"
            for name, key in (("F1 of entities", "f1"), ("precision", "precision"), ("recall", "recall"))
        ]
        worst = sorted(entities["labels"].items(), key=lambda item: item[1]["f1"])[:3]
        return [
            f"{', '.join(parts)}; {accuracy}",
            "weakest: " + ", ".join(f"{label} (F1 {each['f1']:.0%}, n = {each['n']:,})" for label, each in worst),
        ]


def rates(spans: np.ndarray) -> tuple[float, float, float]:
    """Precision, recall and F1 of ``spans`` (texts, 3), as seqeval has them; 0 where there are none."""
    hits, said, true = spans.sum(0).tolist()
    return hits / max(said, 1), hits / max(true, 1), 2 * hits / max(said + true, 1)


def tag(
    config: TuneConfig,
    files: Sequence[Path],
    val_files: Sequence[Path] = (),
    say: Callable[[str], None] = lambda _: None,
    *,
    force: bool = False,
    spread: Spread = AS_ONE,
) -> Task:
    """The task of ``config`` on words with tags, checked before any work; raises `UserError` for what cannot work."""
    start = open_headed(config)
    causal = start.load().config.causal
    train, val, about = prepare_tagged(files, val_files, start.tokenizer, config, say, causal=causal)
    config = decide(config, len(train), spread.ranks)
    settings = config.train
    start, model = headed(start, config, "token_classifier", about.labels)
    shape, first = model.config, [model]
    spread.check(settings, shape)
    check_layout(config, spread)
    facts = gather_facts(config, start, shape, about, files, partial(tagger_card, about=about))
    seen: list[JudgedTags] = []

    def validate(model: Model, stopping: Callable[[], bool], spread: Spread) -> JudgedTags:
        seen[:] = [score(model, val, about, stopping, spread)]
        return seen[0]

    lengths = [len(text) for text in train.texts]
    return Task(
        facts,
        max(1, len(train) // settings.batch_size),
        build=lambda: first.pop() if first else start.begin(),
        batches=lambda rows: ShuffledBatches(train, config.seed, settings.batch_size, rows, lengths),
        validate=validate,
        headline=lambda model: headline(facts, about, model, train),
        report=lambda model, out: report(out, seen[0]) if seen else [],
        objective=TAGGING,
        fit=check_memory(config, shape, say, force=force, spread=spread) if config.adapter is None else None,
        certified=True,
    )


def score(
    model: Model, val: TaggedTexts, about: TextDescription, stopping: Callable[[], bool], spread: Spread
) -> JudgedTags:
    """Judge the held-out words."""
    logits: dict[int, np.ndarray] = {}
    lengths = [len(text) for text in val.texts]
    for chosen, piece, found in read_all(model, val, lengths, stopping, spread):
        for number, row, targets in zip(chosen, found, piece.targets, strict=True):
            logits[number] = row[targets != IGNORED].double().cpu().numpy()  # (words, labels)
    order = range(len(val))
    rows = np.repeat(np.arange(len(val)), [len(logits[number]) for number in order])
    true = np.array([tag for tags in val.tags for tag in tags if tag != IGNORED], dtype=np.int64)
    words = judge(np.concatenate([logits[number] for number in order]), true, tokens=sum(lengths))
    return JudgedTags(words, rows, about.labels)


def report(out: Path, found: JudgedTags) -> list[str]:
    """Write ``OUT/tags.json``: how well words and spans are told; the gist in some lines."""
    values = found.values()
    write_atomic(out / TAGS, write_json(values))
    return [*found.lines(values), f"all of it is in {out / TAGS}"]


def headline(facts: RunFacts, about: TextDescription, model: Model, train: TaggedTexts) -> list[str]:
    """What is about to happen, in three lines."""
    mean = math.ceil(sum(map(len, train.texts)) / len(train))
    said = f"{about.train:,} texts of {mean} tokens on average, {len(about.labels)} tags; {about.val:,} held out"
    return foretell(facts, model, said, "texts", len(train))
