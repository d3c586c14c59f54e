"""The named ways of cutting text before byte-level BPE: one table for training, for GGUF and for old vocabulary files.

A byte-level vocabulary is worth nothing without the cut that it was trained with, so a name that is not in the table is
refused; a wrong guess would give plausible ids and a worse model (llama.cpp issue 8649).
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import tokenizers
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, processors

PreTokenizerName = Literal["gpt2", "llama3", "smollm2", "qwen2", "olmo"]

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_AFTER_NUMBERS = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


@dataclass(frozen=True)
class PreTokenizer:
    """How one family cuts text.

    ``pattern`` matches one piece (None: GPT-2's pattern, which the library has built in); ``digits`` splits every digit
    off first; ``nfc`` normalises Unicode; ``whole_words`` takes a piece that is in the vocabulary before trying merges;
    ``bos`` says whether text begins with a BOS where a GGUF file leaves that open; ``gguf`` are the names in
    ``tokenizer.ggml.pre``.
    """

    gguf: tuple[str, ...]
    pattern: str | None = None
    digits: bool = False
    nfc: bool = False
    whole_words: bool = False
    bos: bool = False


PRE_TOKENIZERS: Mapping[str, PreTokenizer] = {
    "gpt2": PreTokenizer(gguf=("gpt-2",)),
    "llama3": PreTokenizer(
        gguf=("llama-bpe", "llama3", "llama-v3"),
        pattern=_CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}" + _AFTER_NUMBERS,
        whole_words=True,
        bos=True,
    ),
    "smollm2": PreTokenizer(gguf=("smollm",), digits=True),
    "qwen2": PreTokenizer(
        gguf=("qwen2", "deepseek-r1-qwen"),
        pattern=_CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}" + _AFTER_NUMBERS,
        nfc=True,
    ),
    "olmo": PreTokenizer(gguf=("olmo",), nfc=True),
}
assert set(PRE_TOKENIZERS) == set(get_args(PreTokenizerName))


def byte_level_bpe(
    name: PreTokenizerName,
    vocab: Mapping[str, int] | None = None,
    merges: Iterable[tuple[str, str]] = (),
    *,
    add_prefix_space: bool = False,
) -> tokenizers.Tokenizer:
    """A byte-level BPE tokenizer (Radford et al. 2019) with a named cut; without a vocabulary it is ready to train."""
    spec = PRE_TOKENIZERS[name]
    model = models.BPE(vocab=dict(vocab or {}), merges=list(merges), ignore_merges=spec.whole_words)
    backend = tokenizers.Tokenizer(model)
    if spec.nfc:
        backend.normalizer = normalizers.NFC()
    steps = []
    if spec.digits:
        steps.append(pre_tokenizers.Digits(individual_digits=True))
    if spec.pattern:
        steps.append(pre_tokenizers.Split(Regex(spec.pattern), behavior="isolated"))
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space, use_regex=spec.pattern is None))
    backend.pre_tokenizer = steps[0] if len(steps) == 1 else pre_tokenizers.Sequence(steps)
    backend.post_processor = processors.ByteLevel(trim_offsets=False)
    backend.decoder = decoders.ByteLevel()
    return backend
