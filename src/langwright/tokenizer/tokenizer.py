"""`Tokenizer`: text to ids and back, with the facts that a model's user needs beside the vocabulary."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path

import tokenizers

from langwright.core.errors import FormatError, UserError
from langwright.core.files import write_atomic
from langwright.core.json_text import write_json
from langwright.tokenizer.controls import PlainEncoder, encoding, find_controls

ROLES = ("bos", "eos", "pad", "unk", "mask", "cls", "sep")
TEXT_ENDS = ("<|endoftext|>", "<|end_of_text|>")
NAMED_TEMPLATES = "additional_chat_templates"
TURN_ENDS = ("<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<end_of_turn>", "<turn|>")


class Tokenizer:
    """A vocabulary with its rules. Ordinary text never becomes a control token unless ``allow_special`` says so.

    Attributes:
        chat_template: Jinja source, or None; ``named_templates`` holds a model's further ones, such as ``tool_use``.
        max_length: the longest text in tokens that the model was made for, or None.
        controls: ids that only templates, post-processing and ``allow_special`` can produce.
        eos_ids: every id that ends a text or a turn.
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        *,
        roles: Mapping[str, str] | None = None,
        eos_ids: Iterable[int] = (),
        chat_template: str | None = None,
        named_templates: Mapping[str, str] | None = None,
        max_length: int | None = None,
    ):
        """``roles`` names tokens (keys from `ROLES`); raises `FormatError` for one that the vocabulary lacks."""
        backend.no_truncation()  # a file may carry the settings of somebody's last batch
        backend.no_padding()
        self.backend = backend
        self.chat_template = chat_template
        self.named_templates = dict(named_templates or {})
        self.max_length = max_length
        self.roles = dict(roles or {})
        for role, token in self.roles.items():
            if backend.token_to_id(token) is None:
                raise FormatError(f"the tokenizer's {role} token {token!r} is not in its vocabulary")
        self.bos_id = self._role_id("bos")
        self.eos_id = self._role_id("eos")
        self.pad_id = self._role_id("pad")
        self.unk_id = self._role_id("unk")
        self.mask_id = self._role_id("mask")
        added = backend.get_added_tokens_decoder()
        self.special_ids = frozenset(index for index, token in added.items() if token.special)
        self.controls = find_controls(backend, chat_template)
        self.eos_ids = frozenset(eos_ids) | self._find_ends()
        self._plain = PlainEncoder(backend, self.controls)

    @cached_property
    def vocab_size(self) -> int:
        """The largest id + 1: rows that an embedding needs."""
        return max(self.backend.get_vocab(with_added_tokens=True).values()) + 1

    @cached_property
    def fingerprint(self) -> str:
        """Hex SHA-256 of the text of tokenizer.json as `save` writes it."""
        return hashlib.sha256(self._json.encode()).hexdigest()

    def id(self, token: str) -> int | None:
        """The id of a token as the vocabulary spells it, or None."""
        return self.backend.token_to_id(token)

    def spelling(self, index: int) -> str | None:
        """The vocabulary's spelling of an id; None for an id without a token (embeddings are often padded)."""
        return self.backend.id_to_token(index) if 0 <= index < 2**32 else None

    def token(self, index: int) -> str:
        """Like `spelling`; raises `UserError` for an id without a token."""
        found = self.spelling(index)
        if found is None:
            raise UserError(f"token id {index} is not in the vocabulary, whose ids end at {self.vocab_size - 1}")
        return found

    def encode(self, text: str, *, add_special_tokens: bool = False, allow_special: bool = False) -> list[int]:
        """Ids of ``text``.

        ``add_special_tokens`` frames it as the model expects ([CLS] ... [SEP], or a BOS, never a second one).
        ``allow_special`` lets spelled control tokens in the text be control tokens: only for text that you wrote.
        Raises `UserError` for text that is not valid Unicode.
        """
        return self.encode_batch([text], add_special_tokens=add_special_tokens, allow_special=allow_special)[0]

    def encode_batch(
        self, texts: Sequence[str], *, add_special_tokens: bool = False, allow_special: bool = False
    ) -> list[list[int]]:
        """`encode` for many texts, on all cores."""
        found = self._encode_trusted(texts) if allow_special else self._plain.encode_batch(texts)
        return [self._framed(ids) for ids in found] if add_special_tokens else found

    def decode(self, ids: Iterable[int], *, skip_special_tokens: bool = False) -> str:
        """The text of ``ids``; bytes that are not UTF-8 become U+FFFD, ids beyond the vocabulary nothing."""
        try:
            return self.backend.decode(list(ids), skip_special_tokens=skip_special_tokens)
        except (OverflowError, TypeError) as error:
            raise UserError(f"token ids must be whole numbers from 0 to {self.vocab_size - 1}: {error}") from None

    def save(self, folder: Path, *, types: bool = False) -> None:
        """Write tokenizer.json, tokenizer_config.json and chat_template.jinja as Hugging Face libraries read them.

        ``types`` says that the model reads segment types, which they give it only if told.
        """
        config: dict[str, object] = {f"{role}_token": token for role, token in self.roles.items()}
        config["tokenizer_class"] = "PreTrainedTokenizerFast"
        config["clean_up_tokenization_spaces"] = False
        if types:
            config["model_input_names"] = ["input_ids", "token_type_ids", "attention_mask"]
        if self.max_length is not None:
            config["model_max_length"] = self.max_length
        write_atomic(folder / "tokenizer.json", self._json)
        write_atomic(folder / "tokenizer_config.json", write_json(config))
        if self.chat_template is not None:
            write_atomic(folder / "chat_template.jinja", self.chat_template)
        for name, template in self.named_templates.items():
            write_atomic(folder / NAMED_TEMPLATES / f"{name}.jinja", template)

    @cached_property
    def _json(self) -> str:
        return self.backend.to_str(pretty=True)

    def _role_id(self, role: str) -> int | None:
        return self.backend.token_to_id(self.roles[role]) if role in self.roles else None

    def _find_ends(self) -> frozenset[int]:
        ends = [*TEXT_ENDS, *(end for end in TURN_ENDS if end in (self.chat_template or ""))]
        found = {index for end in ends if (index := self.backend.token_to_id(end)) in self.controls}
        return frozenset(found if self.eos_id is None else found | {self.eos_id})

    def _encode_trusted(self, texts: Sequence[str]) -> list[list[int]]:
        with encoding(texts):
            return [encoded.ids for encoded in self.backend.encode_batch_fast(list(texts), add_special_tokens=False)]

    @cached_property
    def _frame(self) -> tuple[list[int], list[int]]:
        """What the post-processor puts before and after a text."""
        if not self.backend.num_special_tokens_to_add(False):
            return [], []
        bare = self.backend.encode("a", add_special_tokens=False)
        full = self.backend.post_process(bare)
        before = full.special_tokens_mask.index(0)
        return full.ids[:before], full.ids[before + len(bare.ids) :]

    def _framed(self, ids: list[int]) -> list[int]:
        before, after = self._frame
        if before and ids[: len(before)] == before:
            before = []
        if after and ids[-len(after) :] == after:
            after = []
        return [*before, *ids, *after]
