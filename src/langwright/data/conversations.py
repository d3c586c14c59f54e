"""Conversations as other programs write them -> messages in one form, their roles and order checked.

Read are the messages of the OpenAI API (role, content, tool_calls, the older function_call) and ShareGPT's (from,
value, with Glaive's function_call and observation).
"""

from collections.abc import Mapping, Sequence
from typing import Any

from langwright.core.errors import FormatError
from langwright.core.json_text import parse_json
from langwright.data.tables import RowError

Message = Mapping[str, Any]
"""``role`` (system, user, assistant or tool), ``content`` (text), and where there are any ``tool_calls``, ``name``,
``tool_call_id`` and ``reasoning_content``, as Hugging Face's chat templates read them."""

ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "function_call": "assistant",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
    "tool_response": "tool",
}
"""Names of roles, and what they are here."""
KEPT = ("name", "tool_call_id", "reasoning_content")

FOLLOWS = {
    "": ("system", "user"),
    "system": ("user",),
    "user": ("assistant",),
    "assistant": ("user",),
    "a call": ("tool",),
    "tool": ("tool", "assistant"),
}
"""Which roles may come after a role, or at the beginning; ``a call`` is an assistant's turn that calls tools."""


def read_messages(value: Any, where: str, field: str) -> tuple[Message, ...]:
    """The messages of one field; raises `RowError` for what is not one. Their order is left to `check_order`."""
    if isinstance(value, str):
        value = _from_json(value, where, field)
    if isinstance(value, Mapping):
        value = [value]
    if not isinstance(value, list | tuple) or not value:
        what = "is empty" if value in ([], (), None) else f"is a {type(value).__name__}"
        fix = "it should be a list such as [{'role': 'user', 'content': '...'}, {'role': 'assistant', ...}]"
        raise RowError(where, field, f"a conversation that {what}", fix)
    return tuple(_message(item, where, f"{field}[{place}]") for place, item in enumerate(value))


def read_tools(value: Any, where: str, field: str) -> tuple[Mapping[str, Any], ...]:
    """Descriptions of tools, a list or the JSON text of one, as ``{"type": "function", "function": {...}}``."""
    if value is None or value == "":
        return ()
    found = _from_json(value, where, field) if isinstance(value, str) else value
    if not isinstance(found, list | tuple) or not all(isinstance(tool, Mapping) for tool in found):
        raise RowError(
            where, field, "no list of tools", "write a list of objects with name and parameters, or its JSON"
        )
    tools = []
    for place, tool in enumerate(found):
        inner = tool.get("function", tool)
        if not isinstance(inner, Mapping) or not isinstance(inner.get("name"), str) or not inner["name"].strip():
            raise RowError(where, f"{field}[{place}]", "a tool without a name", "give it a name and parameters")
        tools.append({"type": "function", "function": dict(inner)})
    return tuple(tools)


def check_order(
    messages: Sequence[Message],
    where: str,
    field: str,
    *,
    after: Sequence[Message] = (),
    prompt: bool = False,
) -> None:
    """Check who speaks when, in ``messages`` that stand ``after`` others; raises `RowError` naming the message.

    One system message at most, at the beginning; then user and assistant in turn, tools after a call; an assistant's
    turn at the end, or with ``prompt`` the end just before one. Users and assistants say something, but for calls.
    """
    before = _standing(after[-1]) if after else ""
    for place, message in enumerate(messages):
        role, named = message["role"], f"{field}[{place}]"
        if role not in FOLLOWS[before]:
            raise RowError(where, named, _disorder(role, before), _order_fix(role, before))
        if role in ("user", "assistant") and not message["content"].strip() and not message.get("tool_calls"):
            what = "an empty answer" if role == "assistant" else "an empty user message"
            raise RowError(where, named, what, "write its content, or leave the row out")
        before = _standing(message)
    if prompt and before not in ("user", "tool"):
        raise RowError(where, field, "a prompt that nobody has to answer", "end it with a user or tool message")
    if not prompt and before not in ("assistant", "a call"):
        raise RowError(where, field, "no assistant turn at the end", "add one, or cut off what follows the last answer")


def _standing(message: Message) -> str:
    return "a call" if message.get("tool_calls") else message["role"]


def with_system(system: str | None, messages: Sequence[Message], where: str, field: str) -> tuple[Message, ...]:
    """``messages`` after the text of a separate system field, where there is one."""
    if system is None or not system.strip():
        return tuple(messages)
    if messages and messages[0]["role"] == "system":
        raise RowError(where, field, "a second system message", "keep one: the field, or the message")
    return ({"role": "system", "content": system}, *messages)


