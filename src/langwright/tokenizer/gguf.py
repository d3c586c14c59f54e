"""The tokenizer that a GGUF file carries in its metadata: read, and written.

Keys as in https://github.com/ggml-org/ggml/blob/master/docs/gguf.md; ids are those of the Hugging Face tokenizer that
the file was converted from.
"""

import json
from collections.abc import Iterable, Mapping
from typing import Any

import tokenizers
from tokenizers import processors

from langwright.core.errors import FormatError, UserError
from langwright.tokenizer.pre_tokenizers import PRE_TOKENIZERS, PreTokenizerName, byte_level_bpe
from langwright.tokenizer.tokenizer import Tokenizer

NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5
ROLE_KEYS = {
    "bos": "bos",
    "eos": "eos",
    "pad": "padding",
    "unk": "unknown",
    "mask": "mask",
    "cls": "cls",
    "sep": "seperator",
}
PROBES = (
    "The quick brown fox, 12345 + 67.8!",
    "I'm SURE that you'll've\tseen  two  spaces \r\n\n\n and lines ",
    "naïve café, cafe\u0301, x², ½",
    "春眠不觉晓，处处闻啼鸟。",
    "한국어 العربية हिन्दी ไทย",
    "😀👍🏽 z͑a",
    "def f(x):\n    return x[0] != 3\n",
    "<|im_end|> </s><s> [INST] <|endoftext|>",
)
"""Texts on which a tokenizer that was written is tried before it is believed."""
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


def tokenizer_to_gguf(tokenizer: Tokenizer, vocab_size: int, eos_ids: Iterable[int] = ()) -> dict[str, Any]:
    """The metadata that `tokenizer_from_gguf` reads back as this tokenizer, for a model with ``vocab_size`` rows.

    ``eos_ids`` are further ids that end an answer. An id without a token becomes an unused ``[PADn]``, as llama.cpp's
    converter has it. The result is read back and tried on `PROBES`, because a wrong cut would give plausible ids:
    raises `UserError` for a tokenizer that is no byte-level BPE with a cut that has a name, or that GGUF cannot say.
    """
    document = json.loads(tokenizer.backend.to_str())
    name = _cut_of(document)
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in document["model"]["merges"]]
    added = tokenizer.backend.get_added_tokens_decoder()
    for token in added.values():
        if token.lstrip or token.rstrip or token.single_word:
            raise UserError(f"the token {token.content!r:.60} takes white space with it, which a GGUF file cannot say")
    spelled = [tokenizer.spelling(index) for index in range(vocab_size)]

    def kind(index: int) -> int:
        if index in added:
            piped = added[index].content.startswith("<|") and added[index].content.endswith("|>")
            return CONTROL if added[index].special or piped else USER_DEFINED
        return UNUSED if spelled[index] in (None, f"[PAD{index}]") else NORMAL

    framed, bare = tokenizer.encode("a", add_special_tokens=True), tokenizer.encode("a")
    begins, ends = framed[:1] == [tokenizer.bos_id], framed[-1:] == [tokenizer.eos_id]
    if framed != framed[:1] * begins + bare + framed[-1:] * ends or not merges:
        what = "frames texts with more than BOS and EOS" if merges else "has no merges"
        raise UserError(f"the tokenizer {what}, which a GGUF file cannot say; use --format hf")
    wanted = tokenizer.eos_ids | set(eos_ids)
    ids = {key: tokenizer.id(tokenizer.roles[role]) for role, key in ROLE_KEYS.items() if role in tokenizer.roles}
    if tokenizer.eos_id is None and wanted:
        ids["eos"] = min(wanted)
    metadata: dict[str, Any] = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": PRE_TOKENIZERS[name].gguf[0],
        "tokenizer.ggml.tokens": [f"[PAD{at}]" if token is None else token for at, token in enumerate(spelled)],
        "tokenizer.ggml.token_type": [kind(index) for index in range(vocab_size)],
        "tokenizer.ggml.merges": merges,
        **{f"tokenizer.ggml.{key}_token_id": index for key, index in ids.items()},
        "tokenizer.ggml.add_space_prefix": False,
        "tokenizer.ggml.add_bos_token": begins,
        "tokenizer.ggml.add_eos_token": ends,
    }
    if tokenizer.chat_template:
        metadata["tokenizer.chat_template"] = tokenizer.chat_template
    if tokenizer.named_templates:
        metadata["tokenizer.chat_templates"] = list(tokenizer.named_templates)
        metadata |= {f"tokenizer.chat_template.{key}": text for key, text in tokenizer.named_templates.items()}
    missing = sorted(wanted - tokenizer_from_gguf(metadata).eos_ids)
    metadata |= {f"tokenizer.ggml.{key}_token_id": index for key, index in zip(("eot", "eom"), missing, strict=False)}
    _check_written(tokenizer, tokenizer_from_gguf(metadata), wanted)
    return metadata


def _check_written(tokenizer: Tokenizer, again: Tokenizer, eos_ids: Iterable[int]) -> None:
    for allow in (False, True):
        found = again.encode_batch(PROBES, allow_special=allow, add_special_tokens=True)
        wanted = tokenizer.encode_batch(PROBES, allow_special=allow, add_special_tokens=True)
        if wrong := [text for text, one, other in zip(PROBES, found, wanted, strict=True) if one != other]:
            raise UserError(f"the tokenizer reads {wrong[0]!r:.40} otherwise in a GGUF file; use --format hf")
    if lost := set(eos_ids) - again.eos_ids:
        raise UserError(f"a GGUF file has no place for so many end tokens ({len(lost)} too many); use --format hf")


def _cut_of(document: Mapping[str, Any]) -> PreTokenizerName:
    """The name of the cut of a tokenizer.json; raises `UserError` for one without a name here."""

    def cut(of: Mapping[str, Any]) -> tuple[Any, ...]:
        steps = of["pre_tokenizer"]
        steps = steps["pretokenizers"] if steps and steps["type"] == "Sequence" else [steps]
        plain = [{key: value for key, value in (step or {}).items() if key != "trim_offsets"} for step in steps]
        return of["normalizer"], plain, bool(of["model"].get("ignore_merges")), (of["decoder"] or {}).get("type")

    model = document["model"]
    odd = [key for key in ("continuing_subword_prefix", "end_of_word_suffix", "dropout") if model.get(key)]
    if model["type"] == "BPE" and not odd and not model.get("byte_fallback"):
        for name in PRE_TOKENIZERS:
            if cut(json.loads(byte_level_bpe(name).to_str())) == cut(document):  # type: ignore[arg-type]
                return name  # type: ignore[return-value]
    raise UserError(
        f"this {model['type']} tokenizer has no form in a GGUF file here (byte-level BPE cut as in "
        f"{', '.join(PRE_TOKENIZERS)} has); use --format hf"
    )
