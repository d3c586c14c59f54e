"""What an answer must look like: the settings, and the grammar they become."""

import json
import subprocess
import sys
from functools import lru_cache
from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from langwright.core.config import Frozen
from langwright.core.errors import UserError

COMPILE_SECONDS = 10.0
"""A grammar that takes longer is refused."""
COMPILE_BYTES = 2 << 30
"""Memory of the process that tries it."""
LIMITS: dict[str, Any] = {"max_items_in_row": 2000, "initial_lexer_fuel": 1_000_000, "max_grammar_size": 500_000}
WHITESPACE = " ?"
"""Between any two parts of a JSON text: one space or none."""
LONGEST = 1 << 18
"""Characters of a schema or grammar."""

TRIAL = """
import json, resource, sys
limit = int(sys.argv[1])
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
from llguidance import LLMatcher, LLParserLimits
grammar, limits = json.load(sys.stdin)
print(LLMatcher.validate_grammar(grammar, None, limits=LLParserLimits(**limits)))
"""


class ConstraintError(UserError):
    """The constraint cannot be compiled, costs too much, or cannot be met."""


class Constraint(Frozen):
    """One of these, whole: the answer is a text that it describes and nothing else."""

    json_schema: dict[str, Any] | bool | None = None
    """A JSON Schema; ``True`` is any JSON. Keys come in the order of the schema, with one space or none between parts.
    """
    regex: Annotated[str, Field(max_length=LONGEST)] | None = None
    """A regular expression in Rust's syntax, without look-around or back-references."""
    lark: Annotated[str, Field(max_length=LONGEST)] | None = None
    """A context-free grammar in llguidance's variant of Lark."""
    choice: tuple[Annotated[str, Field(min_length=1, max_length=LONGEST)], ...] | None = Field(
        default=None, min_length=1
    )
    """One of these texts."""

    @model_validator(mode="after")
    def _one(self) -> Self:
        given = [name for name in type(self).model_fields if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"give exactly one of json_schema, regex, lark, choice; got {given or 'none'}")
        return self

    def grammar(self) -> str:
        """Llguidance's own form of it, tried before; raises `ConstraintError` naming what is wrong or not supported."""
        return compile_grammar(json.dumps(self.model_dump(exclude_none=True), sort_keys=False))


@lru_cache(256)
def compile_grammar(constraint: str) -> str:
    """The grammar of a `Constraint` as JSON text.

    It is tried in a process of its own, since a hostile one may take any time or end the process that compiles it.
    """
    from llguidance import LLMatcher

    [(kind, value)] = json.loads(constraint).items()
    if len(constraint) > 2 * LONGEST:
        raise ConstraintError(f"the {kind} has {len(constraint)} characters; at most {LONGEST} are compiled")
    try:
        if kind == "json_schema":
            options: Any = {"whitespace_pattern": WHITESPACE, "lenient": False}
            grammar = LLMatcher.grammar_from_json_schema(json.dumps(value), overrides=options)
        elif kind == "regex":
            grammar = LLMatcher.grammar_from_regex(value)
        elif kind == "lark":
            grammar = LLMatcher.grammar_from_lark(value)
        else:
            grammar = LLMatcher.grammar_from_lark(
                "start: " + " | ".join(json.dumps(text, ensure_ascii=False) for text in value)
            )
    except ValueError as error:
        raise ConstraintError(f"the {kind} cannot be compiled: {_one_line(str(error))}") from None
    if wrong := _try(grammar):
        raise ConstraintError(f"the {kind} cannot be compiled: {wrong}")
    return grammar


def _try(grammar: str) -> str:
    """What is wrong with a grammar, or nothing."""
    command = [sys.executable, "-I", "-c", TRIAL, str(COMPILE_BYTES)]
    try:
        done = subprocess.run(
            command, input=json.dumps([grammar, LIMITS]), capture_output=True, text=True, timeout=COMPILE_SECONDS
        )
    except subprocess.TimeoutExpired:
        return f"it takes more than {COMPILE_SECONDS:.0f} seconds; make it simpler"
    if done.returncode:
        return "compiling it needs too much memory or depth; make it simpler"
    said = done.stdout.strip()
    return "" if said.startswith("WARNING") else _one_line(said)


def _one_line(text: str) -> str:
    return " ".join(text.split())[:300]
