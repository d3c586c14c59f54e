"""The same ids as the reference libraries give, on 2,000 varied strings, for every vocabulary at hand."""

import gzip
import json
import shutil
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import transformers

from langwright.model.checkpoint.catalogue import cached_path
from langwright.tokenizer.chat import ChatTemplate
from langwright.tokenizer.load import load_tokenizer
from langwright.tokenizer.stream import IncrementalDecoder
from langwright.tokenizer.tokenizer import Tokenizer
from tests.parity.tokenizer_texts import COUNT, DATA, texts

INTEROP = DATA / "interop"

pytestmark = pytest.mark.skipif(not INTEROP.is_dir(), reason="needs ../shared/data")


@pytest.fixture(scope="module")
def strings() -> list[str]:
    return texts()


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory):
    """Folders of ../shared/data/interop, unpacked."""

    def open_folder(name: str) -> Path:
        folder = tmp_path_factory.getbasetemp() / name
        if not folder.exists():
            folder.mkdir()
            for file in (INTEROP / name).iterdir():
                if file.suffix == ".gz":
                    (folder / file.stem).write_bytes(gzip.decompress(file.read_bytes()))
                elif file.name != "config.json":  # transformers would look for a model class
                    shutil.copyfile(file, folder / file.name)
        return folder

    return open_folder


def check(ours: Tokenizer, reference, strings: list[str], **options: bool) -> None:
    """Equal ids and, text by text, equal decoding, whole and streamed."""
    expected = reference(strings, add_special_tokens=options.get("add_special_tokens", False))["input_ids"]
    found = ours.encode_batch(strings, **options)
    wrong = [text for text, ids, want in zip(strings, found, expected, strict=True) if ids != want]
    assert not wrong, f"{len(wrong)} of {len(strings)} differ, first {wrong[0]!r}"
    for ids in found[::10]:
        text = reference.decode(ids, clean_up_tokenization_spaces=False)
        decoder = IncrementalDecoder(ours)
        assert ours.decode(ids) == text == "".join(map(decoder.push, ids)) + decoder.finish()


def test_strings_are_varied(strings: list[str]) -> None:
    assert len(set(strings)) == COUNT
    assert sum(any("\u4e00" <= character <= "\u9fff" for character in text) for text in strings) > 300
    assert sum("\U0001f300" < max(text, default="") for text in strings) > 100


@pytest.mark.parametrize("name", ["qwen3", "minimind"])
def test_folder(name: str, opened, strings: list[str]) -> None:
    folder = opened(name)
    check(load_tokenizer(folder), transformers.AutoTokenizer.from_pretrained(folder), strings)


def test_smollm2_folder(opened, strings: list[str]) -> None:
    """Against its tokenizer.json. AutoTokenizer would make the GPT2Tokenizer that the folder names, which drops the
    digit splitting and so differs where white space stands before a digit."""
    folder = opened("smollm2_135m_instruct")
    reference = transformers.PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    check(load_tokenizer(folder), reference, strings)


def test_gpt2_vocabulary_and_merges(opened, strings: list[str], tmp_path: Path) -> None:
    reference = transformers.PreTrainedTokenizerFast(tokenizer_file=str(opened("gpt2") / "tokenizer.json"))
    for name in ("vocab.json", "merges.txt"):
        shutil.copyfile(INTEROP / "gpt2" / name, tmp_path / name)
    ours = load_tokenizer(tmp_path)
    check(ours, reference, strings)
    assert [ours.decode(ids) for ids in ours.encode_batch(strings)] == strings


def test_gpt_neox_keeps_its_runs_of_spaces(opened, strings: list[str]) -> None:
    path = opened("gpt_neox") / "tokenizer.json"
    ours = load_tokenizer(path)
    check(ours, transformers.PreTrainedTokenizerFast(tokenizer_file=str(path)), strings)
    assert ours.encode("a" + " " * 24 + "b")[1] == 50254


@pytest.mark.parametrize(
    ("vocabulary", "lower"),
    [
        ("bert_base_uncased", True),
        ("bert_base_cased", False),
        ("bert_base_chinese", True),
        ("bert_base_chinese", False),
    ],
)
@pytest.mark.parametrize("framed", [False, True])
def test_word_pieces(vocabulary: str, lower: bool, framed: bool, strings: list[str], tmp_path: Path) -> None:
    shutil.copyfile(INTEROP / "bert" / f"{vocabulary}_vocab.txt", tmp_path / "vocab.txt")
    settings = {"tokenizer_class": "BertTokenizer", "do_lower_case": lower}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    reference = transformers.BertTokenizer.from_pretrained(tmp_path)
    check(load_tokenizer(tmp_path), reference, strings, add_special_tokens=framed)


