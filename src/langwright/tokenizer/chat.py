"""Chat templates: a conversation becomes ids in which only the template can have written a control token."""

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from jinja2 import Template

from langwright.core.errors import UserError
from langwright.tokenizer.controls import PlainEncoder, find_controls
from langwright.tokenizer.provenance import MAX_CHARS, MAX_ITEMS, Marked
from langwright.tokenizer.sandbox import Sandbox
from langwright.tokenizer.tokenizer import Tokenizer

MESSAGE_ROLES = frozenset("system developer user assistant tool function ipython model".split())
"""Roles that may be part of a control token's spelling, as in ``<|user|>``; any other role counts as content."""


@dataclass(frozen=True, slots=True)
class ChatIds:
    """A rendered conversation.

    ``assistant_mask`` has one flag for each id, true where the assistant speaks (its words and the token that ends its
    turn: what a model learns to write); it is empty unless `ChatTemplate.render` was asked for it.
    """

    ids: list[int]
    text: str
    assistant_mask: list[bool]


class ChatTemplate:
    """A Hugging Face chat template (Jinja), safe against its author and against what the conversation says."""

    def __init__(self, source: str | None, tokenizer: Tokenizer, *, cpu_seconds: float = 1.0):
        """Raises `UserError` when there is no template or it does not compile."""
        if not source:
            raise UserError("the tokenizer has no chat template; give one as chat_template.jinja beside tokenizer.json")
        self.source = source
        self._cpu_seconds = cpu_seconds
        self._special = {f"{role}_token": token for role, token in tokenizer.roles.items()}
        self._encoder = PlainEncoder(tokenizer.backend, tokenizer.controls | find_controls(tokenizer.backend, source))
        self._ends = tuple(tokenizer.token(index) for index in tokenizer.eos_ids)
        self._sandbox = Sandbox()
        self._one_at_a_time = threading.Lock()
        try:
            self._template: Template = self._sandbox.load(source)
        except Exception as error:  # a hostile source can make the parser and the compiler raise anything
            raise UserError(f"the chat template does not compile: {_first_line(error)}") from error

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        assistant_mask: bool = False,
        last_turn: bool = False,
        **variables: Any,
    ) -> ChatIds:
        """Render ``messages`` (``{"role": ..., "content": ...}``, values as in JSON) and encode the result.

        No text in ``messages``, ``tools`` or ``variables`` becomes a control token. ``assistant_mask`` asks for the
        flags of `ChatIds`: from ``{% generation %}`` in the template, else by comparing renderings that end before and
        after each assistant message; with ``last_turn`` for the last message alone. Then no token holds both the end of
        what the template says before a turn and the turn's beginning, as none does when the turn is generated. Raises
        `UserError` when the template refuses the conversation, fails, or computes too long, and when such a comparison
        is impossible.
        """
        conversation = [_message(message) for message in messages]
        given = {name: _content(value) for name, value in ({"tools": tools, "documents": None} | variables).items()}
        given |= self._special
        text = self._render(conversation, given, add_generation_prompt)
        if assistant_mask and last_turn:
            text = self._mark_last(text, conversation, given)
        elif assistant_mask and not any(map(str.islower, text.mask)):
            text = self._mark_turns(text, conversation, given)
        ids, masks = self._encoder.encode_marked(text)
        if assistant_mask and any(mask[:1].isupper() and not mask.isupper() for mask in masks):
            ids, masks = self._encode_parted(text)
        spoken = [any(map(str.islower, mask)) for mask in masks] if assistant_mask else []
        return ChatIds(ids, text.bare(), spoken)

    def _encode_parted(self, text: Marked) -> tuple[list[int], list[str]]:
        """`PlainEncoder.encode_marked` in pieces, each of which ends where the assistant begins to speak."""
        ids, masks = [], []
        begins = [at + 1 for at, (last, next_) in enumerate(pairwise(text.mask)) if last.isupper() and next_.islower()]
        for start, stop in pairwise([0, *begins, len(text)]):
            some_ids, some_masks = self._encoder.encode_marked(text[start:stop])
            ids += some_ids
            masks += some_masks
        return ids, masks

    def _render(self, conversation: list[dict[str, Any]], given: Mapping[str, Any], prompt: bool) -> Marked:
        variables = {**given, "messages": conversation, "add_generation_prompt": prompt}
        try:
            with self._one_at_a_time:
                return self._sandbox.render(self._template, variables, self._cpu_seconds)
        except Exception as error:  # a template may fail in any way that Python may
            raise UserError(f"the chat template failed: {_first_line(error)}") from error

    def _mark_turns(self, text: Marked, conversation: list[dict[str, Any]], given: Mapping[str, Any]) -> Marked:
        """``text`` with each assistant turn marked as spoken: from the prompt for it to the token that ends it."""
        mask, done = "", 0
        for index, message in enumerate(conversation):
            if message["role"] != "assistant":
                continue
            before = self._render(conversation[:index], given, prompt=True)
            after = self._render(conversation[: index + 1], given, prompt=False)
            if not (after.startswith(before) and text.startswith(after)):
                raise UserError(
                    f"which tokens the assistant wrote cannot be told: message {index} reads differently in the whole"
                    " conversation and at its end; let conversations end there, or mark the assistant's words in the"
                    " template with {% generation %}"
                )
            bare = after.rstrip()  # the line break after an end token is the template's
            stop = len(bare) if bare.endswith(self._ends) else len(after)
            mask += text.mask[done : len(before)] + text.mask[len(before) : stop].lower()
            done = stop
        return Marked(text, mask + text.mask[done:])

    def _mark_last(self, text: Marked, conversation: list[dict[str, Any]], given: Mapping[str, Any]) -> Marked:
        """``text`` with the last message alone marked as spoken, which has to be the assistant's."""
        before = self._render(conversation[:-1], given, prompt=True)
        if not conversation or conversation[-1].get("role") != "assistant" or not text.startswith(before):
            raise UserError(
                "which tokens the assistant wrote cannot be told: the conversation does not go on from the prompt that"
                " the template makes of what stands before its last message"
            )
        end = text.mask[len(before) :]
        if not any(map(str.islower, end)):
            bare = text.rstrip()
            stop = len(bare) if bare.endswith(self._ends) else len(text)
            end = text.mask[len(before) : stop].lower() + text.mask[stop:]
        return Marked(text, text.mask[: len(before)].upper() + end)


