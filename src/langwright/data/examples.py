"""What fine-tuning learns from: the rows of files as a few kinds of examples, whatever form they were written in."""

import contextlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from langwright.core.errors import FormatError, UserError
from langwright.core.json_text import parse_json
from langwright.data.conversations import Message, check_order, read_messages, read_tools, turn, with_system
from langwright.data.detection import FIELDS, NAMES, Format, apply_fields, column_of, find_format
from langwright.data.tables import RowError, TableRow, read_tables

Messages = tuple[Message, ...]
Tools = tuple[Mapping[str, Any], ...]


@dataclass(frozen=True, slots=True)
class Chat:
    """A conversation that ends with an assistant's turn."""

    messages: Messages
    tools: Tools = ()
    where: str = ""


@dataclass(frozen=True, slots=True)
class Completion:
    """A prompt and what follows it, both plain text that stands side by side as it is."""

    prompt: str
    completion: str
    where: str = ""


@dataclass(frozen=True, slots=True)
class Text:
    """A document."""

    text: str
    where: str = ""


@dataclass(frozen=True, slots=True)
class Preference:
    """A prompt with a better and a worse continuation of it."""

    prompt: Messages
    chosen: Messages
    rejected: Messages
    tools: Tools = ()
    where: str = ""


@dataclass(frozen=True, slots=True)
class Feedback:
    """A prompt with one continuation, found good or not, as KTO takes it (arXiv:2402.01306)."""

    prompt: Messages
    completion: Messages
    good: bool
    tools: Tools = ()
    where: str = ""


@dataclass(frozen=True, slots=True)
class Labelled:
    """A text, or a pair of texts, with its labels: one, or for several at once none or more."""

    text: str
    pair: str | None
    labels: tuple[str, ...]
    where: str = ""
    several: bool = False
    """Whether they were written as a list."""


@dataclass(frozen=True, slots=True)
class TokenLabelled:
    """Words with a tag each."""

    words: tuple[str, ...]
    tags: tuple[str, ...]
    where: str = ""


@dataclass(frozen=True, slots=True)
class Problem:
    """A prompt whose answers can be checked: by the right one, by tests that a program has to pass, or by both."""

    prompt: Messages
    answer: str
    tests: str = ""
    where: str = ""


@dataclass(frozen=True, slots=True)
class TextPair:
    """Two texts that mean the same or belong together, and perhaps one that only looks as if it did."""

    anchor: str
    positive: str
    negative: str | None = None
    where: str = ""


Example = Chat | Completion | Text | Preference | Feedback | Labelled | TokenLabelled | TextPair | Problem


@dataclass(frozen=True, slots=True)
class Examples:
    """What files held. ``dropped`` counts rows by the reason why they were left out; ``first`` tells of the first."""

    format: str
    items: list[Example]
    dropped: Counter[str] = field(default_factory=Counter)
    first: dict[str, str] = field(default_factory=dict)
    unused: tuple[str, ...] = ()
    """Columns that no field was taken from."""


def read_examples(
    paths: Iterable[str | Path],
    *,
    fields: Mapping[str, str] | None = None,
    format: str | None = None,
    faults: Literal["error", "drop"] = "error",
) -> Examples:
    """The examples of files and folders, all of one format: found from the columns, unless ``format`` names it.

    ``fields`` maps our fields to the file's columns: ``{"prompt": "question"}``. Rows without text and pairs whose
    sides are equal are dropped and counted. A row that is faulty or of another format than those before it raises
    `UserError` naming row, field and fix; with ``faults="drop"`` it is dropped and counted too. Raises `UserError` also
    when the columns fit no format or several, and when no row is left.
    """
    if format is not None and format not in NAMES:
        raise UserError(f"{format!r} is not a format of examples; the formats are {', '.join(NAMES)}")
    for ours, theirs in (fields or {}).items():
        if ours not in FIELDS:
            raise UserError(f"--fields {ours}={theirs}: {ours!r} is not a field; the fields are {', '.join(FIELDS)}")
    reader = _Reader(dict(fields or {}), format)
    found = Examples(format or "", [])
    dropped, first = found.dropped, found.first
    for row in read_tables(paths):
        try:
            found.items.append(reader.read(row))
        except RowError as error:
            if faults == "error" and error.reason not in HARMLESS:
                raise
            dropped[error.reason] += 1
            first.setdefault(error.reason, str(error))
    if not found.items:
        told = "; ".join(first.values()) or "they are empty"
        raise UserError(f"no row can be used: {told}")
    return Examples(reader.name, found.items, dropped, first, tuple(reader.unused))


