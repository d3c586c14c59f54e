"""The filters and functions that a chat template may call, each bounded by the size of what it is given."""

import json
from collections.abc import Callable, Iterable
from datetime import datetime
from typing import Any

from jinja2 import Undefined
from jinja2.exceptions import SecurityError, TemplateError
from jinja2.sandbox import safe_range
from jinja2.utils import Namespace

from langwright.tokenizer.provenance import MAX_CHARS, TOO_LONG, Marked, TemplateLimit, joined, tracked

MAX_INDENT = 100

FROM_JINJA = frozenset(
    "abs count d default dictsort first float int items last length list map max min reject rejectattr reverse select"
    " selectattr sort unique".split()
)
"""Filters taken from jinja2 as they are."""


def _text_inside(value: Any) -> int:
    """Characters of all strings in a value, as often as they would be printed."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, dict):
        return sum(_text_inside(key) + _text_inside(item) for key, item in value.items())
    return sum(map(_text_inside, value)) if isinstance(value, list | tuple) else 0


def to_text(value: Any) -> str:
    """A value as a template prints it; the text of a container counts as content."""
    if isinstance(value, str):
        return value
    if value is None or isinstance(value, bool | int | float | Undefined | range):
        return str(value)
    if not isinstance(value, list | tuple | dict):
        raise SecurityError(f"a {type(value).__name__} cannot be printed")
    if _text_inside(value) > MAX_CHARS:
        raise TemplateLimit(TOO_LONG)
    return Marked(str(value))


def to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> Marked:
    """JSON as chat templates expect it (no HTML escapes, Unicode as it is); the whole of it counts as content."""
    if _text_inside(value) > MAX_CHARS or (indent or 0) > MAX_INDENT:
        raise TemplateLimit(TOO_LONG)
    encoder = json.JSONEncoder(
        ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys, allow_nan=True
    )
    if indent is None:
        return Marked(encoder.encode(value))
    chunks, made = [], 0
    for chunk in encoder.iterencode(value):
        chunks.append(chunk)
        made += len(chunk)
        if made > MAX_CHARS:
            raise TemplateLimit(TOO_LONG)
    return Marked("".join(chunks))


def indent(text: str, width: int | str = 4, first: bool = False, blank: bool = False) -> Marked:
    """Every line (but the first, but empty ones) moved right by ``width`` spaces, or by the text ``width``."""
    if isinstance(width, int) and width > MAX_INDENT:
        raise TemplateLimit(f"an indent of more than {MAX_INDENT}")
    margin = " " * width if isinstance(width, int) else width
    lines = (tracked(text) + "\n").splitlines()  # the added end keeps a last empty line, as jinja2 does
    if len(text) + len(margin) * len(lines) > MAX_CHARS:
        raise TemplateLimit(TOO_LONG)
    moved = [margin + line if (line or blank) and (first or index) else line for index, line in enumerate(lines)]
    return joined(moved, "\n")


def join(items: Iterable[Any], separator: str = "") -> Marked:
    """Items as text, one after the other."""
    return joined([to_text(item) for item in items], to_text(separator))


def text_method(name: str) -> Callable[..., Marked]:
    """The filter that calls a method of the value's text."""
    return lambda value, *arguments: getattr(tracked(to_text(value)), name)(*arguments)


def make_namespace(*arguments: Any, **values: Any) -> Namespace:
    """Jinja's namespace; names that begin with an underscore would reach into the interpreter."""
    values = dict(*arguments, **values)
    if any(str(name).startswith("_") for name in values):
        raise SecurityError("a namespace holds no names that begin with an underscore")
    return Namespace(values)


def raise_exception(message: str) -> None:
    """How a template refuses a conversation."""
    raise TemplateError(str(message))


def strftime_now(form: str) -> str:
    """The local time in the form that the template asks for."""
    if len(form) > MAX_INDENT:
        raise TemplateLimit("a long date format")
    return datetime.now().strftime(form)


FILTERS: dict[str, Callable[..., Any]] = {
    "trim": text_method("strip"),
    **{name: text_method(name) for name in ("upper", "lower", "title", "capitalize", "replace")},
    "join": join,
    "string": to_text,
    "safe": to_text,
    "tojson": to_json,
    "indent": indent,
}
GLOBALS: dict[str, Any] = {
    "range": safe_range,
    "dict": dict,
    "namespace": make_namespace,
    "raise_exception": raise_exception,
    "strftime_now": strftime_now,
}
