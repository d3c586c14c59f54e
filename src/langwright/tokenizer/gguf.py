"""The tokenizer that a GGUF file carries in its metadata.

Keys as in https://github.com/ggml-org/ggml/blob/master/docs/gguf.md; ids are those of the Hugging Face tokenizer that
the file was converted from.
"""

from collections.abc import Mapping
from typing import Any

import tokenizers
from tokenizers import processors

from langwright.core.errors import FormatError, UserError
from langwright.tokenizer.pre_tokenizers import PRE_TOKENIZERS, PreTokenizerName, byte_level_bpe
from langwright.tokenizer.tokenizer import Tokenizer

CONTROL, USER_DEFINED = 3, 4
ROLE_KEYS = {
    "bos": "bos",
    "eos": "eos",
    "pad": "padding",
    "unk": "unknown",
    "mask": "mask",
    "cls": "cls",
    "sep": "seperator",
}
FIX = "use the Hugging Face folder of the same model, which has a tokenizer.json"


def tokenizer_from_gguf(metadata: Mapping[str, Any]) -> Tokenizer:
    """Build the tokenizer of a GGUF file's metadata (plain Python values).

    Raises `UserError` for a kind of tokenizer or a pre-tokenizer that is not known here, `FormatError` for a vocabulary
    that contradicts itself.
    """
    kind = metadata.get("tokenizer.ggml.model")
    if kind != "gpt2":
        raise UserError(f"GGUF tokenizer kind {kind!r} is not supported, only byte-level BPE ('gpt2') is; {FIX}")
    name = _pre_tokenizer(metadata.get("tokenizer.ggml.pre"))
    tokens = _strings(metadata, "tokenizer.ggml.tokens")
    vocab = {token: index for index, token in enumerate(tokens)}
    if len(vocab) < len(tokens):
        raise FormatError("GGUF vocabulary: a token stands twice")
    try:
        backend = byte_level_bpe(name, vocab, _merges(metadata, vocab))
    except Exception as error:
        raise FormatError(f"GGUF vocabulary: {error}") from None
    _add_special_tokens(backend, tokens, metadata)
    roles = {role: _token_at(tokens, metadata, f"{key}_token_id") for role, key in ROLE_KEYS.items()}
    roles = {role: token for role, token in roles.items() if token is not None}
    if _flag(metadata, "add_bos_token", PRE_TOKENIZERS[name].bos) or _flag(metadata, "add_eos_token", False):
        _frame(backend, roles, metadata, name)
    ends = (_token_at(tokens, metadata, f"{key}_token_id") for key in ("eos", "eot", "eom"))
    template = metadata.get("tokenizer.chat_template")
    context = metadata.get(f"{metadata.get('general.architecture')}.context_length")
    return Tokenizer(
        backend,
        roles=roles,
        eos_ids={vocab[end] for end in ends if end is not None},
        chat_template=template if isinstance(template, str) else None,
        max_length=context if isinstance(context, int) else None,
    )


def _pre_tokenizer(given: Any) -> PreTokenizerName:
    for name, spec in PRE_TOKENIZERS.items():
        if given in spec.gguf:
            return name  # type: ignore[return-value]
    known = ", ".join(alias for spec in PRE_TOKENIZERS.values() for alias in spec.gguf)
    what = f"GGUF pre-tokenizer {given!r} is not known" if given else "the GGUF file does not name its pre-tokenizer"
    raise UserError(f"{what} (known: {known}); {FIX}")


def _strings(metadata: Mapping[str, Any], key: str) -> list[str]:
    values = metadata.get(key)
    if not isinstance(values, list) or not values or not all(isinstance(value, str) for value in values):
        raise FormatError(f"GGUF metadata: {key} should be a list of strings")
    return values


def _merges(metadata: Mapping[str, Any], vocab: Mapping[str, int]) -> list[tuple[str, str]]:
    merges = []
    for line in _strings(metadata, "tokenizer.ggml.merges"):
        left, _, right = line.partition(" ")
        if left not in vocab or right not in vocab or left + right not in vocab:
            raise FormatError(f"GGUF merges: {line!r:.80} names a token that the vocabulary lacks")
        merges.append((left, right))
    return merges


def _add_special_tokens(backend: tokenizers.Tokenizer, tokens: list[str], metadata: Mapping[str, Any]) -> None:
    types = metadata.get("tokenizer.ggml.token_type")
    if not isinstance(types, list) or len(types) != len(tokens):
        raise FormatError("GGUF metadata: tokenizer.ggml.token_type should have one entry for each token")
    backend.add_tokens(
        [
            tokenizers.AddedToken(token, special=kind == CONTROL, normalized=False)
            for token, kind in zip(tokens, types, strict=True)
            if kind in (CONTROL, USER_DEFINED)
        ]
    )


def _flag(metadata: Mapping[str, Any], name: str, default: bool) -> bool:
    return bool(metadata.get(f"tokenizer.ggml.{name}", default))


def _token_at(tokens: list[str], metadata: Mapping[str, Any], key: str) -> str | None:
    index = metadata.get(f"tokenizer.ggml.{key}")
    if index is None:
        return None
    if not isinstance(index, int) or not 0 <= index < len(tokens):
        raise FormatError(f"GGUF metadata: tokenizer.ggml.{key} = {index!r} is not an id of its {len(tokens)} tokens")
    return tokens[index]


def _frame(
    backend: tokenizers.Tokenizer, roles: Mapping[str, str], metadata: Mapping[str, Any], name: PreTokenizerName
) -> None:
    """Make the post-processor that begins a text with BOS and ends it with EOS, as the file asks."""
    parts = ["$A"]
    if _flag(metadata, "add_bos_token", PRE_TOKENIZERS[name].bos):
        parts.insert(0, roles.get("bos", ""))
    if _flag(metadata, "add_eos_token", False):
        parts.append(roles.get("eos", ""))
    if "" in parts:
        raise FormatError("GGUF metadata: asks for a BOS or EOS around each text and does not say which token that is")
    marks = [(part, backend.token_to_id(part)) for part in parts if part != "$A"]
    backend.post_processor = processors.TemplateProcessing(single=parts, special_tokens=marks)