def text_of(example: Example) -> str:
    """All that an example says, labels apart: what tells two examples that are the same."""
    match example:
        case Text(text=text):
            return text
        case Completion():
            return f"{example.prompt}\n{example.completion}"
        case Labelled():
            return example.text if example.pair is None else f"{example.text}\n{example.pair}"
        case TokenLabelled():
            return " ".join(example.words)
        case TextPair():
            return "\n".join([example.anchor, example.positive, *([example.negative] if example.negative else [])])
        case Chat(messages=messages):
            return _said(messages)
        case Preference():
            return _said([*example.prompt, *example.chosen, *example.rejected])
        case Feedback():
            return _said([*example.prompt, *example.completion])
        case Problem(prompt=prompt, answer=answer, tests=tests):
            return "\n".join(filter(None, (_said(prompt), answer, tests)))


def _said(messages: Sequence[Message]) -> str:
    return "\n".join(f"{message['content']}{message.get('tool_calls') or ''}" for message in messages)


# One row --------------------------------------------------------------------------------------------------------------

NO_TEXT, EQUAL_PAIR, EQUAL_TEXTS = "no text", "chosen and rejected are the same", "two of its texts are the same"
HARMLESS = frozenset({NO_TEXT, EQUAL_PAIR, EQUAL_TEXTS})
"""Reasons to leave a row out that say nothing against the others."""


class _Reader:
    """Reads rows one after the other, and holds on to the format of the first."""

    def __init__(self, fields: dict[str, str], name: str | None):
        self.name = name or ""
        self.unused: dict[str, None] = {}
        self._fields, self._asked = fields, name
        self._columns: tuple[str, ...] = ()  # of the first row
        self._shapes: set[tuple[str, ...]] = set()
        self._kind: type | None = None
        self._several: bool | None = None  # of labels

    def read(self, row: TableRow) -> Example:
        """One row's example; raises `RowError` for a faulty row, `UserError` where the format cannot be told."""
        try:
            return self._read(row)
        except RowError:
            raise
        except UserError as error:
            raise UserError(f"{row.where}: {error}") from None

    def _read(self, row: TableRow) -> Example:
        values = apply_fields(row.values, self._fields)
        form = self._form(row.where, values)
        shape = tuple(values)
        if shape not in self._shapes:
            self._shapes.add(shape)
            used = {column_of(name, values) for name in (*form.required, *form.optional)}
            self.unused |= dict.fromkeys(column for column in shape if column not in used)
        example = READERS[form.name](_Row(row.where, values, self._fields, form))
        self._kind = self._kind or type(example)
        if type(example) is not self._kind:
            raise RowError(row.where, "", "messages where other rows have text, or the reverse", "write all rows alike")
        if isinstance(example, Labelled):
            self._several = example.several if self._several is None else self._several
            if example.several != self._several:
                reason = "one label where other rows have a list of them, or the reverse"
                raise RowError(row.where, "label", reason, "write all rows alike")
        return example

    def _form(self, where: str, values: Mapping[str, Any]) -> Format:
        try:
            form = find_format(values, mapped=bool(self._fields), name=self._asked)
        except UserError:
            if not self._columns:
                raise
            form = None
        self._columns = self._columns or tuple(values)
        self.name = self.name or (form.name if form else "")
        if form is None or form.name != self.name:
            lacks = [column for column in self._columns if column not in values]
            extra = [column for column in values if column not in self._columns]
            named = (lacks or extra or [""])[0]
            what = "is missing" if lacks else "is new"
            raise RowError(
                where,
                f"column {named!r}" if named else "",
                f"{what} in a row where the rows before are {self.name}" if named else f"not {self.name} as before",
                "mend the row, or put other forms into files of their own",
            )
        return form


@dataclass(frozen=True, slots=True)
class _Row:
    where: str
    values: Mapping[str, Any]
    fields: Mapping[str, str]
    form: Format

    def has(self, name: str) -> bool:
        return name in (*self.form.required, *self.form.optional) and self.value(name) is not None

    def value(self, name: str) -> Any:
        column = column_of(name, self.values)
        return None if column is None else self.values[column]

    def column(self, name: str) -> str:
        """What the file calls it."""
        column = column_of(name, self.values) or name
        return self.fields.get(column, column)

    def fault(self, name: str, reason: str, fix: str) -> RowError:
        return RowError(self.where, self.column(name), reason, fix)

    def text(self, name: str, what: str) -> str:
        """Text that is there and says something; ``what`` it is called when it does not."""
        value = self.value(name)
        if value is None or (isinstance(value, str) and not value.strip()):
            raise self.fault(name, f"an empty {what}", "write it, or leave the row out")
        if not isinstance(value, str):
            raise self.fault(name, f"a {type(value).__name__} where text belongs", "write it as one string")
        return value

    def maybe(self, name: str) -> str:
        """Text that may be missing."""
        value = self.value(name) if self.has(name) else None
        return "" if value is None or (isinstance(value, str) and not value.strip()) else self.text(name, name)

    def messages(self, name: str) -> Messages:
        return read_messages(self.value(name), self.where, self.column(name))

    def tools(self) -> Tools:
        return read_tools(self.value("tools"), self.where, self.column("tools")) if self.has("tools") else ()

    def system(self, messages: Sequence[Message]) -> Messages:
        return with_system(self.maybe("system"), messages, self.where, self.column("system"))


