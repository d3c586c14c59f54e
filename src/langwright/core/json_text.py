"""Strict JSON: what the specification allows and nothing more."""

import json
import math
import re
from pathlib import Path
from typing import Any

from langwright.core.errors import FormatError, UserError

_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")  # an escape that may be half of a pair


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"key {key!r:.200} stands twice")
        found[key] = value
    return found


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _finite(digits: str) -> float:
    number = float(digits)
    if math.isinf(number):
        raise ValueError(f"{digits:.60} is too large for a number")
    return number


def parse_json(text: str | bytes, source: str) -> Any:
    """Parse ``text``, strictly; raises `FormatError` naming ``source``.

    Refused: duplicate keys, NaN, Infinity and numbers that overflow to it, bad UTF-8, half a surrogate pair (a string
    that could never be written again), and bottomless nesting.
    """
    try:
        decoded = text.decode("utf-8") if isinstance(text, bytes) else text
        value = json.loads(decoded, object_pairs_hook=_no_duplicates, parse_constant=_no_constant, parse_float=_finite)
        if _SURROGATE.search(decoded):
            json.dumps(value, ensure_ascii=False).encode("utf-8")
        return value
    except RecursionError:
        raise FormatError(f"{source}: JSON nested too deeply") from None
    except ValueError as error:
        raise FormatError(f"{source}: not valid JSON: {error}") from None


def read_json(path: Path, *, limit: int = 256 << 20) -> Any:
    """Read a strict JSON file of at most ``limit`` bytes; raises `UserError` or `FormatError` naming the file."""
    try:
        with path.open("rb") as file:
            content = file.read(limit + 1)
        if len(content) > limit:
            raise FormatError(f"{path}: larger than {limit >> 20} MiB, too large for what it should be")
        return parse_json(content, str(path))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from None


def read_json_object(path: Path) -> dict[str, Any]:
    """Like `read_json`, and the top level must be an object."""
    value = read_json(path)
    if not isinstance(value, dict):
        raise FormatError(f"{path}: should hold a JSON object, holds a {type(value).__name__}")
    return value


def write_json(value: Any, *, indent: int | None = 2) -> str:
    """``value`` as JSON text with a final newline; NaN and Infinity raise ValueError."""
    return json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False) + "\n"