def smollm2_gguf() -> Path:
    path = cached_path("smollm2-135m-instruct")
    if path is None:
        pytest.skip("needs `langwright models pull smollm2-135m-instruct`")
    return path


def test_smollm2_from_gguf(opened, strings: list[str]) -> None:
    ours = load_tokenizer(smollm2_gguf())
    reference = tokenizers.Tokenizer.from_file(str(opened("smollm2_135m_instruct") / "tokenizer.json"))
    reference.no_truncation()
    assert ours.encode_batch(strings) == [row.ids for row in reference.encode_batch(strings)]
    assert [ours.decode(ids) for ids in ours.encode_batch(strings)] == strings
    assert ours.chat_template == (INTEROP / "smollm2_135m_instruct/chat_template.jinja").read_text()


def test_smollm2_saved_from_gguf(opened, strings: list[str], tmp_path: Path) -> None:
    load_tokenizer(smollm2_gguf()).save(tmp_path)
    check(load_tokenizer(tmp_path), transformers.AutoTokenizer.from_pretrained(tmp_path), strings)


TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": 'The "weather" of a place, in <b>degrees</b>',
            "parameters": {"type": "object", "properties": {"place": {"type": "string"}}, "required": ["place"]},
        },
    }
]
CONVERSATIONS = {
    "one": [{"role": "user", "content": "Hello there"}],
    "chinese": [
        {"role": "system", "content": "你是一个助手。"},
        {"role": "user", "content": "你好，介绍一下自己 👩‍👩‍👧"},
        {"role": "assistant", "content": "好的！我是助手。"},
        {"role": "user", "content": "\n 谢谢 123  "},
    ],
    "thinking": [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "<think>\nhm\n</think>\n\nb"},
        {"role": "user", "content": "c"},
        {"role": "assistant", "content": "<think>\nhm, hm\n</think>\n\nd"},
    ],
    "tools": [
        {"role": "user", "content": "Is it warm?"},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [
                {"type": "function", "function": {"name": "weather", "arguments": {"place": "北京", "n": 1.5}}}
            ],
        },
        {"role": "tool", "content": '{"degrees": 3}'},
        {"role": "tool", "content": "x"},
        {"role": "assistant", "content": "Three degrees.", "reasoning_content": "It says 3."},
    ],
}


@pytest.mark.parametrize("name", ["smollm2_135m_instruct", "qwen3", "minimind"])
def test_chat_templates(name: str, opened) -> None:
    folder = opened(name)
    ours = load_tokenizer(folder)
    template = ChatTemplate(ours.chat_template, ours)
    reference = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"), chat_template=ours.chat_template
    )
    switches = ({}, {"enable_thinking": False}, {"open_thinking": True})
    for messages, tools, prompt, variables in product(CONVERSATIONS.values(), (None, TOOLS), (True, False), switches):
        options = {"tools": tools, "add_generation_prompt": prompt, **variables}
        found = template.render(messages, **options)
        assert found.text == reference.apply_chat_template(messages, tokenize=False, **options)
        assert found.ids == reference.apply_chat_template(messages, return_dict=False, **options)


MARKED = """{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% if m.role == 'assistant' -%}
{% generation %}{{ m.content + '<|im_end|>' }}{% endgeneration %}
{%- else %}{{ m.content | trim + '<|im_end|>' }}{% endif %}{{ '\n' }}{% endfor %}"""


def test_generation_tag_masks_as_transformers_does(opened) -> None:
    folder = opened("minimind")
    ours = load_tokenizer(folder)
    reference = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"), chat_template=MARKED
    )
    for messages in (CONVERSATIONS["chinese"], CONVERSATIONS["tools"]):
        found = ChatTemplate(MARKED, ours).render(messages, add_generation_prompt=False, assistant_mask=True)
        row: Any = reference.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True)
        assert found.ids == row["input_ids"]
        assert found.assistant_mask == [bool(flag) for flag in row["assistant_masks"]]
