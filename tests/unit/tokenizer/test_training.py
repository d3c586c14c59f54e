from pathlib import Path

import pytest
import tokenizers
import transformers
from tokenizers import pre_tokenizers

from langwright.core.errors import UserError
from langwright.tokenizer.load import load_tokenizer
from langwright.tokenizer.training import CHAT_AND_FIM, END, train_bpe, train_char
from tests.unit.tokenizer.conftest import TEXTS


@pytest.mark.parametrize("name", ["gpt2", "llama3", "smollm2"])
def test_byte_level_vocabulary(name: str) -> None:
    found = train_bpe(TEXTS, 400, pre_tokenizer=name, special_tokens=(END, *CHAT_AND_FIM))  # type: ignore[arg-type]
    assert found.vocab_size == 400
    assert [found.token(index) for index in range(7)] == [END, *CHAT_AND_FIM]
    assert all(found.id(letter) is not None for letter in pre_tokenizers.ByteLevel.alphabet())
    for text in [*TEXTS, "\x00\x7f\u2028 𠀀 \U0001f9d1\u200d\U0001f680"]:
        assert found.decode(found.encode(text)) == text
    again = train_bpe(iter(TEXTS), 400, pre_tokenizer=name, special_tokens=(END, *CHAT_AND_FIM))  # type: ignore[arg-type]
    assert again.fingerprint == found.fingerprint


def test_how_digits_are_cut() -> None:
    texts = ["1234567 " * 50]
    longest = {"gpt2": 8, "llama3": 3, "smollm2": 1}
    for name, length in longest.items():
        found = train_bpe(texts, 300, pre_tokenizer=name)  # type: ignore[arg-type]
        tokens = (found.token(index) for index in range(found.vocab_size))
        assert max(len(token) for token in tokens if any(map(str.isdigit, token))) == length


def test_fewer_pairs_than_asked_for() -> None:
    assert 257 < train_bpe(["abcabc"], 5000).vocab_size < 270


def test_refusals() -> None:
    with pytest.raises(UserError, match="vocabulary of 262 is too small; 256 bytes and the special tokens need 263"):
        train_bpe(TEXTS, 262, special_tokens=(END, *CHAT_AND_FIM))
    with pytest.raises(UserError, match="pre-tokenizer 'bert' is not known; use one of gpt2, llama3"):
        train_bpe(TEXTS, 400, pre_tokenizer="bert")  # type: ignore[arg-type]
    for empty in ([], [""]):
        with pytest.raises(UserError, match="no text to learn"):
            train_bpe(empty, 400)
        with pytest.raises(UserError, match="no text to learn"):
            train_char(empty)
    for wrong in ((END, END), ("",)):
        with pytest.raises(UserError, match="empty or named twice"):
            train_bpe(TEXTS, 400, special_tokens=wrong)
        with pytest.raises(UserError, match="empty or named twice"):
            train_char(TEXTS, special_tokens=wrong)


def test_progress_counts_characters() -> None:
    for train in (
        lambda report: train_bpe(["ab", "cde"], 300, progress=report),
        lambda report: train_char(["ab", "cde"], progress=report),
    ):
        told: list[int] = []
        train(told.append)
        assert told == [2, 5]


def test_padding_is_never_the_end() -> None:
    assert train_bpe(TEXTS, 300).pad_id is None
    found = train_bpe(TEXTS, 300, special_tokens=(END, "<|pad|>"))
    assert (found.pad_id, found.eos_id) == (1, 0)


def test_characters(tmp_path: Path) -> None:
    text = "To be,\n\n  or not\tto be 你好😀 e\u0301 <unk> <|endoftext|>\r\n"
    found = train_char([text])
    assert found.vocab_size == len(set(text)) + 2
    assert len(found.encode(text)) == len(text)
    assert found.decode(found.encode(text)) == text
    assert (found.unk_id, found.eos_id) == (0, 1)
    assert found.encode("☃☃b") == [0, 0, found.id("b")]
    found.save(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    bare = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    for sample in (text, "", " ", "b\n b☃ ", END + "a"):
        ids = found.encode(sample, allow_special=True)
        assert ids == theirs(sample)["input_ids"] == bare.encode(sample).ids
        assert ids == load_tokenizer(tmp_path).encode(sample, allow_special=True)
        assert theirs.decode(ids) == found.decode(ids)
