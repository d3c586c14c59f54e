"""The same ids as the reference libraries give, on 2,000 varied strings, for every vocabulary at hand."""

import gzip
import json
import os
import shutil
from pathlib import Path

import pytest
import tokenizers
import transformers

from langwright.tokenizer.chat import ChatTemplate
from langwright.tokenizer.load import load_tokenizer
from langwright.tokenizer.stream import IncrementalDecoder
from langwright.tokenizer.tokenizer import Tokenizer
from tests.parity.tokenizer_texts import COUNT, DATA, texts

INTEROP = DATA / "interop"
SMOLLM2_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"

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


@pytest.mark.parametrize("name", ["smollm2_135m_instruct", "qwen3", "minimind"])
def test_folder(name: str, opened, strings: list[str]) -> None:
    folder = opened(name)
    check(load_tokenizer(folder), transformers.AutoTokenizer.from_pretrained(folder), strings)


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
    """The real file, where the catalogue's cache or LANGWRIGHT_TEST_GGUF has it."""
    found = [Path(os.environ.get("LANGWRIGHT_TEST_GGUF", "")), *Path.home().glob(f".cache/**/{SMOLLM2_GGUF}")]
    for path in found:
        if path.is_file():
            return path
    pytest.skip(f"needs {SMOLLM2_GGUF}; name it in LANGWRIGHT_TEST_GGUF")


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