def _read_chat(row: _Row) -> Chat:
    name = row.form.required[0]
    messages = row.system(row.messages(name))
    check_order(messages, row.where, row.column(name))
    return Chat(messages, row.tools(), row.where)


def _instruction(row: _Row) -> Messages:
    """The turns that an Alpaca row has before its answer."""
    asked, given = row.text("instruction", "instruction"), row.maybe("input")
    past: list[Message] = []
    for pair in row.value("history") or () if row.has("history") else ():
        if not isinstance(pair, list | tuple) or len(pair) != 2 or not all(isinstance(said, str) for said in pair):
            raise row.fault("history", "an exchange that is no pair of texts", "write [[question, answer], ...]")
        past += [turn("user", pair[0]), turn("assistant", pair[1])]
    messages = row.system([*past, turn("user", f"{asked}\n{given}" if given else asked)])
    check_order(messages, row.where, row.column("instruction"), prompt=True)
    return messages


def _read_alpaca(row: _Row) -> Chat:
    answer = turn("assistant", row.text("output", "answer"))
    return Chat((*_instruction(row), answer), (), row.where)


def _read_completion(row: _Row) -> Completion | Chat:
    if isinstance(row.value("prompt"), list | tuple):
        return _read_answered(row)
    return Completion(row.text("prompt", "prompt"), row.text("completion", "answer"), row.where)


def _read_answered(row: _Row) -> Chat:
    prompt = _prompt(row, "prompt")
    return Chat((*prompt, *_answer(row, "completion", prompt)), (), row.where)


def _prompt(row: _Row, name: str) -> Messages:
    """The messages before an answer, from text or messages."""
    if name == "instruction":
        return _instruction(row)
    value = row.value(name)
    given = (turn("user", row.text(name, "prompt")),) if _is_text(value) else row.messages(name)
    prompt = row.system(given)
    check_order(prompt, row.where, row.column(name), prompt=True)
    return prompt


def _answer(row: _Row, name: str, prompt: Messages) -> Messages:
    value = row.value(name)
    said = (turn("assistant", row.text(name, "answer")),) if _is_text(value) else row.messages(name)
    if said[: len(prompt)] == prompt:
        said = said[len(prompt) :]
    check_order(said, row.where, row.column(name), after=prompt)
    return said


def _is_text(value: Any) -> bool:
    """Whether a value is words rather than messages, which CSV holds as JSON."""
    return value is None or (isinstance(value, str) and not value.lstrip().startswith('[{"'))


def _read_preference(row: _Row) -> Preference:
    name = row.form.required[0]
    prompt = _shared_prompt(row) if name == "chosen" else _prompt(row, name)
    chosen, rejected = (_answer(row, side, prompt) for side in ("chosen", "rejected"))
    if chosen == rejected:
        raise row.fault("rejected", EQUAL_PAIR, "leave the row out")
    return Preference(prompt, chosen, rejected, row.tools(), row.where)


def _shared_prompt(row: _Row) -> Messages:
    """The prompt of two whole conversations: the messages that they begin with alike, up to the last question."""
    if any(_is_text(row.value(side)) for side in ("chosen", "rejected")):
        raise row.fault("chosen", "text without a prompt", "add a column prompt, or map one: --fields prompt=COLUMN")
    shared = []
    for one, other in zip(row.messages("chosen"), row.messages("rejected"), strict=False):
        if one != other:
            break
        shared.append(one)
    while shared and shared[-1]["role"] not in ("user", "tool"):
        shared.pop()
    if not shared:
        raise row.fault("chosen", "no question that chosen and rejected share", "begin both with the same messages")
    prompt = row.system(shared)
    check_order(prompt, row.where, row.column("chosen"), prompt=True)
    return prompt


