"""Tokenizers from the vocabulary files that came before tokenizer.json: GPT-2's pair and BERT's list."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from langwright.core.errors import FormatError, UserError
from langwright.core.json_text import read_json_object
from langwright.tokenizer.pre_tokenizers import PreTokenizerName, byte_level_bpe

MAX_TEXT_BYTES = 64 << 20
CUT_OF_CLASS: Mapping[str, PreTokenizerName] = {
    "GPT2Tokenizer": "gpt2",
    "RobertaTokenizer": "gpt2",
    "Qwen2Tokenizer": "qwen2",
}
ROBERTA = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
BERT = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def read_text(path: Path, limit: int = MAX_TEXT_BYTES) -> str:
    """A UTF-8 text file of at most ``limit`` bytes; raises `UserError` or `FormatError` naming it."""
    try:
        if path.stat().st_size > limit:
            raise FormatError(f"{path}: larger than {limit >> 20} MiB, too large for what it should be")
        return path.read_bytes().decode("utf-8")
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise FormatError(f"{path}: not UTF-8: {error}") from None


def byte_level_from_files(vocab_path: Path, merges_path: Path, settings: Mapping[str, Any]) -> tokenizers.Tokenizer:
    """vocab.json + merges.txt, cut as ``tokenizer_class`` in ``settings`` says.

    Without one, a vocabulary with RoBERTa's five marks is RoBERTa's and one with ``<|endoftext|>`` is GPT-2's. Raises
    `UserError` for another class, whose pattern is in no file.
    """
    vocab = read_json_object(vocab_path)
    name = settings.get("tokenizer_class")
    if name is None:
        name = "RobertaTokenizer" if all(mark in vocab for mark in ROBERTA) else "GPT2Tokenizer"
    name = str(name).removesuffix("Fast")
    marks = ROBERTA if name == "RobertaTokenizer" else ("<|endoftext|>",)
    if name not in CUT_OF_CLASS or not all(mark in vocab for mark in marks):
        known = ", ".join(CUT_OF_CLASS)
        raise UserError(
            f"{vocab_path}: how {name} cuts text, or its special tokens, are not known (known: {known});"
            " use a folder with tokenizer.json"
        )
    merges = []
    for number, line in enumerate(read_text(merges_path).split("\n"), 1):
        line = line.rstrip("\r")
        if not line or (number == 1 and line.startswith("#version")):
            continue
        pair = line.split(" ")
        if len(pair) != 2:
            raise FormatError(f"{merges_path}: line {number} should hold two pieces, holds {line!r:.60}")
        merges.append((pair[0], pair[1]))
    prefix = bool(settings.get("add_prefix_space", False))
    backend = byte_level_bpe(CUT_OF_CLASS[name], vocab, merges, add_prefix_space=prefix)
    if name == "RobertaTokenizer":
        backend.post_processor = processors.RobertaProcessing(
            ("</s>", vocab["</s>"]), ("<s>", vocab["<s>"]), trim_offsets=True, add_prefix_space=prefix
        )
    backend.add_special_tokens(
        [tokenizers.AddedToken(mark, lstrip=mark == "<mask>", normalized=False) for mark in marks]
    )
    return backend


def word_pieces_from_file(path: Path, settings: Mapping[str, Any]) -> tokenizers.Tokenizer:
    """BERT's vocab.txt (Devlin et al. 2018), one piece a line.

    Text is lower-cased as ``do_lower_case`` in ``settings`` says; without that, when no piece has a capital letter.
    """
    lines = read_text(path).split("\n")
    pieces = [line.removesuffix("\r") for line in (lines[:-1] if lines[-1] == "" else lines)]
    vocab = {piece: index for index, piece in enumerate(pieces)}
    if len(vocab) < len(pieces):
        twice = next(piece for index, piece in enumerate(pieces) if vocab[piece] != index)
        raise FormatError(f"{path}: the piece {twice!r} stands twice")
    if missing := [mark for mark in BERT if mark not in vocab]:
        raise FormatError(f"{path}: not a WordPiece vocabulary: it lacks {', '.join(missing)}")
    cased = any(piece != piece.lower() for piece in pieces if not piece.startswith("["))
    backend = tokenizers.Tokenizer(models.WordPiece(vocab, unk_token="[UNK]", max_input_chars_per_word=100))
    backend.normalizer = normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=settings.get("tokenize_chinese_chars", True),
        strip_accents=settings.get("strip_accents"),
        lowercase=settings.get("do_lower_case", not cased),
    )
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece(prefix="##")
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(mark, vocab[mark]) for mark in ("[CLS]", "[SEP]")],
    )
    backend.add_special_tokens([tokenizers.AddedToken(mark, normalized=False) for mark in BERT])
    return backend
