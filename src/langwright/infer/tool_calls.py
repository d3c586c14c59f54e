"""Calls of functions: what an answer may then look like, and which calls it holds.

A call is written ``<tool_call>``, a line break, ``{"name": "...", "arguments": {...}}``, a line break,
``</tool_call>``, as Qwen's models and the template ``chatml-tools`` have it. The grammar fixes all but the name, which
is one of the tools', and the arguments, which follow the tool's schema; so reading calls from an answer, also while it
is being written, needs no guess.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from langwright.core.errors import UserError
from langwright.infer.constraints import WHITESPACE, Constraint
from langwright.infer.sampling import SamplingConfig

Tool = Mapping[str, Any]
"""As in OpenAI's API: ``{"type": "function", "function": {"name", "description", "parameters"}}``."""

TRIGGER = "<tool_call>"
OPEN = TRIGGER + '\n{"name": "'
MIDDLE = '", "arguments": '
CLOSE = "}\n</tool_call>"
NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")


def constrain(tools: Sequence[Tool], choice: str = "auto", *, parallel: bool = True) -> Constraint | None:
    """The constraint of an answer that may call ``tools``; None where it may not.

    ``choice``: ``none``; ``auto``, text that calls may follow; ``required``, at least one call and nothing else; or
    the name of the one tool to call. Without ``parallel`` there is one call at most. Raises `UserError` naming what is
    wrong with a tool or the choice.
    """
    schemas = dict(_read(tool) for tool in tools)
    if len(schemas) < len(tools):
        raise UserError("two tools have the same name; give each its own")
    if choice not in ("none", "auto", "required"):
        if choice not in schemas:
            known = ", ".join(schemas) or "there are none"
            raise UserError(f"tool_choice {choice!r:.80} is not none, auto, required or a tool's name ({known})")
        schemas, parallel = {choice: schemas[choice]}, False
    if choice == "none" or (choice == "auto" and not schemas):
        return None
    if not schemas:
        raise UserError("tool_choice is required and there are no tools; give one")
    body = "body (" + _literal("\n" + TRIGGER + "\n") + " body)*" if parallel else "body"
    opened = _literal(TRIGGER + "\n")
    lines = [
        f"start: TEXT | open {_literal(chr(10))} calls" if choice == "auto" else f"start: {opened} calls",
        f"calls: {body}",
        "body: " + " | ".join(f"tool_{number}" for number in range(len(schemas))),
    ]
    if choice == "auto":
        lines += [r"TEXT: /(.|\n)*/", f"open[lazy]: /(.|\\n)*{re.escape(TRIGGER)}/"]
    for number, (name, schema) in enumerate(schemas.items()):
        head, tail = _literal(OPEN.removeprefix(TRIGGER + "\n") + name + MIDDLE), _literal(CLOSE)
        lines.append(f"tool_{number}: {head} %json {json.dumps(schema)} {tail}")
    return Constraint(lark="\n".join(lines) + "\n")


def bind(sampling: SamplingConfig, tools: Sequence[Tool], choice: str, parallel: bool) -> SamplingConfig:
    """``sampling`` with the constraint of `constrain`; raises `UserError` where it has another one."""
    constraint = constrain(tools, choice, parallel=parallel)
    if constraint is None:
        return sampling
    if sampling.constraint is not None:
        raise UserError("an answer that may call tools cannot have a constraint of its own; leave one out")
    return sampling.replace(constraint=constraint)


def _read(tool: Tool) -> tuple[str, dict[str, Any]]:
    """Its name and the schema of its arguments."""
    function = tool.get("function") if tool.get("type") == "function" else None
    if not isinstance(function, Mapping) or not isinstance(name := function.get("name"), str):
        raise UserError('a tool is {"type": "function", "function": {"name": ..., "parameters": {...}}}')
    if not NAME.fullmatch(name):
        raise UserError(f"the tool name {name!r:.80} is not 1 to 64 letters, digits, underscores, dots or hyphens")
    schema = function.get("parameters") or {"type": "object", "properties": {}, "additionalProperties": False}
    if not isinstance(schema, Mapping) or schema.get("type") != "object":
        raise UserError(f'the parameters of tool {name} are not a JSON Schema of "type": "object"')
    return name, {**schema, "x-guidance": {"whitespace_pattern": WHITESPACE}}


def _literal(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


@dataclass
class Call:
    """One call in an answer."""

    name: str
    arguments: str = ""
    """JSON text, complete once ``done``."""
    done: bool = False


@dataclass
class CallParser:
    """Parts an answer into its text and its calls as it is written.

    What `push` returns are the changes: pieces of text, and for a call ``(number, name)`` when it begins and
    ``(number, piece)`` of its arguments, in order.
    """

    calls: list[Call] = field(default_factory=list)
    _held: str = ""
    _within: str = "text"
    _depth: int = 0
    _quoted: bool = False
    _escaped: bool = False

    def push(self, text: str) -> list["str | Begin | Piece"]:
        """Take the next piece of the answer."""
        self._held += text
        changes: list[str | Begin | Piece] = []
        while (change := self._advance()) is not None:
            if change != "":
                changes.append(change)
        return changes

    def finish(self) -> str:
        """The answer has ended: text that was held back because a call might have followed."""
        rest, self._held = (self._held if self._within == "text" else ""), ""
        return rest

    def _advance(self) -> "str | Begin | Piece | None":
        """One change, the empty string for one that nobody sees, None where more of the answer is needed."""
        if self._within == "text":
            opening = "\n" + OPEN if self.calls else OPEN
            before, found, after = self._held.partition(opening)
            if found:
                self._held, self._within = after, "name"
                return before
            keep = next(size for size in range(len(opening) - 1, -1, -1) if before.endswith(opening[:size]))
            shown, self._held = before[: len(before) - keep], before[len(before) - keep :]
            return shown or None
        if self._within == "name":
            name, found, after = self._held.partition(MIDDLE)
            if not found:
                return None
            self._held, self._within = after, "arguments"
            self.calls.append(Call(name))
            return Begin(len(self.calls) - 1, name)
        if self._within == "arguments":
            return self._advance_arguments()
        if len(self._held) < len(CLOSE):
            return None
        self._held, self._within = self._held[len(CLOSE) :], "text"
        self.calls[-1].done = True
        return ""

    def _advance_arguments(self) -> "Piece | None":
        """All that is there of the JSON value, of which brackets and quotes tell the end."""
        for at, letter in enumerate(self._held):
            if self._quoted:
                self._quoted = self._escaped or letter != '"'
                self._escaped = letter == "\\" and not self._escaped
            elif letter in '"{}[]':
                self._quoted = letter == '"'
                self._depth += {"{": 1, "[": 1, "}": -1, "]": -1}.get(letter, 0)
                if not self._depth and not self._quoted:
                    return self._take(at + 1, "close")
        return self._take(len(self._held), "arguments") if self._held else None

    def _take(self, size: int, within: str) -> "Piece":
        piece, self._held, self._within = self._held[:size], self._held[size:], within
        self.calls[-1].arguments += piece
        return Piece(len(self.calls) - 1, piece)


@dataclass(frozen=True)
class Begin:
    """A call begins."""

    number: int
    name: str


@dataclass(frozen=True)
class Piece:
    """More of a call's arguments."""

    number: int
    text: str


def parse_calls(text: str) -> tuple[str, list[Call]]:
    """A whole answer's text, and its calls; one that was cut off is not ``done``."""
    parser = CallParser()
    pieces = [change for change in parser.push(text) if isinstance(change, str)]
    return "".join(pieces) + parser.finish(), parser.calls
