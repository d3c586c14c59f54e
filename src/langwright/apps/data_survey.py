"""A look at data for fine-tuning before anything is trained: its format, lengths, repeats, and what cannot be used."""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from langwright.core.errors import UserError
from langwright.data.examples import (
    Chat,
    Completion,
    Example,
    Feedback,
    Labelled,
    Preference,
    Problem,
    Text,
    TextPair,
    TokenLabelled,
    read_examples,
    text_of,
)
from langwright.data.label_checks import Repeats, check_rendered, duplicates
from langwright.data.rendering import Rendered, Renderer
from langwright.data.tables import RowError

Progress = Callable[[int, int], None]
"""Called with the rows that are done and those that there are."""

WRITTEN = Chat | Completion | Text | Feedback | Preference
NO_LIMIT = 1 << 31


@dataclass(frozen=True, slots=True)
class Survey:
    """What files hold. Lengths are in ``unit``, tokens or characters; of a pair the longer one counts."""

    paths: tuple[str, ...]
    format: str
    rows: int
    dropped: dict[str, int]
    """Rows that cannot be used, by reason; in ``first`` what was said of the first of each."""
    first: dict[str, str]
    unused: tuple[str, ...]
    repeats: Repeats
    unit: str
    lengths: list[int]
    max_tokens: int | None
    labels: dict[str, int] = field(default_factory=dict)
    """How often each label stands in the data, the most frequent first."""
    trained: int = 0
    """Tokens that are learnt."""
    rendered: list[Rendered] = field(default_factory=list)
    """The first rows as a model is given them."""
    samples: list[tuple[str, str]] = field(default_factory=list)
    """The first rows as they read: where they stand, and their text."""

    @property
    def histogram(self) -> list[tuple[int, int, int]]:
        """Lowest and highest length of each bin, and how many rows are in it; a bin ends at twice the one before."""
        bins = Counter(length.bit_length() for length in self.lengths)
        return [
            ((1 << size) >> 1, (1 << size) - 1, bins[size])
            for size in range(min(bins, default=0), max(bins, default=-1) + 1)
        ]

    @property
    def over(self) -> int:
        """Rows longer than ``max_tokens``."""
        return 0 if self.max_tokens is None else sum(length > self.max_tokens for length in self.lengths)

    def quantile(self, share: float) -> int:
        """The least length that a ``share`` of the rows does not exceed."""
        return sorted(self.lengths)[max(0, math.ceil(share * len(self.lengths)) - 1)]

    def summary(self) -> dict[str, Any]:
        """All of it but the rows, as JSON has it."""
        return {
            "format": self.format,
            "rows": self.rows,
            "dropped": self.dropped,
            "first_dropped": self.first,
            "unused_columns": list(self.unused),
            "duplicates": {"count": self.repeats.rows, "first": list(self.repeats.first or ())},
            "lengths": {
                "unit": self.unit,
                "total": sum(self.lengths),
                "median": self.quantile(0.5),
                "p90": self.quantile(0.9),
                "longest": max(self.lengths, default=0),
                "over": self.over,
                "histogram": [{"from": low, "to": high, "rows": count} for low, high, count in self.histogram],
            },
            "trained_tokens": self.trained,
            "labels": self.labels,
        }