def _read_feedback(row: _Row) -> Feedback:
    good, name = _flag(row), row.form.required[0]
    if name == "prompt":
        prompt = _prompt(row, "prompt")
        return Feedback(prompt, _answer(row, "completion", prompt), good, row.tools(), row.where)
    messages = row.system(row.messages(name))
    check_order(messages, row.where, row.column(name))
    return Feedback(messages[:-1], messages[-1:], good, row.tools(), row.where)


def _flag(row: _Row) -> bool:
    value = row.value("good")
    word = value.strip().lower() if isinstance(value, str) else value
    known = {True: True, False: False, "true": True, "false": False, "1": True, "0": False}
    if not isinstance(word, str | bool | int) or word not in known:
        raise row.fault("good", f"a label {value!r:.40}", "write true for a good answer and false for a bad one")
    return known[word]


def _read_problem(row: _Row) -> Problem:
    answer, tests = (row.value(name) if row.has(name) else None for name in ("answer", "tests"))
    if isinstance(answer, int | float) and not isinstance(answer, bool):
        answer = str(answer)
    if isinstance(tests, list | tuple) and all(isinstance(test, str) for test in tests):
        tests = "\n".join(tests)
    answer, tests = _words(row, "answer", answer), _words(row, "tests", tests)
    if not f"{answer}{tests}".strip():
        raise row.fault("answer", "nothing to check an answer by", "write the right answer, or tests")
    return Problem(_prompt(row, "prompt"), answer, tests, row.where)


def _words(row: _Row, name: str, value: Any) -> str:
    if value is not None and not isinstance(value, str):
        raise row.fault(name, f"a {type(value).__name__} where text belongs", "write it as one string")
    return value or ""


def _read_labelled(row: _Row) -> Labelled:
    if not str(row.value("text") or "").strip():
        raise row.fault("text", NO_TEXT, "leave the row out")
    pair = row.text("pair", "second text") if row.has("pair") else None
    labels, several = _labels(row)
    return Labelled(row.text("text", "text"), pair, labels, row.where, several)


def _labels(row: _Row) -> tuple[tuple[str, ...], bool]:
    """A row's labels, and whether they are a list."""
    value = row.value("label")
    if isinstance(value, str) and value.lstrip().startswith("["):  # a list in CSV
        with contextlib.suppress(FormatError):  # a label may look like that
            value = parse_json(value, row.where)
    many = isinstance(value, list | tuple)
    return tuple(dict.fromkeys(_label(row, "label", item) for item in (value if many else [value]))), many


def _label(row: _Row, name: str, value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return str(value)
    if not isinstance(value, str) or not value.strip():
        what = "no label" if value is None or value == "" else f"a label that is a {type(value).__name__}"
        raise row.fault(name, what, "write a word or a number, or a list of them for several labels")
    return value


def _read_token_labelled(row: _Row) -> TokenLabelled:
    words, tags = row.value("words"), row.value("tags")
    for name, value in (("words", words), ("tags", tags)):
        if not isinstance(value, list | tuple):
            raise row.fault(name, f"a {type(value).__name__} where a list belongs", "write one item for each word")
    if not words:
        raise row.fault("words", NO_TEXT, "leave the row out")
    if len(words) != len(tags):
        raise row.fault("tags", f"{len(tags)} tags for {len(words)} words", "give every word one tag")
    if not all(isinstance(word, str) for word in words):
        raise row.fault("words", "a word that is not text", "write words as strings")
    return TokenLabelled(tuple(words), tuple(_label(row, "tags", tag) for tag in tags), row.where)


def _read_pair(row: _Row) -> TextPair:
    anchor, positive = row.text("anchor", "text"), row.text("positive", "text")
    negative = row.maybe("negative") or None
    if len({anchor, positive, negative}) < 3:
        raise row.fault("positive", EQUAL_TEXTS, "leave the row out")
    return TextPair(anchor, positive, negative, row.where)


def _read_text(row: _Row) -> Text:
    value = row.value("text")
    if value is None or value == "" or (isinstance(value, str) and value.isspace()):
        raise row.fault("text", NO_TEXT, "leave the row out")
    return Text(row.text("text", "text"), row.where)


READERS: dict[str, Callable[[_Row], Example]] = {
    "chat": _read_chat,
    "sharegpt": _read_chat,
    "alpaca": _read_alpaca,
    "completion": _read_completion,
    "preference": _read_preference,
    "feedback": _read_feedback,
    "classification": _read_labelled,
    "tokens": _read_token_labelled,
    "pairs": _read_pair,
    "text": _read_text,
    "problem": _read_problem,
}
"""How a row of each format is read."""
assert set(READERS) == set(NAMES)
