"""Calls of functions: which answers are possible, and how calls are read from them as they are written."""

import json
import random
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from langwright.core.errors import UserError
from langwright.infer.constraints import Constraint
from langwright.infer.guide import Guide
from langwright.infer.lm import LM
from langwright.infer.tool_calls import Begin, Call, CallParser, Piece, constrain, parse_calls
from langwright.tokenizer.template_choice import read_template
from tests.unit.infer.small import byte_tokenizer, random_model
from tests.unit.infer.test_guide import write

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "Weather of a city.",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string", "maxLength": 9}, "days": {"enum": [1, 2]}},
                "required": ["city", "days"],
                "additionalProperties": False,
            },
        },
    },
    {"type": "function", "function": {"name": "now"}},
]
CALLS = (
    '<tool_call>\n{"name": "get_weather", "arguments": {"city": "O\\"}]{", "days": 1}}\n</tool_call>\n'
    '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'
)
TOKENIZER = byte_tokenizer()
BFCL = Path(__file__).parents[4] / "shared" / "data" / "chat" / "en"
DIALECT = {"dict": "object", "float": "number", "tuple": "array"}
"""What the Berkeley Function-Calling Leaderboard calls JSON's types."""


def answers(choice: str, count: int = 4, budget: int = 200, **settings) -> list[str]:
    constraint = constrain(TOOLS, choice, **settings)
    assert constraint is not None
    found = []
    for seed in range(count):
        guide = Guide(constraint, TOKENIZER, budget)
        found.append(TOKENIZER.decode(write(guide, budget, random.Random(seed), TOKENIZER.eos_ids)))
    return found


def allows(constraint: Constraint | None, text: str) -> bool:
    """Whether a model that wants to say ``text`` may say it to the end."""
    assert constraint is not None
    guide = Guide(constraint, TOKENIZER, 1000)
    for byte in text.encode():
        if not guide.allowed()[byte]:
            return False
        assert guide.settle(byte) == byte
    return guide.accepting


@pytest.mark.parametrize("cut", [1, 2, 3, 7, 1000])
def test_calls_are_read_as_they_are_written(cut: int):
    text = "Let me see <tool_ca.\n" + CALLS
    parser, changes = CallParser(), []
    for start in range(0, len(text), cut):
        changes += parser.push(text[start : start + cut])
    words = "".join(change for change in changes if isinstance(change, str)) + parser.finish()
    assert words == "Let me see <tool_ca.\n"
    assert [change for change in changes if isinstance(change, Begin)] == [Begin(0, "get_weather"), Begin(1, "now")]
    for number, call in enumerate(parser.calls):
        assert call.done
        pieces = [change.text for change in changes if isinstance(change, Piece) and change.number == number]
        assert "".join(pieces) == call.arguments
    assert json.loads(parser.calls[0].arguments) == {"city": 'O"}]{', "days": 1}
    if cut == 1:  # nothing is held back that is certain
        assert changes.index(Begin(0, "get_weather")) < changes.index(Piece(0, "{"))


def test_an_answer_without_calls_is_text_and_one_that_was_cut_off_is_not_done():
    assert parse_calls("a <tool_call> is") == ("a <tool_call> is", [])
    assert parse_calls(CALLS[:61]) == ("", [Call("get_weather", '{"city": "O\\', False)])
    assert parse_calls("") == ("", [])


def test_what_each_choice_allows():
    assert constrain(TOOLS, "none") is None
    assert constrain([], "auto") is None
    auto, required = constrain(TOOLS, "auto"), constrain(TOOLS, "required")
    for text in ("", "Just words, <tool_ call>.", CALLS, "Words first.\n" + CALLS):
        assert allows(auto, text)
    assert not allows(auto, CALLS + " and words")
    assert not allows(auto, "<tool_call>\n{oh")
    assert allows(required, CALLS)
    assert not allows(required, "words")
    assert not allows(required, CALLS.replace("now", "then"))
    assert allows(constrain(TOOLS, "now"), '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>')
    assert not allows(constrain(TOOLS, "now"), CALLS)
    assert not allows(constrain(TOOLS, "required", parallel=False), CALLS)


def test_whatever_a_model_wants_its_calls_parse_and_fit_their_schema():
    schemas = {"get_weather": TOOLS[0]["function"]["parameters"], "now": {"maxProperties": 0}}
    for choice in ("required", "get_weather", "auto"):
        for text in answers(choice):
            words, calls = parse_calls(text)
            assert choice == "auto" or (calls and not words)
            for call in calls:
                assert call.done
                jsonschema.validate(json.loads(call.arguments), schemas[call.name])


