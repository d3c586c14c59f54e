"""Which columns a file has, and so what its rows are: the names that data sets use, and the fields they stand for."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from langwright.core.errors import UserError
from langwright.data.formats import names

FIELDS: dict[str, tuple[str, ...]] = {
    "messages": ("messages", "turns", "dialogue", "dialog"),
    "conversations": ("conversations", "conversation"),
    "system": ("system", "system_prompt"),
    "tools": ("tools", "functions"),
    "instruction": ("instruction",),
    "input": ("input", "context"),
    "output": ("output", "response", "completion", "answer"),
    "history": ("history",),
    "prompt": ("prompt", "question", "query", "instruction", "input"),
    "completion": ("completion", "response", "answer", "output"),
    "chosen": ("chosen",),
    "rejected": ("rejected",),
    "good": ("label", "kto_tag"),
    "answer": ("answer", "solution", "ground_truth"),
    "tests": ("tests", "test", "test_list"),
    "text": ("text", "sentence", "sentence1", "premise"),
    "pair": ("pair", "text_pair", "sentence2", "hypothesis"),
    "label": ("label", "labels", "intent", "category", "sentiment"),
    "words": ("words", "tokens"),
    "tags": ("tags", "ner_tags", "pos_tags", "chunk_tags", "labels"),
    "anchor": ("anchor", "query", "question", "sentence1"),
    "positive": ("positive", "passage", "document", "answer", "sentence2"),
    "negative": ("negative", "hard_negative", "sentence3"),
}
"""Our names of fields, and the names of columns that hold them: the first there is counts, and where none is the
field's own, two of them are a question for the user."""

REMARKS = frozenset(
    "id idx index uid uuid row url uri link source src path file filename title author date time timestamp year lang"
    " language domain topic split dataset license licence commit repo meta metadata info task_id".split()
)
"""Columns that say something about a row and are no part of it."""
PARTS = frozenset("context input system system_prompt history".split())
"""Columns that may be a part of the prompt."""


@dataclass(frozen=True, slots=True)
class Format:
    """A form of rows: the fields that it must have, those that it may have, and a further test of a row's values."""

    name: str
    required: tuple[str, ...]
    optional: tuple[str, ...] = ()
    fits: Callable[[Mapping[str, Any]], bool] = lambda values: True
    strict: Literal["", "parts", "all"] = ""
    """Which columns that no field takes are a question to the user: none, those that may be parts of the prompt, or all
    but remarks, as one of them may be what is to be learnt."""


def _is_flag(value: Any) -> bool:
    return isinstance(value, bool) or (isinstance(value, str) and value.strip().lower() in ("true", "false"))


def _has_flag(values: Mapping[str, Any]) -> bool:
    return any(_is_flag(values.get(column)) for column in FIELDS["good"])


def _has_lists(values: Mapping[str, Any]) -> bool:
    return all(
        any(isinstance(values.get(column), list | tuple) for column in FIELDS[field]) for field in ("words", "tags")
    )


def _has_turns(values: Mapping[str, Any]) -> bool:
    """Whether a column of many meanings, such as ``turns``, holds messages; one that is called so does."""
    held = values.get(next((column for column in FIELDS["messages"] if column in values), ""))
    return (
        "messages" in values
        or isinstance(held, str)
        or (isinstance(held, list | tuple) and all(isinstance(item, Mapping) for item in held))
    )


FORMATS = (
    Format("preference", ("instruction", "chosen", "rejected"), ("input", "system", "history")),
    Format("preference", ("conversations", "chosen", "rejected"), ("system", "tools")),
    Format("preference", ("messages", "chosen", "rejected"), ("system", "tools")),
    Format("preference", ("prompt", "chosen", "rejected"), ("system", "tools")),
    Format("preference", ("chosen", "rejected"), ("system", "tools")),
    Format("feedback", ("prompt", "completion", "good"), ("system", "tools"), _has_flag),
    Format("feedback", ("messages", "good"), ("system", "tools"), lambda row: _has_flag(row) and _has_turns(row)),
    Format("feedback", ("conversations", "good"), ("system", "tools"), _has_flag),
    Format("chat", ("messages",), ("system", "tools"), _has_turns),
    Format("sharegpt", ("conversations",), ("system", "tools")),
    Format("tokens", ("words", "tags"), (), _has_lists),
    Format("alpaca", ("instruction", "input", "output"), ("system", "history")),
    Format(
        "alpaca", ("instruction", "output"), ("input", "system", "history"), lambda row: "output" in row
    ),  # instruction and response alone are a prompt and its completion
    Format("completion", ("prompt", "completion"), strict="parts"),
    Format("classification", ("text", "label"), ("pair",), strict="all"),
    Format("pairs", ("anchor", "positive"), ("negative",), strict="all"),
    Format("text", ("text",), strict="all"),
    # A question and its answer may also be words to be learnt, and are read so unless the format is named.
    Format("problem", ("prompt", "answer"), ("system", "tests"), lambda row: "ground_truth" in row),
    Format("problem", ("prompt", "tests"), ("system",), lambda row: "tests" in row),
)
"""The forms in the order in which a row is tried against them."""
NAMES = tuple(dict.fromkeys(form.name for form in FORMATS))


