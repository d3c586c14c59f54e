"""A tokenizer into a GGUF file's metadata."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from tokenizers import models, pre_tokenizers

from langwright.core.errors import UserError
from langwright.tokenizer.gguf import NORMAL, UNUSED, tokenizer_from_gguf, tokenizer_to_gguf
from langwright.tokenizer.load import load_tokenizer
from langwright.tokenizer.tokenizer import Tokenizer
from langwright.tokenizer.training import CHAT_AND_FIM, END, train_bpe, train_char
from tests.unit.tokenizer.conftest import CHATML, TEXTS
from tests.unit.tokenizer.test_gguf import metadata_of

INTEROP = Path(__file__).resolve().parents[3] / "../shared/data/interop"


@pytest.mark.parametrize("name", ["gpt2", "llama3", "smollm2", "qwen2", "olmo"])
def test_it_is_the_inverse_of_reading(name: Any) -> None:
    trained = train_bpe(TEXTS, 400, pre_tokenizer=name, special_tokens=(END, *CHAT_AND_FIM))
    tokenizer = Tokenizer(trained.backend, roles=trained.roles, chat_template=CHATML, max_length=64)
    metadata = tokenizer_to_gguf(tokenizer, tokenizer.vocab_size)
    again = tokenizer_from_gguf(metadata)
    for text in [*TEXTS, "I'M 12345 cafe\u0301\r\n\n  x <|im_end|>"]:
        assert again.encode(text, allow_special=True) == tokenizer.encode(text, allow_special=True)
    assert (again.roles, again.eos_ids, again.controls) == (tokenizer.roles, tokenizer.eos_ids, tokenizer.controls)
    assert tokenizer_to_gguf(again, tokenizer.vocab_size) == metadata


def test_a_text_that_begins_with_bos_still_does(plain: Tokenizer) -> None:
    framed = tokenizer_from_gguf(metadata_of(plain, "smollm") | {"tokenizer.ggml.add_bos_token": True})
    metadata = tokenizer_to_gguf(framed, framed.vocab_size)
    assert metadata["tokenizer.ggml.add_bos_token"] is True
    assert tokenizer_from_gguf(metadata).encode("a", add_special_tokens=True)[0] == framed.bos_id
    assert tokenizer_to_gguf(plain, plain.vocab_size)["tokenizer.ggml.add_bos_token"] is False


def test_rows_without_a_token_are_unused(plain: Tokenizer) -> None:
    metadata = tokenizer_to_gguf(plain, plain.vocab_size + 3)
    assert metadata["tokenizer.ggml.token_type"][-4:] == [NORMAL, UNUSED, UNUSED, UNUSED]
    assert metadata["tokenizer.ggml.tokens"][-1] == f"[PAD{plain.vocab_size + 2}]"


def test_end_tokens_of_the_model_are_kept(plain: Tokenizer) -> None:
    ends = [plain.id("<|im_end|>"), plain.id("<|pad|>"), plain.id("<|fim_prefix|>")]
    found = tokenizer_from_gguf(tokenizer_to_gguf(plain, plain.vocab_size, ends[:2]))  # type: ignore[arg-type]
    assert found.eos_ids == plain.eos_ids | set(ends[:2])
    with pytest.raises(UserError, match="no place for so many end tokens"):
        tokenizer_to_gguf(plain, plain.vocab_size, ends)  # type: ignore[arg-type]


def spoilt(plain: Tokenizer, how: str) -> Tokenizer:
    if how == "characters":
        return train_char(TEXTS)
    if how == "bytes":
        backend = tokenizers.Tokenizer(models.BPE(vocab={"a": 0, "b": 1}, merges=[]))
        backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), plain.backend.decoder
        return Tokenizer(backend)
    backend = tokenizers.Tokenizer.from_str(plain.backend.to_str())
    if how == "greedy token":
        backend.add_special_tokens([tokenizers.AddedToken("<mask>", lstrip=True)])
    if how == "prefix space":
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    if how == "cut":
        backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Whitespace(), backend.pre_tokenizer])
    return Tokenizer(backend, roles=plain.roles)


@pytest.mark.parametrize(
    ("how", "told"),
    [
        ("characters", "BPE tokenizer has no form in a GGUF file"),
        ("cut", "byte-level BPE cut as in gpt2, llama3"),
        ("prefix space", "has no form"),
        ("bytes", "has no merges"),
        ("greedy token", "takes white space with it"),
    ],
)
def test_others_are_refused_in_one_line(plain: Tokenizer, how: str, told: str) -> None:
    with pytest.raises(UserError, match=told) as caught:
        tokenizer_to_gguf(spoilt(plain, how), 600)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["qwen3", "smollm2_135m_instruct", "gpt2"])
def test_published_tokenizers(name: str, tmp_path: Path) -> None:
    source = INTEROP / name
    if not source.is_dir():
        pytest.skip("needs ../shared/data")
    for path in source.iterdir():
        text = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        (tmp_path / path.name.removesuffix(".gz")).write_bytes(text)
    tokenizer = load_tokenizer(tmp_path)
    again = tokenizer_from_gguf(tokenizer_to_gguf(tokenizer, tokenizer.vocab_size))
    for text in [*TEXTS, json.dumps({"a": [1, 22, 333]}), "한국어 العربية हिन्दी 👍🏽", "<tool_call>\n<think>"]:
        assert again.encode(text, allow_special=True) == tokenizer.encode(text, allow_special=True)
        assert again.encode(text) == tokenizer.encode(text)
    assert again.eos_ids == tokenizer.eos_ids
