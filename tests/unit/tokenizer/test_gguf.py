import json
from pathlib import Path
from typing import Any

import gguf
import pytest

from langwright.core.errors import FormatError, UserError
from langwright.tokenizer.gguf import tokenizer_from_gguf
from langwright.tokenizer.load import load_tokenizer
from langwright.tokenizer.tokenizer import Tokenizer
from langwright.tokenizer.training import CHAT_AND_FIM, END, train_bpe
from tests.unit.tokenizer.conftest import CHATML, TEXTS

NORMAL, CONTROL, USER_DEFINED = 1, 3, 4


def metadata_of(tokenizer: Tokenizer, pre: str) -> dict[str, Any]:
    """What a converter would write for a byte-level tokenizer."""
    model = json.loads(tokenizer.backend.to_str())["model"]
    tokens = [tokenizer.token(index) for index in range(tokenizer.vocab_size)]
    return {
        "general.architecture": "llama",
        "llama.context_length": 2048,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [
            CONTROL if index in tokenizer.special_ids else NORMAL for index in range(len(tokens))
        ],
        "tokenizer.ggml.merges": [" ".join(pair) for pair in model["merges"]],
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 0,
        "tokenizer.ggml.add_bos_token": False,
    }


@pytest.fixture(scope="module")
def metadata(plain: Tokenizer) -> dict[str, Any]:
    return metadata_of(plain, "smollm")


@pytest.mark.parametrize(
    ("name", "pre"),
    [("gpt2", "gpt-2"), ("llama3", "llama-bpe"), ("smollm2", "smollm"), ("qwen2", "qwen2"), ("olmo", "olmo")],
)
def test_known_pre_tokenizers(name: Any, pre: str) -> None:
    trained = train_bpe(TEXTS, 400, pre_tokenizer=name, special_tokens=(END, *CHAT_AND_FIM))
    found = tokenizer_from_gguf(metadata_of(trained, pre))
    for text in [*TEXTS, "I'M 12345 cafe\u0301\r\n\n  x", "<|im_end|>"]:
        assert found.encode(text) == trained.encode(text)
        assert found.encode(text, allow_special=True) == trained.encode(text, allow_special=True)
    assert found.special_ids == trained.special_ids


def test_facts(metadata: dict[str, Any], plain: Tokenizer) -> None:
    end = plain.id("<|im_end|>")
    found = tokenizer_from_gguf(metadata | {"tokenizer.ggml.eot_token_id": end, "tokenizer.chat_template": CHATML})
    assert found.eos_ids == {0, end}
    assert (found.eos_id, found.pad_id, found.max_length, found.chat_template) == (0, None, 2048, CHATML)


def test_user_defined_tokens(metadata: dict[str, Any], plain: Tokenizer) -> None:
    types = list(metadata["tokenizer.ggml.token_type"])
    types[plain.vocab_size - 1] = USER_DEFINED
    found = tokenizer_from_gguf(metadata | {"tokenizer.ggml.token_type": types})
    assert plain.vocab_size - 1 not in found.special_ids


def test_bos_and_eos_around_text(metadata: dict[str, Any], plain: Tokenizer) -> None:
    ids = plain.encode("fox")
    found = tokenizer_from_gguf(metadata | {"tokenizer.ggml.add_bos_token": True, "tokenizer.ggml.eos_token_id": 3})
    assert found.encode("fox", add_special_tokens=True) == [0, *ids]
    assert found.encode("fox") == ids
    found = tokenizer_from_gguf(metadata | {"tokenizer.ggml.add_eos_token": True, "tokenizer.ggml.eos_token_id": 3})
    assert found.encode("fox", add_special_tokens=True) == [*ids, 3]
    llama = metadata_of(train_bpe(TEXTS, 300, pre_tokenizer="llama3"), "llama-bpe")
    del llama["tokenizer.ggml.add_bos_token"]
    assert tokenizer_from_gguf(llama).encode("a", add_special_tokens=True)[0] == 0  # Llama 3 begins with BOS
    del llama["tokenizer.ggml.bos_token_id"]
    with pytest.raises(FormatError, match="does not say which token"):
        tokenizer_from_gguf(llama)


@pytest.mark.parametrize("pre", ["default", "brand-new", "", None, 7])
def test_an_unknown_pre_tokenizer_is_refused_by_name(metadata: dict[str, Any], pre: Any) -> None:
    with pytest.raises(UserError, match=r"known: gpt-2, llama-bpe") as caught:
        tokenizer_from_gguf(metadata | {"tokenizer.ggml.pre": pre})
    assert repr(pre) in str(caught.value) or "does not name its pre-tokenizer" in str(caught.value)
    assert "tokenizer.json" in str(caught.value)


@pytest.mark.parametrize("kind", ["llama", "bert", "t5", "rwkv", None])
def test_other_kinds_are_refused(metadata: dict[str, Any], kind: Any) -> None:
    with pytest.raises(UserError, match=f"kind {kind!r} is not supported"):
        tokenizer_from_gguf(metadata | {"tokenizer.ggml.model": kind})


@pytest.mark.parametrize(
    ("key", "value", "match"),
    [
        ("tokens", None, "tokens should be a list of strings"),
        ("tokens", [], "tokens should be a list of strings"),
        ("tokens", [1, 2], "tokens should be a list of strings"),
        ("tokens", ["a", "a"], "a token stands twice"),
        ("token_type", [1], "one entry for each token"),
        ("merges", ["a"], "names a token that the vocabulary lacks"),
        ("merges", ["zz qq"], "names a token that the vocabulary lacks"),
        ("bos_token_id", 10**9, "is not an id of its"),
        ("eos_token_id", -1, "is not an id of its"),
        ("eot_token_id", "x", "is not an id of its"),
    ],
)
def test_lies(metadata: dict[str, Any], key: str, value: Any, match: str) -> None:
    with pytest.raises(FormatError, match=match):
        tokenizer_from_gguf(metadata | {f"tokenizer.ggml.{key}": value})


def test_from_a_file(metadata: dict[str, Any], plain: Tokenizer, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(2048)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(metadata["tokenizer.ggml.tokens"])
    writer.add_token_types(metadata["tokenizer.ggml.token_type"])
    writer.add_token_merges(metadata["tokenizer.ggml.merges"])
    writer.add_eos_token_id(0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    found = load_tokenizer(path)
    assert [found.encode(text) for text in TEXTS] == [plain.encode(text) for text in TEXTS]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tokenizer_model("llama")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(UserError, match=r"model.gguf: GGUF tokenizer kind 'llama' is not supported"):
        load_tokenizer(path)
