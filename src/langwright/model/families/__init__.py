"""The families: each a reader and writer of one ``config.json`` dialect and one reversible rename table."""

import difflib
from collections.abc import Mapping
from typing import Any

from langwright.core.errors import UserError
from langwright.model.families import (
    bert,
    gemma2,
    gemma3,
    gpt2,
    gpt_neox,
    llama,
    modernbert,
    own,
    qwen2,
    qwen3,
    roberta,
)
from langwright.model.families.base import Family

FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        own.VANILLA,
        own.LANGWRIGHT,
        gpt2.FAMILY,
        llama.FAMILY,
        llama.MISTRAL,
        qwen2.FAMILY,
        qwen3.FAMILY,
        gemma2.FAMILY,
        gemma3.FAMILY,
        gpt_neox.FAMILY,
        bert.FAMILY,
        roberta.FAMILY,
        modernbert.FAMILY,
    )
}


def find_family(values: Mapping[str, Any], source: str = "config.json") -> Family:
    """The family that a ``config.json`` belongs to, by its ``model_type``; raises `UserError` naming the known ones."""
    wanted = values.get("model_type")
    for family in FAMILIES.values():
        if wanted in family.model_types:
            return family
    known = sorted(name for family in FAMILIES.values() for name in family.model_types)
    near = difflib.get_close_matches(str(wanted), known, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise UserError(f"{source}: architecture {wanted!r} is not supported; {hint}supported: {', '.join(known)}")
