import json
import random
from pathlib import Path
from typing import Any

import pytest
import tokenizers

from langwright.core.errors import FormatError, UserError
from langwright.tokenizer.load import load_tokenizer
from langwright.tokenizer.tokenizer import Tokenizer
from langwright.tokenizer.training import train_bpe
from langwright.tokenizer.vocabulary import BERT, ROBERTA


@pytest.fixture
def folder(plain: Tokenizer, tmp_path: Path) -> Path:
    plain.save(tmp_path)
    return tmp_path


def change(path: Path, **values: Any) -> None:
    document = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(document | values, ensure_ascii=False))


def refuse(path: Path, match: str, error: type[UserError] = FormatError) -> None:
    with pytest.raises(error, match=match) as caught:
        load_tokenizer(path)
    assert "\n" not in str(caught.value)
    assert str(path.name) in str(caught.value)


def test_folder_and_file(folder: Path, plain: Tokenizer) -> None:
    for path in (folder, folder / "tokenizer.json"):
        found = load_tokenizer(path)
        assert found.fingerprint == plain.fingerprint
        assert found.roles == plain.roles


def test_nothing_there(tmp_path: Path) -> None:
    refuse(tmp_path / "none", "no such file or folder", UserError)
    refuse(tmp_path, "holds no tokenizer.json", UserError)
    for name in ("tokenizer.model", "spiece.model"):
        (tmp_path / name).write_bytes(b"\n\x0e")
        refuse(tmp_path, "SentencePiece models are not read; with transformers", UserError)
        refuse(tmp_path / name, "SentencePiece", UserError)


def test_without_settings_usual_names_tell_the_roles(folder: Path) -> None:
    (folder / "tokenizer_config.json").unlink()
    found = load_tokenizer(folder)
    assert found.roles == {"eos": "<|endoftext|>", "pad": "<|pad|>"}


def test_older_and_further_settings(folder: Path, plain: Tokenizer) -> None:
    (folder / "tokenizer_config.json").write_text('{"pad_token": {"content": "<|pad|>"}, "model_max_length": 1e30}')
    change(folder / "special_tokens_map.json", eos_token="<|im_end|>", pad_token="<|endoftext|>")
    change(folder / "generation_config.json", eos_token_id=[0, 5])
    found = load_tokenizer(folder)
    assert found.roles == {"eos": "<|im_end|>", "pad": "<|pad|>"}
    assert found.eos_ids == {0, 5, plain.id("<|im_end|>")}
    assert found.max_length is None
    change(folder / "generation_config.json", eos_token_id="x")
    with pytest.raises(FormatError, match=r"generation_config.json: 'x' is not a token id"):
        load_tokenizer(folder)


def test_chat_templates(folder: Path) -> None:
    settings = folder / "tokenizer_config.json"
    change(settings, chat_template="one")
    assert load_tokenizer(folder).chat_template == "one"
    change(settings, chat_template=[{"name": "default", "template": "two"}, {"name": "tool_use", "template": "t"}])
    found = load_tokenizer(folder)
    assert (found.chat_template, found.named_templates) == ("two", {"tool_use": "t"})
    (folder / "chat_template.jinja").write_text("three")
    assert load_tokenizer(folder).chat_template == "three"
    change(settings, chat_template=[{"name": "../../x", "template": "t"}])
    with pytest.raises(FormatError, match=r"chat template name '../../x' is not a plain word"):
        load_tokenizer(folder)
    change(settings, chat_template=[{"name": "x"}])
    with pytest.raises(FormatError, match="not a usable tokenizer: 'template'"):
        load_tokenizer(folder)


def test_tokens_declared_beside_the_vocabulary(folder: Path, plain: Tokenizer) -> None:
    declared = {str(plain.vocab_size): {"content": "<extra>", "special": True, "lstrip": True}}
    change(folder / "tokenizer_config.json", added_tokens_decoder=declared)
    found = load_tokenizer(folder)
    assert found.encode("a  <extra>", allow_special=True) == [*plain.encode("a"), plain.vocab_size]
    change(folder / "tokenizer_config.json", added_tokens_decoder={"3": {"content": "<extra>"}})
    with pytest.raises(FormatError, match="gives '<extra>' the id 3, which is not its own"):
        load_tokenizer(folder)


@pytest.mark.parametrize(
    ("values", "match"),
    [
        ({"model": None}, "it has no model"),
        ({"model": {"type": "BPE", "vocab": {}, "merges": []}}, "vocabulary is empty"),
        ({"model": {"type": "BPE", "vocab": {"a": 0, "b": 0}, "merges": []}}, "two tokens have the same id"),
        ({"model": {"type": "BPE", "vocab": {"a": -1}, "merges": []}}, "-1 is not a token id"),
        ({"model": {"type": "BPE", "vocab": {"a": 1 << 31}, "merges": []}}, "2147483648 is not a token id"),
        ({"model": {"type": "BPE", "vocab": {"a": True}, "merges": []}}, "expected u32"),
        ({"model": {"type": "Other", "vocab": {"a": 0}}}, "not a usable tokenizer"),
        ({"model": {"type": "BPE", "vocab": {"a": 0}, "merges": ["a b"]}}, "not a usable tokenizer"),
        ({"added_tokens": [{"id": 0}]}, "should be a list of tokens"),
        ({"added_tokens": [{"id": 9, "content": "<x>"}]}, "not a usable tokenizer"),
        ({"pre_tokenizer": {"type": "Evil"}}, "not a usable tokenizer"),
        ({"pre_tokenizer": {"type": "Split", "pattern": {"Regex": "("}}}, "not a usable tokenizer"),
        ({"version": "9"}, "not a usable tokenizer"),
    ],
)
def test_lies(folder: Path, values: dict[str, Any], match: str) -> None:
    change(folder / "tokenizer.json", **values)
    refuse(folder / "tokenizer.json", match)


