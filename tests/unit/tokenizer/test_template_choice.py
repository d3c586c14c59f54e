"""Chat templates by name or file, and the tokenizer that is saved with one."""

from pathlib import Path

import pytest

from langwright.core.errors import UserError
from langwright.tokenizer.chat import ChatTemplate
from langwright.tokenizer.load import load_tokenizer
from langwright.tokenizer.template_choice import list_templates, read_template, with_template
from langwright.tokenizer.tokenizer import Tokenizer
from langwright.tokenizer.training import train_char

TALK = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": "2+3?"},
    {
        "role": "assistant",
        "content": "Adding.",
        "tool_calls": [
            {"type": "function", "function": {"name": "add", "arguments": {"a": place}}} for place in (2, 3)
        ],
    },
    {"role": "tool", "content": "5"},
    {"role": "assistant", "content": "五"},
]
TOOLS = [{"type": "function", "function": {"name": "add"}}]
CALLS = """Adding.
<tool_call>
{"name": "add", "arguments": {"a": 2}}
</tool_call>
<tool_call>
{"name": "add", "arguments": {"a": 3}}
</tool_call>"""


def test_names_and_files(tmp_path: Path) -> None:
    assert list_templates() == ["chatml", "chatml-tools"]
    (tmp_path / "own.jinja").write_text("{{ messages }}", encoding="utf-8")
    assert read_template(str(tmp_path / "own.jinja")) == "{{ messages }}"
    with pytest.raises(UserError, match="chatlm: no such chat template; .* one of chatml, chatml-tools"):
        read_template("chatlm")


@pytest.mark.parametrize("name", ["chatml", "chatml-tools"])
def test_both_write_chatml(name: str, plain: Tokenizer) -> None:
    tokenizer = with_template(plain, read_template(name))
    found = ChatTemplate(tokenizer.chat_template, tokenizer).render(TALK[:2])
    assert found.text == (
        "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\n2+3?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert found.ids == tokenizer.encode(found.text, allow_special=True)


def test_tools_are_described_and_called(plain: Tokenizer) -> None:
    tokenizer = with_template(plain, read_template("chatml-tools"))
    template = ChatTemplate(tokenizer.chat_template, tokenizer)
    found = template.render(TALK, tools=TOOLS, add_generation_prompt=False, assistant_mask=True)
    assert found.text.startswith("<|im_start|>system\nBe kind.\n\n")
    assert '\n<tools>\n{"type": "function", "function": {"name": "add"}}\n</tools>\n' in found.text
    assert f"<|im_start|>assistant\n{CALLS}<|im_end|>\n<|im_start|>tool\n5<|im_end|>\n" in found.text
    said = tokenizer.decode(index for index, flag in zip(found.ids, found.assistant_mask, strict=True) if flag)
    assert said == f"{CALLS}<|im_end|>五<|im_end|>"


def test_the_tokenizer_learns_where_turns_end_and_keeps_the_template(plain: Tokenizer, tmp_path: Path) -> None:
    assert plain.id("<|im_end|>") not in plain.eos_ids
    tokenizer = with_template(plain, read_template("chatml"))
    assert tokenizer.eos_ids == plain.eos_ids | {plain.id("<|im_end|>")}
    tokenizer.save(tmp_path)
    assert load_tokenizer(tmp_path).chat_template == read_template("chatml")


def test_a_template_that_does_not_suit() -> None:
    letters = train_char(["abc"])
    with pytest.raises(UserError, match=r"ends turns with <\|im_end\|>, which is no token of this vocabulary"):
        with_template(letters, read_template("chatml"))
    with pytest.raises(UserError, match="does not compile"):
        with_template(letters, "{% for %}")
    assert with_template(letters, "{{ messages[0].content }}{{ eos_token }}").chat_template
