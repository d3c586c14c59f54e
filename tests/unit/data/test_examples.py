"""Every common form of rows is recognised, and what is wrong with a row is told by row, field and fix."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from langwright.core.errors import UserError
from langwright.data.detection import detect
from langwright.data.examples import (
    Chat,
    Completion,
    Examples,
    Feedback,
    Labelled,
    Preference,
    Problem,
    Text,
    TextPair,
    TokenLabelled,
    read_examples,
    text_of,
)
from tests.unit.data.talking import talk

REAL = Path(__file__).resolve().parents[3] / "../shared/data"
TALK = list(talk("Hi", "Hello", "More", "Done"))
SHARE = [{"from": ("human", "gpt")[n % 2], "value": message["content"]} for n, message in enumerate(TALK)]
SYSTEM = {"role": "system", "content": "Be kind."}
CALL = {"name": "add", "arguments": {"a": 2, "b": None}}
CALLS = [{"type": "function", "function": CALL}]
TOOL = {"name": "add", "parameters": {"type": "object", "default": None}}
TOOLS = ({"type": "function", "function": TOOL},)
CALLED = (
    {"role": "user", "content": "2+?"},
    {"role": "assistant", "content": "", "tool_calls": CALLS},
    {"role": "tool", "content": "2"},
    {"role": "assistant", "content": "Two"},
)
OPENAI = [
    CALLED[0],
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"function": CALL | {"arguments": json.dumps(CALL["arguments"])}}],
    },
    CALLED[2],
    CALLED[3] | {"weight": 1},
]
GLAIVE = [
    {"from": "human", "value": "2+?"},
    {"from": "function_call", "value": json.dumps(CALL)},
    {"from": "observation", "value": "2"},
    {"from": "gpt", "value": "Two"},
]
OLDER = [
    CALLED[0],
    {"role": "assistant", "content": None, "function_call": CALL},
    {"role": "function", "name": "add", "content": "2"},
    CALLED[3],
]
ASKED, GOOD, BAD = talk("Q"), talk("Q", "good")[1:], talk("Q", "bad")[1:]


def write(folder: Path, *rows: dict[str, Any]) -> Path:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def read(folder: Path, *rows: dict[str, Any], **options: Any) -> Examples:
    return read_examples([write(folder, *rows)], **options)


def refusal(folder: Path, *rows: dict[str, Any], **options: Any) -> str:
    with pytest.raises(UserError) as caught:
        read(folder, *rows, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value).removeprefix(f"{folder / 'rows.jsonl'}: ")


FORMS: list[tuple[dict[str, Any], str, Any]] = [
    ({"messages": TALK}, "chat", Chat(talk("Hi", "Hello", "More", "Done"))),
    ({"turns": TALK, "id": 7}, "chat", Chat(talk("Hi", "Hello", "More", "Done"))),
    ({"messages": [SYSTEM, *TALK[:2]]}, "chat", Chat((SYSTEM, *talk("Hi", "Hello")))),
    ({"messages": json.dumps(TALK)}, "chat", Chat(talk("Hi", "Hello", "More", "Done"))),
    ({"messages": OPENAI, "tools": [TOOL]}, "chat", Chat(CALLED, TOOLS)),
    (
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}]}, TALK[1]]},
        "chat",
        Chat(talk("a", "Hello")),
    ),
    ({"conversations": SHARE}, "sharegpt", Chat(talk("Hi", "Hello", "More", "Done"))),
    (
        {"conversations": SHARE[:2], "system": "Be kind.", "tools": "[]"},
        "sharegpt",
        Chat((SYSTEM, *talk("Hi", "Hello"))),
    ),
    ({"conversations": GLAIVE, "tools": json.dumps([TOOL])}, "sharegpt", Chat(CALLED, TOOLS)),
    ({"instruction": "Do", "input": "this", "output": "done"}, "alpaca", Chat(talk("Do\nthis", "done"))),
    ({"instruction": "Do", "input": "", "output": "done"}, "alpaca", Chat(talk("Do", "done"))),
    ({"instruction": "Do", "context": "this", "response": "done"}, "alpaca", Chat(talk("Do\nthis", "done"))),
    (
        {"instruction": "Do", "output": "done", "system": "Be kind.", "history": [["Hi", "Hello"]]},
        "alpaca",
        Chat((SYSTEM, *talk("Hi", "Hello", "Do", "done"))),
    ),
    ({"prompt": "Q ", "completion": " A"}, "completion", Completion("Q ", " A")),
    ({"prompt": "Q", "response": "A"}, "completion", Completion("Q", "A")),
    ({"question": "Q", "answer": "A", "category": "x"}, "completion", Completion("Q", "A")),
    ({"instruction": "Q", "response": "A"}, "completion", Completion("Q", "A")),
    ({"input": "Q", "output": "A"}, "completion", Completion("Q", "A")),
    ({"prompt": TALK[:1], "completion": TALK[1:2]}, "completion", Chat(talk("Hi", "Hello"))),
    ({"prompt": "Q", "chosen": "good", "rejected": "bad"}, "preference", Preference(ASKED, GOOD, BAD)),
    ({"prompt": ASKED, "chosen": GOOD, "rejected": BAD}, "preference", Preference(ASKED, GOOD, BAD)),
    (
        {"prompt": "Q", "chosen": [*ASKED, *GOOD], "rejected": [*ASKED, *BAD]},
        "preference",
        Preference(ASKED, GOOD, BAD),
    ),
    ({"chosen": [*ASKED, *GOOD], "rejected": [*ASKED, *BAD]}, "preference", Preference(ASKED, GOOD, BAD)),
    (
        {"instruction": "Do", "input": "this", "output": "x", "chosen": "good", "rejected": "bad"},
        "preference",
        Preference(talk("Do\nthis"), GOOD, BAD),
    ),
    (
        {
            "conversations": SHARE[:1],
            "chosen": {"from": "gpt", "value": "good"},
            "rejected": {"from": "gpt", "value": "bad"},
        },
        "preference",
        Preference(talk("Hi"), GOOD, BAD),
    ),
    ({"prompt": "Q", "completion": "good", "label": True}, "feedback", Feedback(ASKED, GOOD, True)),
    ({"prompt": "Q", "completion": "good", "label": "False"}, "feedback", Feedback(ASKED, GOOD, False)),
    ({"messages": [*ASKED, *GOOD], "kto_tag": False}, "feedback", Feedback(ASKED, GOOD, False)),
    ({"text": "fine", "label": "pos"}, "classification", Labelled("fine", None, ("pos",))),
    ({"text": "fine", "intent": 3}, "classification", Labelled("fine", None, ("3",))),
    ({"sentence": "fine", "label": True}, "classification", Labelled("fine", None, ("true",))),
    ({"text": "fine", "labels": ["a", "b"]}, "classification", Labelled("fine", None, ("a", "b"), several=True)),
    ({"text": "fine", "labels": []}, "classification", Labelled("fine", None, (), several=True)),
    ({"text": "fine", "labels": '["a", 2]'}, "classification", Labelled("fine", None, ("a", "2"), several=True)),
    ({"premise": "a", "hypothesis": "b", "label": 0}, "classification", Labelled("a", "b", ("0",))),
    ({"tokens": ["New", "York"], "ner_tags": [3, "O"]}, "tokens", TokenLabelled(("New", "York"), ("3", "O"))),
    ({"anchor": "a", "positive": "b", "negative": "c"}, "pairs", TextPair("a", "b", "c")),
    ({"sentence1": "a", "sentence2": "b", "id": 1}, "pairs", TextPair("a", "b")),
    ({"query": "a", "passage": "b", "negative": None}, "pairs", TextPair("a", "b")),
    ({"text": "a book", "title": "x", "id": 1}, "text", Text("a book")),
    ({"question": "2+3?", "ground_truth": 5}, "problem", Problem(talk("2+3?"), "5")),
    ({"prompt": "Add.", "tests": ["assert 1", "assert 2"]}, "problem", Problem(talk("Add."), "", "assert 1\nassert 2")),
]


@pytest.mark.parametrize(("row", "name", "example"), FORMS, ids=[f"{n}-{form[1]}" for n, form in enumerate(FORMS)])
def test_forms_are_found_and_read(tmp_path: Path, row: dict[str, Any], name: str, example: Any) -> None:
    found = read(tmp_path, row)
    assert (found.format, detect(row)) == (name, name)
    where = f"{tmp_path / 'rows.jsonl'}: line 1"
    assert found.items == [
        type(example)(**{part: getattr(example, part) for part in example.__slots__} | {"where": where})
    ]


def test_older_function_calls_keep_their_names(tmp_path: Path) -> None:
    (example,) = read(tmp_path, {"messages": OLDER}).items
    assert isinstance(example, Chat)
    assert example.messages == (*CALLED[:2], CALLED[2] | {"name": "add"}, CALLED[3])


ORDER = "messages[{}]: {}"
FAULTS: list[tuple[dict[str, Any], str]] = [
    ({"messages": TALK[1:]}, "messages[0]: a conversation that begins with assistant; begin with system or user"),
    ({"messages": TALK[:3]}, "messages: no assistant turn at the end; add one"),
    ({"messages": [SYSTEM, SYSTEM, *TALK]}, "messages[1]: a second system message; keep one"),
    ({"messages": [*TALK[:2], SYSTEM, *TALK[2:]]}, "messages[2]: a system message in the middle"),
    ({"messages": [TALK[0], *TALK]}, "messages[1]: two user messages in a row; after user comes assistant"),
    ({"messages": [*TALK, TALK[1]]}, "messages[4]: two assistant messages in a row; after assistant comes user"),
    (
        {"messages": [TALK[0], {"role": "oracle", "content": "x"}]},
        "messages[1].role: an unknown role 'oracle'; use one of",
    ),
    ({"messages": [TALK[0], {"role": "assistant", "content": " "}]}, "messages[1]: an empty answer; write its content"),
    ({"messages": [{"role": "user", "content": ""}, TALK[1]]}, "messages[0]: an empty user message"),
    (
        {"messages": [TALK[0], {"role": "assistant", "content": 3}]},
        "messages[1].content: content that is a int, not text",
    ),
    ({"messages": [TALK[0], {"role": "assistant"}]}, "messages[1].content: content that is nothing, not text"),
    ({"messages": [TALK[0], "Hello"]}, "messages[1]: a message that is a str"),
    ({"messages": []}, "messages: a conversation that is empty"),
    (
        {"messages": [TALK[0], {"role": "tool", "content": "2"}, TALK[1]]},
        "messages[1]: tool after user; what a tool returns",
    ),
    ({"messages": [*OPENAI[:2], *TALK]}, "messages[2]: user after a call; put what the tool returned between them"),
    ({"messages": [TALK[0] | {"tool_calls": CALLS}, TALK[1]]}, "messages[0].tool_calls: a tool call by user"),
    (
        {"messages": [TALK[0], {"role": "assistant", "tool_calls": [{"arguments": {}}]}]},
        "a call without the name of a tool",
    ),
    (
        {"messages": [TALK[0], {"role": "assistant", "tool_calls": [{"name": "f", "arguments": "x"}]}]},
        "text that is not JSON",
    ),
    ({"messages": TALK, "tools": [{"type": "function"}]}, "tools[0]: a tool without a name"),
    ({"messages": TALK, "tools": "{"}, "tools: text that is not JSON"),
    ({"messages": [SYSTEM, *TALK], "system": "Be brief."}, "system: a second system message"),
    (
        {"conversations": [SHARE[0], {"from": "function_call", "value": "add"}]},
        "conversations[1].value: text that is not JSON",
    ),
    ({"instruction": "Do", "input": "", "output": " "}, "output: an empty answer; write it, or leave the row out"),
    ({"instruction": "", "input": "", "output": "x"}, "instruction: an empty instruction"),
    ({"instruction": "Do", "output": "x", "history": ["Hi"]}, "history: an exchange that is no pair of texts"),
    ({"prompt": "Q", "completion": None}, "completion: an empty answer"),
    ({"prompt": "Q", "completion": 42}, "completion: a int where text belongs; write it as one string"),
    ({"prompt": "", "completion": "A"}, "prompt: an empty prompt"),
    ({"prompt": "Q", "chosen": "good", "rejected": ""}, "rejected: an empty answer"),
    ({"chosen": "good", "rejected": "bad"}, "chosen: text without a prompt; add a column prompt"),
    (
        {"chosen": TALK[:2], "rejected": list(talk("Other", "bad"))},
        "chosen: no question that chosen and rejected share",
    ),
    ({"prompt": TALK[:2], "chosen": "good", "rejected": "bad"}, "prompt: a prompt that nobody has to answer"),
    ({"text": "fine", "label": None}, "label: no label; write a word or a number"),
    ({"text": "fine", "label": {"a": 1}}, "label: a label that is a dict"),
    ({"tokens": ["a", "b"], "ner_tags": ["O"]}, "ner_tags: 1 tags for 2 words; give every word one tag"),
    ({"tokens": ["a", 3], "ner_tags": ["O", "O"]}, "tokens: a word that is not text"),
]


@pytest.mark.parametrize(("row", "told"), FAULTS, ids=range(len(FAULTS)))
def test_faults_are_named_by_row_field_and_fix(tmp_path: Path, row: dict[str, Any], told: str) -> None:
    said = refusal(tmp_path, row)
    assert said.startswith("line 1: ")
    assert told in said


def test_feedback_wants_true_or_false(tmp_path: Path) -> None:
    row = {"prompt": "Q", "completion": "A", "label": "maybe"}
    assert "label: a label 'maybe'; write true" in refusal(tmp_path, row, format="feedback")


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"en": "a", "zh": "b"}, "no known format has the columns 'en', 'zh'; map them with --fields OURS=THEIRS"),
        ({"prompt": "a", "solution": "b"}, "no column holds 'completion' (completion or response or answer or output)"),
        ({"text": "a", "star": 4}, "reads as text, but has 'star' too; say what is to be learnt"),
        ({"text": "a", "label": "b", "aspects": "c"}, "reads as classification, but has 'aspects' too"),
        ({"question": "a", "context": "b", "answer": "c"}, "reads as completion, but has 'context' too"),
        ({"question": "a", "query": "b", "answer": "c"}, "columns 'question' and 'query' could both be the prompt"),
        ({"sentence1": "a", "sentence2": "b", "score": 0.5}, "--fields label=score learns to tell that of the two"),
        (
            {"tokens": ["a"], "ner_tags": ["O"], "pos_tags": ["X"]},
            "could both be the tags; say which: --fields tags=ner_tags",
        ),
    ],
)
def test_dataset_format_confusion_is_an_error_that_says_what_to_map(
    tmp_path: Path, row: dict[str, Any], told: str
) -> None:
    """Columns that are silently misread or passed over (LlamaFactory 7577)."""
    assert told in refusal(tmp_path, row)


def test_fields_say_which_column_is_what(tmp_path: Path) -> None:
    row = {"text": "Add two.", "code": "a + b", "label": 3}
    found = read(tmp_path, row, fields={"prompt": "text", "completion": "code"})
    assert isinstance(found.items[0], Completion)
    assert (found.items[0].prompt, found.items[0].completion, found.unused) == ("Add two.", "a + b", ("label",))
    assert isinstance(read(tmp_path, row, fields={"label": "code"}).items[0], Labelled)
    assert isinstance(read(tmp_path, row, format="text").items[0], Text)
    asked = read(tmp_path, {"question": "a", "answer": "b"}, format="pairs").items[0]
    assert isinstance(asked, TextPair)
    chat = read(tmp_path, row, fields={"instruction": "text", "output": "code"}).items[0]
    assert isinstance(chat, Chat)
    assert chat.messages == talk("Add two.", "a + b")
    assert "code: an empty answer" in refusal(
        tmp_path, row | {"code": ""}, fields={"prompt": "text", "completion": "code"}
    )
    assert "has no column 'cod'" in refusal(tmp_path, row, fields={"prompt": "text", "completion": "cod"})
    assert "'promt' is not a field" in refusal(tmp_path, row, fields={"promt": "text"})
    assert "'alpacca' is not a format" in refusal(tmp_path, row, format="alpacca")


@pytest.mark.parametrize(
    ("first", "second", "told"),
    [
        ({"messages": TALK}, {"conversations": SHARE}, "line 2: column 'messages': is missing in a row where"),
        (
            {"text": "a", "label": "b"},
            {"text": "a"},
            "line 2: column 'label': is missing in a row where the rows before are",
        ),
        ({"prompt": "a", "completion": "b"}, {"prompt": "a"}, "line 2: column 'completion': is missing"),
        (
            {"prompt": "a", "completion": "b"},
            {"prompt": "a", "completion": "b", "label": True},
            "line 2: column 'label': is new in a row where the rows before are completion; mend the row",
        ),
        (
            {"prompt": "a", "completion": "b"},
            {"prompt": TALK[:1], "completion": "b"},
            "line 2: messages where other rows",
        ),
        (
            {"text": "a", "label": ["x", "y"]},
            {"text": "b", "label": "x"},
            "line 2: label: one label where other rows have a list of them, or the reverse; write all rows alike",
        ),
        ({"anchor": "a", "positive": "b"}, {"anchor": "a", "positive": " "}, "line 2: positive: an empty text"),
    ],
)
def test_a_row_of_another_format_is_an_error(
    tmp_path: Path, first: dict[str, Any], second: dict[str, Any], told: str
) -> None:
    assert told in refusal(tmp_path, first, second)


def test_rows_may_leave_out_what_is_optional(tmp_path: Path) -> None:
    found = read(
        tmp_path, {"conversations": SHARE}, {"conversations": SHARE, "tools": [TOOL]}, {"conversations": SHARE}
    )
    assert [len(item.tools) for item in found.items if isinstance(item, Chat)] == [0, 1, 0]


def test_dropped_rows_are_counted_by_reason(tmp_path: Path) -> None:
    found = read(tmp_path, {"text": "a"}, {"text": " "}, {"text": None}, {"text": ""})
    assert (len(found.items), found.dropped) == (1, {"no text": 3})
    assert "line 2" in found.first["no text"]
    pairs = [{"prompt": "Q", "chosen": "a", "rejected": other} for other in ("a", "b")]
    assert read(tmp_path, *pairs).dropped == {"chosen and rejected are the same": 1}
    assert "no row can be used" in refusal(tmp_path, pairs[0])
    equal = [{"anchor": "a", "positive": "b"}, {"anchor": "a", "positive": "a"}]
    assert read(tmp_path, *equal).dropped == {"two of its texts are the same": 1}


def test_faulty_rows_are_dropped_when_asked(tmp_path: Path) -> None:
    rows = [{"messages": TALK}, {"messages": TALK[:1]}, {"messages": TALK[:3]}, {"other": 1}]
    found = read(tmp_path, *rows, faults="drop")
    assert found.dropped == {
        "no assistant turn at the end": 2,
        "is missing in a row where the rows before are chat": 1,
    }
    assert len(found.items) == 1


def test_questions_with_answers_are_problems_only_when_that_is_said(tmp_path: Path) -> None:
    """They are words to be learnt as well, and stay what they were."""
    row = {"question": "6 x 3?", "answer": "So #### 18"}
    assert isinstance(read(tmp_path, row).items[0], Completion)
    [found] = read(tmp_path, row, format="problem").items
    assert found == Problem(talk("6 x 3?"), "So #### 18", "", f"{tmp_path / 'rows.jsonl'}: line 1")
    [chat] = read(tmp_path, {"prompt": [SYSTEM, *ASKED], "answer": "18"}, format="problem").items
    assert isinstance(chat, Problem)
    assert chat.prompt == (SYSTEM, *ASKED)
    [mapped] = read(tmp_path, {"q": "6 x 3?", "a": "18"}, format="problem", fields={"prompt": "q", "answer": "a"}).items
    assert text_of(mapped) == "6 x 3?\n18"
    told = refusal(tmp_path, {"question": "6 x 3?", "answer": " "}, format="problem")
    assert "line 1" in told
    assert "nothing to check an answer by" in told
    assert "a dict where text belongs" in refusal(tmp_path, {"question": "x", "answer": {}}, format="problem")


def test_what_an_example_says() -> None:
    assert text_of(Chat(CALLED)) != text_of(Chat(CALLED[:1]))
    assert text_of(Labelled("a", "b", ("x",))) == text_of(Labelled("a", "b", ()))
    assert text_of(TokenLabelled(("a", "b"), ("O", "O"))) == "a b"


REAL_FILES = {
    "chat/en/dolly_sample.jsonl": ("completion", 151),
    "chat/en/glaive_toolcall_en.dev.jsonl": ("sharegpt", 212),
    "chat/en/rasbt_instruction.dev.jsonl": ("alpaca", 936),
    "chat/en/rasbt_preference.dev.jsonl": ("preference", 931),
    "chat/en/dpo_en.dev.jsonl.gz": ("preference", 236),
    "chat/en/sgd_train.jsonl.gz": ("chat", 900),
    "chat/zh/crosswoz_val.jsonl.gz": ("chat", 500),
    "chat/zh/dpo_zh.dev.jsonl.gz": ("preference", 231),
    "chat/zh/glaive_toolcall_zh.dev.jsonl": ("sharegpt", 204),
    "chat/zh/kdconv_dev.jsonl.gz": ("chat", 447),
    "classify/clinc150_val.jsonl": ("classification", 3100),
    "classify/movie_reviews_long.jsonl.gz": ("classification", 600),
    "code/cpython_stdlib.jsonl.gz": ("text", 518),
    "lm/zh/rust_book_zh.jsonl.gz": ("text", 105),
}


@pytest.mark.parametrize("name", REAL_FILES)
def test_published_files_are_read(name: str) -> None:
    if not REAL.is_dir():
        pytest.skip("needs ../shared/data")
    found = read_examples([REAL / name], faults="drop")
    assert (found.format, len(found.items)) == REAL_FILES[name]


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("chat/zh/glaive_toolcall_zh.dev.jsonl", r"line 145: conversations\[2\]: tool after assistant"),
        ("chat/zh/kdconv_dev.jsonl.gz", "line 39: turns: no assistant turn at the end"),
        ("classify/zh_asap_dev_sample.jsonl", "has 'star', 'aspects' too"),
        ("code/mbpp_dev.jsonl", "--fields prompt=text --fields completion=code"),
        ("code/humaneval.jsonl", "--fields completion=COLUMN"),
        ("chat/zh/python_docs_en_zh_pairs.jsonl.gz", "no known format has the columns 'en', 'zh', 'file'"),
        ("chat/en/mt_bench_questions.dev.jsonl", "no known format"),
        ("bench/winogrande_val.dev.jsonl", "has 'option1', 'option2' too"),
    ],
)
def test_published_files_that_need_a_word_say_so(name: str, told: str) -> None:
    if not REAL.is_dir():
        pytest.skip("needs ../shared/data")
    with pytest.raises(UserError, match=told):
        read_examples([REAL / name])


def test_published_pairs_can_be_mapped() -> None:
    if not REAL.is_dir():
        pytest.skip("needs ../shared/data")
    path = REAL / "chat/zh/python_docs_en_zh_pairs.jsonl.gz"
    found = read_examples([path], fields={"prompt": "en", "completion": "zh"})
    with gzip.open(path, "rt", encoding="utf-8") as file:
        first = json.loads(next(file))
    assert isinstance(found.items[0], Completion)
    assert (found.items[0].prompt, found.items[0].completion) == (first["en"], first["zh"])


def test_the_documented_rows_are_what_the_page_says(tmp_path: Path) -> None:
    page = (Path(__file__).resolve().parents[3] / "docs/tuning-data.md").read_text(encoding="utf-8")
    rows = [json.loads(line) for line in page.split("```json\n")[1].split("```")[0].splitlines()]
    found = [read(tmp_path, row).format for row in rows]
    assert found == ["chat"] * 2 + ["sharegpt", "alpaca", "completion", "preference", "feedback"] + [
        "classification"
    ] * 3 + ["tokens", "pairs", "text"]