def turn(role: str, content: str) -> Message:
    """A message that is only text."""
    return {"role": role, "content": content}


def _message(item: Any, where: str, field: str) -> Message:
    if not isinstance(item, Mapping):
        fix = "write {'role': ..., 'content': ...}"
        raise RowError(where, field, f"a message that is a {type(item).__name__}", fix)
    given = item.get("role", item.get("from"))
    role = ROLES.get(given.lower()) if isinstance(given, str) else None
    if role is None:
        known = ", ".join(ROLES)
        raise RowError(where, f"{field}.role", f"an unknown role {given!r:.40}", f"use one of {known}")
    key = "content" if "content" in item or "value" not in item else "value"
    calls = _calls(item, given.lower(), item.get(key), where, field)
    content = "" if given.lower() == "function_call" else _text(item.get(key), calls, where, f"{field}.{key}")
    kept = {name: item[name] for name in KEPT if isinstance(item.get(name), str)}
    return {"role": role, "content": content, **kept} | ({"tool_calls": calls} if calls else {})


def _text(value: Any, calls: Sequence[Any], where: str, field: str) -> str:
    """A message's words; a list of text parts, as the OpenAI API has them, is put together."""
    if isinstance(value, str):
        return value
    if value is None and calls:
        return ""  # templates join it to other text
    if isinstance(value, list | tuple) and value and all(_is_text_part(part) for part in value):
        return "".join(part["text"] for part in value)
    what = "nothing" if value is None else f"a {type(value).__name__}"
    raise RowError(where, field, f"content that is {what}, not text", "write it as one string")


def _is_text_part(part: Any) -> bool:
    return isinstance(part, Mapping) and part.get("type") == "text" and isinstance(part.get("text"), str)


def _calls(item: Message, role: str, content: Any, where: str, field: str) -> list[dict[str, Any]]:
    """The tool calls of a message, each ``{"type": "function", "function": {"name", "arguments": {...}}}``."""
    if role == "function_call":  # ShareGPT: the call is the text
        named = f"{field}.value"
        given = _from_json(content, where, named) if isinstance(content, str) else content
        calls = list(given) if isinstance(given, list | tuple) else [given]
    elif item.get("tool_calls"):
        named, given = f"{field}.tool_calls", item["tool_calls"]
        calls = list(given) if isinstance(given, list | tuple) else [given]
    elif item.get("function_call"):
        named, calls = f"{field}.function_call", [item["function_call"]]
    else:
        return []
    if role not in ROLES or ROLES[role] != "assistant":
        raise RowError(where, named, f"a tool call by {role}", "only the assistant calls tools")
    return [_call(call, where, named) for call in calls]


def _call(call: Any, where: str, field: str) -> dict[str, Any]:
    inner = call.get("function", call) if isinstance(call, Mapping) else None
    if not isinstance(inner, Mapping) or not isinstance(inner.get("name"), str):
        raise RowError(where, field, "a call without the name of a tool", "write {'name': ..., 'arguments': {...}}")
    arguments = inner.get("arguments", inner.get("parameters"))
    if isinstance(arguments, str) and arguments.strip():
        arguments = _from_json(arguments, where, f"{field}.arguments")
    arguments = {} if arguments in (None, "") else arguments
    if not isinstance(arguments, Mapping):
        raise RowError(where, field, "arguments that are no JSON object", "write {'name': ..., 'arguments': {...}}")
    kept = {"id": call["id"]} if isinstance(call.get("id"), str) else {}
    return kept | {"type": "function", "function": {"name": inner["name"], "arguments": dict(arguments)}}


def _from_json(text: str, where: str, field: str) -> Any:
    try:
        return parse_json(text, where)
    except FormatError:
        raise RowError(where, field, f"text that is not JSON: {text!r:.60}", "mend it, or leave the row out") from None


def _disorder(role: str, before: str) -> str:
    if not before:
        return f"a conversation that begins with {role}"
    if role == "system":
        return "a second system message" if before == "system" else "a system message in the middle"
    return f"{role} after {before}" if role != before else f"two {role} messages in a row"


def _order_fix(role: str, before: str) -> str:
    if role == "tool":
        return "what a tool returns belongs after the assistant's call of it (tool_calls, function_call)"
    if role == "system":
        return "keep one, at the beginning"
    if before == "a call":
        return "put what the tool returned between them"
    return f"after {before} comes {' or '.join(FOLLOWS[before])}" if before else "begin with system or user"