def test_an_added_token_with_anothers_id(folder: Path, plain: Tokenizer) -> None:
    document = json.loads((folder / "tokenizer.json").read_text())
    document["added_tokens"].append({**document["added_tokens"][0], "id": 3000, "content": "<x>"})
    change(folder / "tokenizer.json", **document)
    refuse(folder / "tokenizer.json", "the added token '<x>' cannot have the id 3000")
    document["added_tokens"][-1] |= {"id": 1, "content": "<y>"}
    change(folder / "tokenizer.json", **document)
    refuse(folder / "tokenizer.json", "two tokens have the same id")


@pytest.mark.parametrize(
    "text", [b"", b"{", b"[]", b'{"model": 1, "model": 2}', b"\xff\xfe{}", b"[" * 10000, b'{"a": NaN}']
)
def test_bad_json(folder: Path, text: bytes) -> None:
    (folder / "tokenizer.json").write_bytes(text)
    refuse(folder / "tokenizer.json", "tokenizer.json")


def test_truncation_and_bit_flips(tmp_path: Path) -> None:
    train_bpe(["abc abd"], 260, pre_tokenizer="llama3").save(tmp_path)
    path = tmp_path / "tokenizer.json"
    whole = path.read_bytes()
    draw = random.Random(0)
    for stop in [*range(0, 60, 7), *draw.sample(range(len(whole) - 2), 40)]:
        path.write_bytes(whole[:stop])
        refuse(path, "not valid JSON")
    for _ in range(150):
        damaged = bytearray(whole)
        damaged[draw.randrange(len(whole))] ^= 1 << draw.randrange(8)
        path.write_bytes(damaged)
        try:
            load_tokenizer(path).encode("abc")  # a flip may leave a valid tokenizer
        except UserError as error:
            assert "tokenizer.json" in str(error)


def write_pair(folder: Path, vocab: dict[str, int], merges: str) -> None:
    (folder / "vocab.json").write_text(json.dumps(vocab))
    (folder / "merges.txt").write_text(merges)


def test_gpt2_pair(tmp_path: Path) -> None:
    write_pair(tmp_path, {"<|endoftext|>": 4, "a": 0, "b": 1, "ab": 2, "Ġ": 3}, "#version: 0.2\na b\n")
    found = load_tokenizer(tmp_path)
    assert found.encode("ab ab") == [2, 3, 2]
    assert found.encode("<|endoftext|>", allow_special=True) == [4]
    assert found.eos_ids == {4}
    change(tmp_path / "tokenizer_config.json", tokenizer_class="CodeGenTokenizer")
    refuse(tmp_path, "how CodeGenTokenizer cuts text", UserError)


def test_roberta_pair(tmp_path: Path) -> None:
    write_pair(tmp_path, {token: index for index, token in enumerate([*ROBERTA, "a", "Ġ", "b"])}, "")
    found = load_tokenizer(tmp_path)
    assert found.encode("ab", add_special_tokens=True) == [0, 5, 7, 2]
    assert found.encode("a <mask>", allow_special=True) == [5, 4]  # the mask swallows the space before it
    assert found.mask_id == 4


@pytest.mark.parametrize(("merges", "match"), [("a b c\n", "line 1 should hold two pieces"), ("a x\n", "not a usable")])
def test_bad_pairs(tmp_path: Path, merges: str, match: str) -> None:
    write_pair(tmp_path, {"<|endoftext|>": 4, "a": 0, "b": 1}, merges)
    with pytest.raises(FormatError, match=match):
        load_tokenizer(tmp_path)


def test_word_pieces(tmp_path: Path) -> None:
    path = tmp_path / "vocab.txt"
    path.write_text("\n".join([*BERT, "hello", "##s"]) + "\n")
    assert load_tokenizer(tmp_path).encode("Hellos") == [5, 6]
    path.write_text("\r\n".join([*BERT, "hello", "Hello"]))
    assert load_tokenizer(tmp_path).encode("Hello hello") == [6, 5]  # a vocabulary with capitals keeps them
    change(tmp_path / "tokenizer_config.json", do_lower_case=True)
    assert load_tokenizer(tmp_path).encode("Hello") == [5]
    path.write_text("\n".join([*BERT, "a", "a"]))
    refuse(tmp_path, "vocab.txt: the piece 'a' stands twice")
    path.write_text("hello\nworld\n")
    refuse(tmp_path, r"it lacks \[PAD\]")
    path.write_bytes("\n".join(BERT).encode() + b"\n\xff\xfe")
    refuse(tmp_path, "not UTF-8")


def test_unigram_vocabularies_are_lists(tmp_path: Path) -> None:
    model = tokenizers.models.Unigram([("<unk>", 0.0), ("a", -1.0)], unk_id=0)
    tokenizers.Tokenizer(model).save(str(tmp_path / "tokenizer.json"))
    assert load_tokenizer(tmp_path).encode("a") == [1]
