from pathlib import Path

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models

from langwright.tokenizer.stream import IncrementalDecoder
from langwright.tokenizer.tokenizer import Tokenizer
from langwright.tokenizer.training import train_char
from langwright.tokenizer.vocabulary import BERT, word_pieces_from_file

SAMPLES = ["你好，世界", "👩‍👩‍👧‍👦 family", "🏳️‍🌈👍🏽🇨🇳", "naïve café\n", "한국어", "plain text", "a\u0301\u0323", "𠀀"]
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def pieces(decoder: IncrementalDecoder, ids: list[int]) -> list[str]:
    return [*map(decoder.push, ids), decoder.finish()]


def with_decoder(vocab: list[str], decoder: decoders.Decoder | None, special: tuple[str, ...] = ()) -> Tokenizer:
    backend = tokenizers.Tokenizer(
        models.WordLevel({token: index for index, token in enumerate(vocab)}, unk_token=vocab[0])
    )
    if decoder is not None:
        backend.decoder = decoder
    backend.add_special_tokens(list(special))
    return Tokenizer(backend)


LLAMA = decoders.Sequence(
    [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
)


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tokenizer]:
    path = tmp_path_factory.mktemp("bert") / "vocab.txt"
    path.write_text("\n".join([*BERT, "hello", "##s", "do", "not", "n't", ".", ",", "'", "s", "你", "##好", "#"]))
    return {
        "word pieces": Tokenizer(word_pieces_from_file(path, {})),
        "characters": train_char(["abc 你好😀\n"]),
        "metaspace": with_decoder(["▁a", "b", "▁", "▁▁", "c▁", "你"], decoders.Metaspace()),
        "byte fallback": with_decoder([*BYTES, "▁a", "b", "▁", "你", "<s>"], LLAMA, ("<s>",)),
        "suffixes": with_decoder(["a</w>", "b", "c</w>", "x"], decoders.BPEDecoder("</w>")),
        "none": with_decoder(["a", "b", "c"], None),
    }


@pytest.mark.parametrize("text", SAMPLES)
def test_no_broken_characters(text: str, plain: Tokenizer) -> None:
    found = pieces(IncrementalDecoder(plain), plain.encode(text))
    assert "".join(found) == text
    assert not any("\ufffd" in piece for piece in found)
    assert found[-1] == ""


@given(st.text())
@settings(deadline=None)
def test_text_streams_whole(plain: Tokenizer, text: str) -> None:
    assert "".join(pieces(IncrementalDecoder(plain), plain.encode(text))) == text


@given(ids=st.lists(st.integers(0, 520)), skip=st.booleans())
@settings(deadline=None, max_examples=300)
def test_random_ids_stream_whole(plain: Tokenizer, ids: list[int], skip: bool) -> None:
    decoder = IncrementalDecoder(plain, skip_special_tokens=skip)
    assert "".join(pieces(decoder, ids)) == plain.decode(ids, skip_special_tokens=skip)
    assert "".join(pieces(decoder, ids)) == plain.decode(ids, skip_special_tokens=skip)  # it starts afresh


@given(data=st.data(), skip=st.booleans())
@settings(deadline=None, max_examples=100)
@pytest.mark.parametrize("kind", ["word pieces", "characters", "metaspace", "byte fallback", "suffixes", "none"])
def test_other_decoders_stream_whole(kind: str, others: dict[str, Tokenizer], data: st.DataObject, skip: bool) -> None:
    tokenizer = others[kind]
    some = st.integers(0, tokenizer.vocab_size)
    if kind == "byte fallback":
        some |= st.sampled_from([0xE4, 0xBD, 0xA0, 0xF0, 0x9F, 0x98, 0x80])
    ids = data.draw(st.lists(some, max_size=40))
    decoder = IncrementalDecoder(tokenizer, skip_special_tokens=skip)
    assert "".join(pieces(decoder, ids)) == tokenizer.decode(ids, skip_special_tokens=skip)


def test_byte_fallback_holds_a_run_until_it_is_certain(others: dict[str, Tokenizer]) -> None:
    tokenizer = others["byte fallback"]
    run = [*"你".encode(), *"好".encode()]
    assert pieces(IncrementalDecoder(tokenizer), [256, *run, 257]) == ["a", "", "", "", "", "", "", "你好b", ""]


@pytest.mark.parametrize("kind", ["word pieces", "metaspace", "suffixes"])
def test_the_window_stays_small(kind: str, others: dict[str, Tokenizer]) -> None:
    tokenizer = others[kind]
    longest = 0
    whole = tokenizer.decode

    def watch(ids: list[int], **options: bool) -> str:
        nonlocal longest
        longest = max(longest, len(ids))
        return whole(ids, **options)

    tokenizer.decode = watch  # type: ignore[method-assign]
    decoder = IncrementalDecoder(tokenizer)
    for index in range(2000):
        decoder.push(index % 4)
    assert longest < 12


def test_ids_without_a_token_have_no_text(plain: Tokenizer, tmp_path: Path) -> None:
    decoder = IncrementalDecoder(plain)
    assert [decoder.push(plain.vocab_size), decoder.push(2**40), decoder.push(-1)] == ["", "", ""]