def survey(
    paths: Sequence[str | Path],
    *,
    renderer: Renderer | None = None,
    fields: Mapping[str, str] | None = None,
    format: str | None = None,
    max_tokens: int | None = None,
    show: int = 3,
    progress: Progress = lambda done, total: None,
) -> Survey:
    """Read files as `read_examples` does, count faulty rows instead of stopping at them, and keep the first ``show``.

    With a ``renderer`` lengths are in tokens, and every row is rendered and checked. Raises `UserError` when the format
    cannot be told, and when no row can be used.
    """
    found = read_examples(paths, fields=fields, format=format, faults="drop")
    dropped, first = Counter(found.dropped), dict(found.first)
    lengths: list[int] = []
    kept: list[Rendered] = []
    samples: list[tuple[str, str]] = []
    trained = 0
    for done, example in enumerate(found.items, start=1):
        try:
            rows = _render(example, renderer)
        except UserError as error:
            reason = error.reason if isinstance(error, RowError) else str(error).removeprefix(f"{example.where}: ")
            dropped[reason] += 1
            first.setdefault(reason, str(error))
            if done == len(found.items) and not lengths:
                raise UserError(f"no row can be used: {error}") from None
            continue
        finally:
            progress(done, len(found.items))
        lengths.append(max((len(row.ids) for row in rows), default=0) if rows else _length(example, renderer))
        trained += sum(sum(row.trained[:max_tokens]) for row in rows)
        if len(samples) < show:
            samples.append((example.where, _reading(example)))
            kept += rows
    return Survey(
        paths=tuple(map(str, paths)),
        format=found.format,
        rows=len(found.items) + found.dropped.total(),
        dropped=dict(dropped.most_common()),
        first=first,
        unused=found.unused,
        repeats=duplicates(found.items),
        unit="characters" if renderer is None else "tokens",
        lengths=lengths,
        max_tokens=max_tokens,
        labels=dict(_labels(found.items).most_common()),
        trained=trained,
        rendered=kept,
        samples=samples,
    )


def _render(example: Example, renderer: Renderer | None) -> list[Rendered]:
    """What a language model is given of an example, checked; nothing for labels, which are no tokens."""
    if renderer is None or not isinstance(example, WRITTEN):
        return []
    found = renderer.render(example)
    rows = list(found) if isinstance(found, tuple) else [found]
    check_rendered(rows, renderer.tokenizer, NO_LIMIT)
    return rows


def _length(example: Example, renderer: Renderer | None) -> int:
    if renderer is None:
        return len(text_of(example))
    return len(renderer.tokenizer.encode(text_of(example), add_special_tokens=True))


def _labels(items: Sequence[Example]) -> Counter[str]:
    counts: Counter[str] = Counter()
    for item in items:
        match item:
            case Labelled(labels=labels) | TokenLabelled(tags=labels):
                counts.update(labels)
            case Feedback(good=good):
                counts["good" if good else "bad"] += 1
            case _:
                pass
    return counts


def _reading(example: Example) -> str:
    """An example as a person reads it."""
    match example:
        case Labelled(text=text, pair=pair, labels=labels):
            return "\n".join([text, *([pair] if pair else []), f"-> {', '.join(labels) or '(none)'}"])
        case TokenLabelled(words=words, tags=tags):
            return " ".join(f"{word}/{tag}" for word, tag in zip(words, tags, strict=True))
        case TextPair(anchor=anchor, positive=positive, negative=negative):
            return "\n".join([anchor, f"= {positive}", *([f"≠ {negative}"] if negative else [])])
        case Completion(prompt=prompt, completion=completion):
            return f"{prompt}\n-> {completion}"
        case Chat(messages=messages):
            return _told(messages)
        case Preference(prompt=prompt, chosen=chosen, rejected=rejected):
            return f"{_told(prompt)}\nchosen -> {_told(chosen)}\nrejected -> {_told(rejected)}"
        case Feedback(prompt=prompt, completion=completion, good=good):
            return f"{_told(prompt)}\n{'good' if good else 'bad'} -> {_told(completion)}"
        case Text(text=text):
            return text
        case Problem(prompt=prompt, answer=answer, tests=tests):
            return "\n".join([_told(prompt), f"answer: {answer}" if answer else "", tests]).strip()


def _told(messages: Sequence[Mapping[str, Any]]) -> str:
    return "\n".join(
        f"{message['role']}: {message['content']}"
        + "".join(f" {call['function']}" for call in message.get("tool_calls", ()))
        for message in messages
    )
