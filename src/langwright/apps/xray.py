"""The X-ray of examples: which tokens are learnt, which are only read, where a turn ends and what is cut off."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

from jinja2 import Environment, PackageLoader, StrictUndefined
from rich.text import Text

from langwright.apps.data_survey import Survey
from langwright.data.rendering import Rendered
from langwright.tokenizer.stream import IncrementalDecoder
from langwright.tokenizer.tokenizer import Tokenizer

Kind = Literal["trained", "end", "context", "cut"]
KINDS: dict[Kind, tuple[str, str, str]] = {
    "trained": ("trained", "学习", "black on green"),
    "end": ("trained end of a turn", "学习的结束符", "bold white on magenta"),
    "context": ("read, not trained", "只读不学", "dim"),
    "cut": ("cut off", "截断", "strike red"),
}
"""What a token can be: in English, in Chinese, and as the terminal shows it."""
CUT_SHOWN = 20
"""Pieces that a terminal shows of what is cut off."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Text of one token, or of several that make a character together."""

    text: str
    kind: Kind
    ids: tuple[int, ...]

    @property
    def shown(self) -> str:
        """The text with its line breaks, tabs and emptiness made visible."""
        return self.text.replace("\r", "␍").replace("\n", "⏎\n").replace("\t", "⇥\t") or "∅"


@dataclass(frozen=True, slots=True)
class XRay:
    """One row: its pieces in order, and how many tokens there are of each kind."""

    where: str
    pieces: list[Piece]
    counts: dict[Kind, int]


def xray(row: Rendered, tokenizer: Tokenizer, max_tokens: int | None = None) -> XRay:
    """Look through a row of which the first ``max_tokens`` are used. Together the pieces are the text of its ids."""
    decoder = IncrementalDecoder(tokenizer)
    pieces: list[Piece] = []
    held: list[int] = []
    counts: Counter[Kind] = Counter()
    kind: Kind = "context"
    for place, (index, trained) in enumerate(zip(row.ids, row.trained, strict=True)):
        kind = _kind(index, trained, tokenizer, cut=max_tokens is not None and place >= max_tokens)
        counts[kind] += 1
        held.append(index)
        if text := decoder.push(index):
            pieces.append(Piece(text, kind, tuple(held)))
            held = []
    rest = decoder.finish()
    if rest or held:
        pieces.append(Piece(rest, kind, tuple(held)))
    return XRay(row.where, pieces, {name: counts[name] for name in KINDS})


def to_terminal(ray: XRay) -> Text:
    """A row in colours; of what is cut off only the beginning."""
    text = Text()
    for piece in _without_the_rest(ray):
        text.append(piece.shown, style=KINDS[piece.kind][2])
    return text


def to_plain(ray: XRay) -> str:
    """A row for where there are no colours: what is learnt stands in ``⟦ ⟧``, what is cut off after ``✂``."""
    shown, before = "", "context"
    for piece in _without_the_rest(ray):
        learnt, was = piece.kind in ("trained", "end"), before in ("trained", "end")
        shown += "⟧" * (was and not learnt) + "✂" * (piece.kind == "cut" != before) + "⟦" * (learnt and not was)
        shown += piece.shown
        before = piece.kind
    return shown + "⟧" * (before in ("trained", "end"))


def _without_the_rest(ray: XRay) -> list[Piece]:
    used = [piece for piece in ray.pieces if piece.kind != "cut"]
    return ray.pieces[: len(used) + CUT_SHOWN]


def legend() -> Text:
    """What the colours of `to_terminal` mean."""
    text = Text()
    for english, _, style in KINDS.values():
        text.append(f" {english} ", style=style)
        text.append("  ")
    return text


def to_page(survey: Survey, rays: Sequence[XRay]) -> str:
    """What was found in the data and the X-rays of some rows, as one HTML page that needs nothing else.

    Whatever comes from the data is escaped, and the page forbids scripts.
    """
    longest = max((count for _, _, count in survey.histogram), default=1)
    return (
        _templates()
        .get_template("xray.html.j2")
        .render(
            survey=survey,
            bars=[(low, high, count, round(100 * count / longest, 1)) for low, high, count in survey.histogram],
            rays=rays,
            kinds={name: words[:2] for name, words in KINDS.items()},
        )
    )


def _kind(index: int, trained: bool, tokenizer: Tokenizer, *, cut: bool) -> Kind:
    if cut:
        return "cut"
    if not trained:
        return "context"
    return "end" if index in tokenizer.eos_ids else "trained"


@cache
def _templates() -> Environment:
    return Environment(
        loader=PackageLoader("langwright.apps", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
