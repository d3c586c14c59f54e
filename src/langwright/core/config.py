"""Typed configuration: frozen pydantic models are the only truth; TOML files and overrides only fill them."""

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from langwright.core.errors import UserError


class Frozen(BaseModel):
    """Base of every configuration: immutable, no unknown key, no NaN, defaults checked, docstrings become help."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", validate_default=True, use_attribute_docstrings=True, allow_inf_nan=False
    )

    @classmethod
    def parse(cls, values: Mapping[str, Any], source: str) -> Self:
        """Validate ``values``; raises `UserError` naming ``source`` and every wrong key in one line."""
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise UserError(f"{source}: {explain(error)}") from error

    def replace(self, **changes: Any) -> Self:
        """A copy with ``changes`` applied and checked as in `parse`."""
        return self.parse(dict(self) | changes, type(self).__name__)


def explain(error: ValidationError) -> str:
    """Pydantic's report as one line: ``key: what is wrong (got value)``; joined by semicolons."""
    parts = []
    for item in error.errors(include_url=False, include_context=False):
        where = ".".join(str(part) for part in item["loc"]) or "value"
        shown = "" if item["type"] in ("missing", "extra_forbidden") else f" (got {item['input']!r:.60})"
        what = "unknown key; remove it or check its spelling" if item["type"] == "extra_forbidden" else item["msg"]
        parts.append(f"{where}: {what.removeprefix('Value error, ')}{shown}")
    return " ".join("; ".join(parts).split())


def read_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file; raises `UserError` naming the file when it is missing or malformed."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; give the path of a TOML configuration") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"{path}: not valid TOML: {error}") from None


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """``base`` with ``over`` laid on it, key by key at every depth."""
    merged = dict(base)
    for key, value in over.items():
        below = merged.get(key)
        merged[key] = merge(below, value) if isinstance(below, Mapping) and isinstance(value, Mapping) else value
    return merged


def nest(key: str, value: Any) -> dict[str, Any]:
    """``train.max-steps`` and 10 -> {"train": {"max_steps": 10}}."""
    for part in reversed(key.replace("-", "_").split(".")):
        value = {part: value}
    return value