def test_a_model_calls_through_its_template():
    tokenizer = byte_tokenizer(chat_template=read_template("chatml-tools"))
    lm = LM(random_model(context=2000), tokenizer)
    chat = [{"role": "user", "content": "Rain?"}]
    settings = {"tools": TOOLS, "temperature": 2, "seed": 3, "max_new_tokens": 120}
    answer = lm.generate(chat, tool_choice="required", **settings)
    words, calls = parse_calls(answer.text)
    assert answer.finish_reason == "stop"
    assert not words
    assert all(call.done for call in calls)
    with lm.stream(chat, tool_choice="required", **settings) as flow:
        assert "".join(flow) == answer.text
    assert b'"get_weather"' in bytes(token for token in answer.prompt_ids if token < 256)
    assert lm.generate(chat, tool_choice="none", **settings).prompt_ids == lm.encode_prompt(chat)


@pytest.mark.parametrize(
    ("tools", "choice", "message"),
    [
        (TOOLS, "then", r"tool_choice 'then' is not none, auto, required or a tool's name \(get_weather, now\)"),
        ([], "required", "there are no tools"),
        ([TOOLS[0], TOOLS[0]], "auto", "the same name"),
        ([{"type": "function"}], "auto", "a tool is"),
        ([{"type": "function", "function": {"name": 'a"b'}}], "auto", "is not 1 to 64 letters"),
        (
            [{"type": "function", "function": {"name": "a", "parameters": {"type": "array"}}}],
            "auto",
            'of "type": "object"',
        ),
    ],
)
def test_tools_and_choices_that_make_no_sense_are_refused(tools, choice, message):
    with pytest.raises(UserError, match=message):
        constrain(tools, choice)


def test_tools_that_cannot_be_shown_or_bound_are_refused():
    plain = LM(random_model(context=600), byte_tokenizer(chat_template="{{ messages[0].content }}"))
    chat = [{"role": "user", "content": "Rain?"}]
    with pytest.raises(UserError, match="does not show the model the tool get_weather"):
        plain.generate(chat, tools=TOOLS)
    with pytest.raises(UserError, match="only be called in a chat"):
        plain.generate("Rain?", tools=TOOLS)
    with pytest.raises(UserError, match="a constraint of its own"):
        plain.generate(chat, tools=TOOLS, constraint={"regex": "a"})


def as_schema(node: Any) -> Any:
    """A BFCL description of arguments as JSON Schema."""
    if isinstance(node, list):
        return [as_schema(item) for item in node]
    if not isinstance(node, dict):
        return node
    found = {key: as_schema(value) for key, value in node.items() if value != "any" or key != "type"}
    if isinstance(kind := found.get("type"), str):
        found["type"] = DIALECT.get(kind, kind)
    for key in ("default", "optional", "format"):
        found.pop(key, None)
    return found


def check_bfcl(step: int) -> int:
    """The accepted calls of every ``step``-th question may be written, and are read as they were written."""
    if not BFCL.is_dir():
        pytest.skip("the development data are not here")
    count = 0
    for name in ("multiple", "parallel", "simple_python"):
        lines = (BFCL / f"bfcl_v4_{name}.dev.jsonl").read_text(encoding="utf-8").splitlines()
        for line in lines[::step]:
            question = json.loads(line)
            schemas = {one["name"]: as_schema(one["parameters"]) for one in question["function"]}
            tools = [{"type": "function", "function": {"name": k, "parameters": v}} for k, v in schemas.items()]
            wanted = []
            for call in question["ground_truth"]:
                [(tool, accepted)] = call.items()
                order = [key for key in schemas[tool]["properties"] if key in accepted]
                wanted.append((tool, {key: plain(accepted[key]) for key in order if accepted[key][0] != ""}))
            if not all(fits(schemas[tool], arguments) for tool, arguments in wanted):
                continue  # the leaderboard's own checker is laxer than its schemas
            bodies = [json.dumps({"name": tool, "arguments": values}, ensure_ascii=False) for tool, values in wanted]
            text = "\n".join(f"<tool_call>\n{body}\n</tool_call>" for body in bodies)
            constraint = constrain(tools, "required")
            assert constraint is not None
            guide = Guide(constraint, TOKENIZER, 4000)
            assert guide._narrow.validate_tokens([*text.encode(), 256]) == len(text.encode()) + 1, text
            words, calls = parse_calls(text)
            assert not words
            assert [(call.name, json.loads(call.arguments)) for call in calls] == wanted
            count += 1
    return count


def plain(accepted: Any) -> Any:
    """The first of the values that are accepted, at every depth."""
    first = accepted[0] if isinstance(accepted, list) else accepted
    if isinstance(first, dict):
        return {key: plain(value) for key, value in first.items()}
    return first


def fits(schema: dict, arguments: dict) -> bool:
    return jsonschema.Draft202012Validator(schema).is_valid(arguments)


def test_calls_of_the_function_calling_leaderboard_can_be_written_and_read():
    assert check_bfcl(40) >= 6


@pytest.mark.slow
def test_all_calls_of_the_function_calling_leaderboard_can_be_written_and_read():
    assert check_bfcl(1) > 250
