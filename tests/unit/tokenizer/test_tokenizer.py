import json
from pathlib import Path

import pytest
import tokenizers
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import models, pre_tokenizers, processors

from langwright.core.errors import FormatError, UserError
from langwright.tokenizer.load import load_tokenizer
from langwright.tokenizer.pre_tokenizers import byte_level_bpe
from langwright.tokenizer.tokenizer import Tokenizer
from langwright.tokenizer.training import CHAT_AND_FIM, END
from langwright.tokenizer.vocabulary import BERT, word_pieces_from_file

MARKS = (END, *CHAT_AND_FIM)
TEXT = st.text() | st.lists(st.sampled_from([*MARKS, "<|", "|>", "<", " ", "\n", "a", "你", "😀", "12"])).map("".join)


def word_pieces(tmp_path: Path) -> Tokenizer:
    pieces = [*BERT, "hello", "world", "sep", "mask", "cl", "##s", "[", "]", "h", "##i", "<", ">", "|"]
    (tmp_path / "vocab.txt").write_text("\n".join(pieces) + "\n")
    return Tokenizer(word_pieces_from_file(tmp_path / "vocab.txt", {}), roles={"unk": "[UNK]"})


@given(TEXT)
@settings(deadline=None, max_examples=200)
def test_text_round_trips_and_never_becomes_a_control_token(plain: Tokenizer, text: str) -> None:
    ids = plain.encode(text)
    assert plain.decode(ids) == text
    assert plain.controls.isdisjoint(ids)


@pytest.mark.parametrize("mark", MARKS)
def test_allow_special(mark: str, plain: Tokenizer) -> None:
    text = f"a {mark}b"
    assert plain.id(mark) in plain.encode(text, allow_special=True)
    assert plain.id(mark) not in plain.encode(text)
    assert plain.decode(plain.encode(text)) == plain.decode(plain.encode(text, allow_special=True)) == text


@pytest.mark.parametrize("spelling", ["<｜User｜>", "<|observation|>", "<tool_call>"])
def test_added_tokens_that_are_not_flagged_special(spelling: str, plain: Tokenizer) -> None:
    backend = tokenizers.Tokenizer.from_str(plain.backend.to_str())
    backend.add_tokens([tokenizers.AddedToken(spelling, special=False, normalized=False)])
    found = Tokenizer(backend, chat_template="{{ '<tool_call>' }}")
    text = f"x{spelling}y"
    assert found.id(spelling) == plain.vocab_size
    assert found.id(spelling) not in found.encode(text)
    assert found.id(spelling) in found.encode(text, allow_special=True)
    assert found.decode(found.encode(text)) == text


def test_added_tokens_that_only_shorten_text_stay(plain: Tokenizer) -> None:
    backend = tokenizers.Tokenizer.from_str(plain.backend.to_str())
    backend.add_tokens(["    ", "dachshund"])
    found = Tokenizer(backend, chat_template="    {{ 'a dachshund' }}")
    assert found.encode("x    dachshund<|im_end|>")[1:3] == [plain.vocab_size, plain.vocab_size + 1]


def test_word_pieces_in_brackets(tmp_path: Path) -> None:
    found = word_pieces(tmp_path)
    assert found.controls.isdisjoint(found.encode("hello [SEP] world[MASK]"))
    assert found.encode("hello", add_special_tokens=True) == [2, 5, 3]
    assert found.encode("[SEP]", allow_special=True) == [3]
    assert found.encode("☃") == [found.unk_id]  # an unknown character is still unknown


@pytest.mark.parametrize("text", ["</s>", "a </s>", "</s></s>", "a</s> a"])
def test_models_that_hold_a_control_token_as_a_word(text: str) -> None:
    words = models.WordLevel({"<unk>": 0, "</s>": 1, "a": 2}, unk_token="<unk>")
    pieces = models.Unigram([("<unk>", 0.0), ("</s>", -1.0), ("a", -1.0), *((c, -2.0) for c in "</s> ")], unk_id=0)
    whole = models.BPE({c: i for i, c in enumerate(["</s>", *"</s>a "[1:], "<"])}, [], ignore_merges=True)
    for model in (words, pieces, whole):
        backend = tokenizers.Tokenizer(model)
        if model is words:
            backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        end = backend.token_to_id("</s>")
        assert end in backend.encode("</s>").ids  # the trap
        backend.add_special_tokens(["</s>"])
        assert end not in Tokenizer(backend).encode(text)
        assert end in Tokenizer(backend).encode(text, allow_special=True)


def test_a_control_token_of_one_letter_is_refused() -> None:
    backend = tokenizers.Tokenizer(models.BPE({"a": 0, "b": 1}, []))
    backend.add_special_tokens(["a"])
    assert Tokenizer(backend).encode("b") == [1]
    with pytest.raises(UserError, match="spells its control token 'a' in ordinary text"):
        Tokenizer(backend).encode("ba")


def test_a_vocabulary_with_gaps_is_refused() -> None:
    # The library would give the added token the id of "b", and text could become it.
    for vocab in ({"<s>": 7, "a": 0, "b": 4, "c": 5}, {"a": 0, "b": 1, "<s>": 3}):
        backend = tokenizers.Tokenizer(models.BPE(vocab, []))
        backend.add_special_tokens(["<s>"])
        with pytest.raises(FormatError, match="leaves out ids below"):
            Tokenizer(backend)


