"""Text from token ids as they arrive, never half a character."""

import codecs
import json

from tokenizers import pre_tokenizers

from langwright.tokenizer.tokenizer import Tokenizer

CONTEXT = 4
"""Tokens kept before the new one, so that a decoder sees it in the middle of text."""


class IncrementalDecoder:
    """Feed ids one by one; what `push` and `finish` return is, put together, what ``decode`` says of them all.

    Text is held back while a character is incomplete. A token costs the same however long the text has grown.
    """

    def __init__(self, tokenizer: Tokenizer, *, skip_special_tokens: bool = False):
        self._tokenizer = tokenizer
        self._skipped = tokenizer.special_ids if skip_special_tokens else frozenset()
        kinds = _decoder_kinds(tokenizer)
        if kinds == ["ByteLevel"]:
            self._steps: _Bytes | _Window = _Bytes()
        else:
            self._steps = _Window(tokenizer, holds_bytes="ByteFallback" in kinds)

    def push(self, index: int) -> str:
        """The text that has become certain with this id, often empty; an id without a token has none."""
        token = self._tokenizer.spelling(index)
        return "" if token is None or index in self._skipped else self._steps.push(index, token)

    def finish(self) -> str:
        """The rest, with U+FFFD for bytes that never became a character. The decoder then stands at a new text."""
        return self._steps.finish()


def _decoder_kinds(tokenizer: Tokenizer) -> list[str]:
    decoder = tokenizer.backend.decoder
    if decoder is None:
        return []
    state = json.loads(decoder.__getstate__())
    return [step["type"] for step in state.get("decoders", [state])]


class _Bytes:
    """Byte-level vocabularies: each token is bytes, and UTF-8 has its own incremental decoder."""

    def __init__(self) -> None:
        self._bytes = _byte_of_character()
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, index: int, token: str) -> str:
        try:
            return self._utf8.decode(bytes(map(self._bytes.__getitem__, token)))
        except KeyError:  # an added token, spelled as it is
            return self._utf8.decode(token.encode())

    def finish(self) -> str:
        rest = self._utf8.decode(b"", final=True)
        self._utf8.reset()
        return rest


class _Window:
    """Any other decoder: the text of the last few tokens, with the new one less without it."""

    def __init__(self, tokenizer: Tokenizer, *, holds_bytes: bool):
        self._tokenizer = tokenizer
        self._holds_bytes = holds_bytes
        self._ids: list[int] = []
        self._shown = 0  # characters of the window's text that were returned already

    def push(self, index: int, token: str) -> str:
        self._ids.append(index)
        # A run of byte tokens (<0xE4>) is text only as a whole: one more byte can make all of it invalid.
        if self._holds_bytes and len(token) == 6 and token.startswith("<0x"):
            return ""
        return self._advance()

    def finish(self) -> str:
        rest = self._advance()
        self._ids, self._shown = [], 0
        return rest

    def _advance(self) -> str:
        text = self._tokenizer.decode(self._ids)
        new = text[self._shown :]
        self._shown = len(text)
        kept = self._tokenizer.decode(self._ids[-CONTEXT:])
        if kept and len(self._ids) > CONTEXT:
            self._ids, self._shown = self._ids[-CONTEXT:], len(kept)
        return new


def _byte_of_character() -> dict[str, int]:
    """GPT-2's alphabet: printable bytes stand for themselves, the others follow from U+0100 on."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in plain]
    table = {chr(byte): byte for byte in plain} | {chr(256 + place): byte for place, byte in enumerate(others)}
    assert set(table) == set(pre_tokenizers.ByteLevel.alphabet())
    return table
