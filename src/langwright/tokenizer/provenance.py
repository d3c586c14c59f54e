"""Text that remembers, character by character, who wrote it: the template, or the people and tools in the chat.

`Marked` is a real `str`, so a template's tests, searches and comparisons see the very text; what differs is that
cutting and joining carry the authorship along. Where authorship cannot be followed the result counts as content: a
template character taken for content costs a control token, while the reverse would forge one.
"""

from collections.abc import Iterable, Iterator
from typing import SupportsIndex

TEMPLATE, CONTENT = "T", "C"
"""Authors, one character of a mask each; in lower case where the assistant speaks (inside ``{% generation %}``)."""

MAX_CHARS = 4_000_000
MAX_ITEMS = 100_000
TOO_LONG = f"the text grows beyond {MAX_CHARS:,} characters"


class TemplateLimit(RuntimeError):
    """A template asked for more time, text or items than any conversation needs."""


def mask_of(text: str) -> str:
    """The author of each character; text that carries no mask was written in the template."""
    return text.mask if isinstance(text, Marked) else TEMPLATE * len(text)


def tracked(text: str) -> "Marked":
    """The same text with its authors."""
    return text if isinstance(text, Marked) else Marked(text, mask_of(text))


def joined(parts: Iterable[str], separator: str = "") -> "Marked":
    """``separator.join(parts)`` with the authors kept; raises `TemplateLimit` before making more than `MAX_CHARS`."""
    parts = list(parts)
    if sum(map(len, parts)) + len(separator) * max(0, len(parts) - 1) > MAX_CHARS:
        raise TemplateLimit(TOO_LONG)
    return Marked(str.join(separator, parts), mask_of(separator).join(map(mask_of, parts)))


class Marked(str):
    """A string with a ``mask``: one author for each character. Without a mask all of it is content."""

    mask: str

    def __new__(cls, text: str, mask: str | None = None) -> "Marked":
        self = super().__new__(cls, text)
        self.mask = CONTENT * len(text) if mask is None else mask
        return self

    def __str__(self) -> str:
        return self

    def __getitem__(self, key: SupportsIndex | slice) -> "Marked":
        return Marked(super().__getitem__(key), self.mask[key])

    def __iter__(self) -> Iterator["Marked"]:
        if len(self) > MAX_ITEMS:
            raise TemplateLimit(f"a list of more than {MAX_ITEMS:,} characters")
        for index in range(len(self)):
            yield self[index]

    def __add__(self, other: str) -> "Marked":
        return joined([self, other])

    def __radd__(self, other: str) -> "Marked":
        return joined([other, self])

    def __mul__(self, count: SupportsIndex) -> "Marked":
        times = max(0, count.__index__())
        if times > MAX_ITEMS:
            raise TemplateLimit(f"text repeated more than {MAX_ITEMS:,} times")
        return joined([self] * times)

    def __rmul__(self, count: SupportsIndex) -> "Marked":
        return self * count

    def lstrip(self, chars: str | None = None, /) -> "Marked":
        return self[len(self) - len(super().lstrip(chars)) :]

    def rstrip(self, chars: str | None = None, /) -> "Marked":
        return self[: len(super().rstrip(chars))]

    def strip(self, chars: str | None = None, /) -> "Marked":
        return self.lstrip(chars).rstrip(chars)

    def removeprefix(self, prefix: str, /) -> "Marked":
        return self[len(prefix) :] if self.startswith(prefix) else self

    def removesuffix(self, suffix: str, /) -> "Marked":
        return self[: len(self) - len(suffix)] if self.endswith(suffix) else self

    def split(self, sep: str | None = None, maxsplit: SupportsIndex = -1) -> list["Marked"]:  # type: ignore[override]
        return self._aligned(super().split(sep, _at_most(maxsplit)), sep)

    def rsplit(self, sep: str | None = None, maxsplit: SupportsIndex = -1) -> list["Marked"]:  # type: ignore[override]
        return self._aligned(super().rsplit(sep, _at_most(maxsplit)), sep)

    def splitlines(self, keepends: bool = False) -> list["Marked"]:  # type: ignore[override]
        lines = self._aligned(super().splitlines(True), "")
        return [line[: len(kept)] for line, kept in zip(lines, super().splitlines(keepends), strict=True)]

    def replace(self, old: str, new: str, count: SupportsIndex = -1, /) -> "Marked":
        if not old:
            raise TemplateLimit("replacing empty text")
        return joined(self.split(old, count), new)

    def join(self, items: Iterable[str], /) -> "Marked":
        return joined(items, self)

    def upper(self) -> "Marked":
        return self._recased(super().upper())

    def lower(self) -> "Marked":
        return self._recased(super().lower())

    def title(self) -> "Marked":
        return self._recased(super().title())

    def capitalize(self) -> "Marked":
        return self._recased(super().capitalize())

    def bare(self) -> str:
        """The text without its authors."""
        return super().__str__()

    def spoken(self) -> "Marked":
        """The same text as the assistant's own."""
        return Marked(self, self.mask.lower())

    def _recased(self, text: str) -> "Marked":
        return Marked(text, self.mask if len(text) == len(self) else None)

    def _aligned(self, pieces: list[str], sep: str | None) -> list["Marked"]:
        """The same pieces, cut from this text; between two stands ``sep``, or white space when it is None."""
        if len(pieces) > MAX_ITEMS:
            raise TemplateLimit(f"text in more than {MAX_ITEMS:,} pieces")
        found, cursor = [], 0
        for piece in pieces:
            start = self.index(piece, cursor) if sep is None else cursor
            found.append(self[start : start + len(piece)])
            cursor = start + len(piece) + len(sep or "")
        return found


def _at_most(maxsplit: SupportsIndex) -> int:
    asked = maxsplit.__index__()
    return asked if 0 <= asked <= MAX_ITEMS else MAX_ITEMS