def detect(values: Mapping[str, Any], *, mapped: bool = False) -> str:
    """The name of the format of a row with these ``values``, one of `NAMES`.

    ``mapped``: the user has said which columns count, so what the others are is no question. Raises `UserError` that
    names the columns and what could be mapped when no format fits or the columns could mean several things.
    """
    return find_format(values, mapped=mapped).name


def find_format(values: Mapping[str, Any], *, mapped: bool = False, name: str | None = None) -> Format:
    """The form that a row is read by; with ``name`` the first of that name that fits. Errors as for `detect`."""
    forms = [form for form in FORMATS if name in (None, form.name)]
    for form in forms:
        if all(_is_there(field, values) for field in form.required) and (name or form.fits(values)):
            if name is None and form.strict and not mapped:
                _check_rest(form, values)
            return form
    raise UserError(_advice(forms, values, name))


def _is_there(field: str, values: Mapping[str, Any]) -> bool:
    return any(column in values for column in FIELDS[field])


def column_of(field: str, values: Mapping[str, Any]) -> str | None:
    """The column of a row that holds ``field``; None where no column does. Raises `UserError` when two could."""
    found = [column for column in FIELDS[field] if column in values]
    if len(found) > 1 and found[0] != field:
        found = [column for column in found if values[column] is not None] or found[:1]
    if len(found) > 1 and found[0] != field:
        raise UserError(
            f"columns {found[0]!r} and {found[1]!r} could both be the {field}; say which: --fields {field}={found[0]}"
        )
    return found[0] if found else None


def apply_fields(values: Mapping[str, Any], fields: Mapping[str, str]) -> dict[str, Any]:
    """A row's values with the columns that ``fields`` (ours -> the file's) names under our names.

    A column that has one of these names already is passed over. Raises `UserError` for a column that the row lacks.
    """
    for ours, theirs in fields.items():
        if theirs not in values:
            raise UserError(f"has no column {theirs!r} (--fields {ours}={theirs}); it has {names(values)}")
    rest = {column: value for column, value in values.items() if column not in {*fields, *fields.values()}}
    return rest | {ours: values[theirs] for ours, theirs in fields.items()}


def _check_rest(form: Format, values: Mapping[str, Any]) -> None:
    used = {column_of(field, values): field for field in (*form.required, *form.optional)}
    rest = [column for column in values if column not in used and column.lower() not in REMARKS]
    if form.strict == "parts":
        rest = [column for column in rest if column in PARTS]
    if not rest:
        return
    columns = {field: column for column, field in used.items()}
    match form.name:
        case "text":
            choices = (
                f"--format text learns {columns['text']!r} alone; --fields label={rest[0]} learns to tell it from"
                f" {columns['text']!r}; --fields prompt={columns['text']} --fields completion={rest[0]} learns to write"
                " it"
            )
        case "classification":
            choices = (
                f"--format classification learns to tell {columns['label']!r} from {columns['text']!r} alone;"
                f" --fields label={rest[0]} learns to tell that"
            )
        case "pairs":
            choices = (
                f"--format pairs takes {columns['anchor']!r} and {columns['positive']!r} for alike in every row;"
                f" --format classification --fields text={columns['anchor']} --fields pair={columns['positive']}"
                f" --fields label={rest[0]} learns to tell that of the two"
            )
        case _:
            choices = (
                f"--format completion leaves it out; --format alpaca --fields instruction={columns['prompt']} --fields"
                f" output={columns['completion']} makes a conversation with it"
            )
    raise UserError(f"reads as {form.name}, but has {names(rest)} too; say what is to be learnt: {choices}")


def _advice(forms: Sequence[Format], values: Mapping[str, Any], name: str | None) -> str:
    """What is missing for the form that comes nearest."""
    there = names(values)
    lacking = {
        form: [field for field in form.required if not _is_there(field, values)]
        for form in forms
        if name or form.fits(values)
    }
    near = [
        form
        for form, fields in lacking.items()
        if name or (len(fields) == 1 < len(form.required) and form.strict != "all")
    ]
    if not near:
        known = {form.name: f"{form.name} ({' '.join(form.required)})" for form in reversed(FORMATS)}
        told = ", ".join(reversed(known.values()))
        return f"no known format has the columns {there}; map them with --fields OURS=THEIRS, to one of {told}"
    best = min(near, key=lambda form: len(lacking[form]))
    wanted = " and ".join(f"{field!r} ({' or '.join(FIELDS[field])})" for field in lacking[best])
    return (
        f"reads as {best.name}, but no column holds {wanted}; it has {there}: map one with"
        f" --fields {lacking[best][0]}=COLUMN"
    )