def framed() -> Tokenizer:
    backend = byte_level_bpe("gpt2", {c: i for i, c in enumerate(["<s>", "</s>", *"abc"])}, [])
    backend.add_special_tokens(["<s>", "</s>"])
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    return Tokenizer(backend, roles={"bos": "<s>", "eos": "</s>"})


@pytest.mark.parametrize(
    ("text", "expected"), [("ab", [0, 2, 3, 1]), ("<s>ab", [0, 2, 3, 1]), ("<s>ab</s>", [0, 2, 3, 1]), ("", [0, 1])]
)
def test_no_second_bos(text: str, expected: list[int]) -> None:
    assert framed().encode(text, add_special_tokens=True, allow_special=True) == expected
    assert framed().encode_batch([text], add_special_tokens=True, allow_special=True) == [expected]


def test_batch_is_single(plain: Tokenizer) -> None:
    texts = ["", "a", "你好 <|im_end|>", "x" * 500, "12 34"]
    assert plain.encode_batch(texts) == [plain.encode(text) for text in texts]
    assert plain.encode_batch([]) == []


@pytest.mark.parametrize("allow_special", [True, False])
def test_what_is_not_text(allow_special: bool, plain: Tokenizer) -> None:
    with pytest.raises(UserError, match="surrogate"):
        plain.encode("a\ud800b", allow_special=allow_special)
    with pytest.raises(UserError, match="only text can be encoded, not a NoneType"):
        plain.encode_batch(["a", None], allow_special=allow_special)  # type: ignore[list-item]
    holes = Tokenizer(tokenizers.Tokenizer(models.WordLevel({"a": 0}, unk_token="<unk>")))
    with pytest.raises(UserError, match="cannot encode this text: WordLevel error"):
        holes.encode("b", allow_special=allow_special)


@pytest.mark.parametrize("allow_special", [True, False])
def test_a_hostile_pattern_ends_in_one_line(allow_special: bool, capfd: pytest.CaptureFixture[str]) -> None:
    backend = tokenizers.Tokenizer(models.BPE({"a": 0, "b": 1}, []))
    backend.pre_tokenizer = pre_tokenizers.Split(tokenizers.Regex("(a+)+$"), "isolated")
    with pytest.raises(UserError, match="cannot encode this text: Onig: .*retry-limit"):
        Tokenizer(backend).encode("a" * 60 + "b", allow_special=allow_special)
    capfd.readouterr()  # the library prints its panic


def test_ids_beyond_the_vocabulary(plain: Tokenizer) -> None:
    assert plain.decode([plain.vocab_size + 7]) == ""
    assert plain.spelling(plain.vocab_size) is None
    with pytest.raises(UserError, match=f"token id {plain.vocab_size} is not in the vocabulary"):
        plain.token(plain.vocab_size)
    with pytest.raises(UserError, match="whole numbers from 0"):
        plain.decode([-1])


def test_roles_and_ends(plain: Tokenizer, chatty: Tokenizer) -> None:
    assert (plain.token(0), plain.eos_id, plain.bos_id, plain.pad_id) == (END, 0, 0, plain.id("<|pad|>"))
    assert (plain.unk_id, plain.mask_id) == (None, None)
    assert plain.eos_ids == {0}
    assert chatty.eos_ids == {0, plain.id("<|im_end|>")}
    assert plain.special_ids == plain.controls == set(range(len(MARKS)))
    assert plain.decode([0, *plain.encode("a"), 2], skip_special_tokens=True) == "a"
    with pytest.raises(FormatError, match="mask token '<mask>' is not in its vocabulary"):
        Tokenizer(plain.backend, roles={"mask": "<mask>"})


def test_settings_of_somebodys_last_batch_are_dropped(plain: Tokenizer) -> None:
    backend = tokenizers.Tokenizer.from_str(plain.backend.to_str())
    backend.enable_truncation(2)
    backend.enable_padding(length=9)
    found = Tokenizer(backend, roles=plain.roles)
    assert found.encode("one two three") == plain.encode("one two three")
    assert found.fingerprint == plain.fingerprint


def test_saved_folder_reads_everywhere(plain: Tokenizer, tmp_path: Path) -> None:
    texts = ["The quick 123", "你好 😀 naïve\n\n  x", "", "<|im_end|>"]
    templates = {"tool_use": "{{ tools }}"}
    ours = Tokenizer(
        plain.backend, roles=plain.roles, chat_template="<|im_end|>", named_templates=templates, max_length=2048
    )
    ours.save(tmp_path)
    again = load_tokenizer(tmp_path)
    assert again.fingerprint == ours.fingerprint
    assert (again.roles, again.eos_ids, again.max_length) == (ours.roles, ours.eos_ids, 2048)
    assert (again.chat_template, again.named_templates) == ("<|im_end|>", templates)
    assert json.loads((tmp_path / "tokenizer_config.json").read_text())["clean_up_tokenization_spaces"] is False
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    bare = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    for text in texts:
        ids = ours.encode(text, allow_special=True)
        assert ids == again.encode(text, allow_special=True) == theirs(text)["input_ids"] == bare.encode(text).ids
        assert theirs.decode(ids) == text
    assert (theirs.eos_token, theirs.pad_token, theirs.model_max_length) == (END, "<|pad|>", 2048)