def _message(message: Mapping[str, Any]) -> dict[str, Any]:
    if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
        raise UserError(f"a message should look like {{'role': 'user', 'content': '...'}}, not {message!r:.80}")
    known = message["role"] in MESSAGE_ROLES
    return _content(message) | ({"role": str(message["role"])} if known else {})


def _content(value: Any) -> Any:
    """``value`` copied into plain containers, with every string in it, keys too, marked as content."""
    try:
        return _Copy().of(value)
    except RecursionError:
        raise UserError("a message is nested too deeply") from None


class _Copy:
    """One walk through a message's values, counting what it copies."""

    def __init__(self) -> None:
        self._items = self._chars = 0

    def of(self, value: Any) -> Any:
        self._items += 1
        self._chars += len(value) if isinstance(value, str) else 0
        if self._items > MAX_ITEMS or self._chars > MAX_CHARS:
            raise UserError(f"a message holds more than {MAX_CHARS:,} characters or {MAX_ITEMS:,} items")
        if value is None or isinstance(value, bool | int | float):
            return value
        if isinstance(value, str):
            return Marked(value)
        if isinstance(value, Mapping):
            return {self.of(key): self.of(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self.of(item) for item in value]
        raise UserError(f"a message holds a {type(value).__name__}; it may hold what JSON holds")


def _first_line(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "it is nested or calls itself too deeply"
    return next(iter(str(error).splitlines()), type(error).__name__)[:300]
