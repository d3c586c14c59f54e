"""Control tokens, and an encoder from which none comes out unless the caller puts it there.

Two facts make a naive encoder unsafe: ``<|im_end|>`` typed by a user is found by the vocabulary search like the one
that a template wrote, and added tokens that are not flagged special (Qwen3's ``<tool_call>``, DeepSeek's
``<｜User｜>``) are found even when a library is told to ignore special ones.
"""

import re
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise

import tokenizers

from langwright.core.errors import FormatError, UserError
from langwright.tokenizer.provenance import CONTENT, Marked

_PIPED = re.compile(r"<[|｜].*[|｜]>", re.DOTALL)


def find_controls(backend: tokenizers.Tokenizer, chat_template: str | None) -> frozenset[int]:
    """Ids that ordinary text must never become.

    These are the added tokens flagged special, those spelled ``<|...|>``, and those that the chat template writes as
    marks. What remains are added tokens that merely shorten text, such as GPT-NeoX's runs of spaces.
    """
    return frozenset(
        index
        for index, token in backend.get_added_tokens_decoder().items()
        if token.special
        or _PIPED.fullmatch(token.content)
        or (token.content in (chat_template or "") and not token.content[0].isalnum() and token.content.strip())
    )


class PlainEncoder:
    """Encodes text with every control token's spelling taken out of the vocabulary search.

    It shares the model of ``backend`` and has added tokens of its own, in which a control token is spelled as a
    placeholder that holds a secret; only `encode_marked` writes placeholders. Merges, normalisation and the white space
    that some tokens swallow are thereby the library's own, over the whole text.
    """

    def __init__(self, backend: tokenizers.Tokenizer, controls: frozenset[int]):
        self._backend = tokenizers.Tokenizer(backend.model)
        for part in ("normalizer", "pre_tokenizer", "post_processor", "decoder"):
            if (value := getattr(backend, part)) is not None:
                setattr(self._backend, part, value)
        secret = secrets.token_hex(8)
        self._placeholders: dict[str, str] = {}
        spellings: dict[int, tokenizers.AddedToken] = {}
        for index, token in sorted(backend.get_added_tokens_decoder().items()):
            spelling = token.content
            if index in controls:
                spelling = self._placeholders[token.content] = f"\ufdd0{secret}:{index}\ufdd1"
            spellings[index] = tokenizers.AddedToken(
                spelling,
                single_word=token.single_word,
                lstrip=token.lstrip,
                rstrip=token.rstrip,
                normalized=token.normalized and index not in controls,
                special=token.special,
            )
        self._backend.add_tokens(list(spellings.values()))
        self._ids: dict[int, int] = {}  # id here -> id in the vocabulary, where the two differ
        for index, token in spellings.items():
            here = self._backend.token_to_id(token.content)
            if here is None:  # an empty spelling, which the library passes over
                continue
            taken = backend.model.id_to_token(here)
            if taken not in (None, token.content):  # the library numbers a new token by the vocabulary's size
                raise FormatError(
                    f"the vocabulary leaves out ids below {here}, the id of {taken!r:.60}; it has to count up"
                )
            if here != index:
                self._ids[here] = index
        longest_first = sorted(self._placeholders, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")
        # A model may hold a control token's spelling as an ordinary word too (WordLevel, Unigram, ignore_merges). The
        # unknown token stays allowed: a model gives it to whatever it cannot spell.
        unknown = getattr(backend.model, "unk_token", None)
        self._leaks = {index for index in controls if backend.model.id_to_token(index) not in (None, unknown)}

    def encode(self, text: str) -> list[int]:
        """Ids of ``text``, none of them a control token."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` for many texts, on all cores."""
        with encoding(texts):
            encodings = self._backend.encode_batch_fast(list(texts), add_special_tokens=False)
        found = (encoded.ids for encoded in encodings)
        return [
            self._translated(ids) if self._leaks.isdisjoint(ids) else self._encode(text)[0]
            for text, ids in zip(texts, found, strict=True)
        ]

    def encode_marked(self, text: Marked) -> tuple[list[int], list[str]]:
        """Ids of a rendered template, and for each the authors of its characters.

        A control token appears where the template alone wrote its spelling.
        """
        texts, masks, written, cursor = [], [], 0, 0
        bare = text.bare()
        while match := self._pattern.search(bare, cursor):
            start, stop = match.span()
            if CONTENT in text.mask[start:stop].upper():
                cursor = start + 1
                continue
            placeholder = self._placeholders[match[0]]
            texts += [bare[written:start], placeholder]
            masks += [text.mask[written:start], text.mask[start] * len(placeholder)]
            written = cursor = stop
        mask = "".join([*masks, text.mask[written:]])
        ids, spans = self._encode("".join([*texts, bare[written:]]))
        return ids, [mask[start:stop] for start, stop in spans]

    def _encode(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        ids, spans = self._encode_once(text)
        if not self._leaks.isdisjoint(ids):
            ids, spans = [], []
            cuts = [match.start() + 1 for match in self._pattern.finditer(text)]
            for start, stop in pairwise([0, *cuts, len(text)]):
                some_ids, some_spans = self._encode_once(text[start:stop])
                ids += some_ids
                spans += [(start + first, start + last) for first, last in some_spans]
            if leaked := self._leaks.intersection(ids):
                token = self._backend.model.id_to_token(leaked.pop())
                raise UserError(f"this vocabulary spells its control token {token!r} in ordinary text too; use another")
        return self._translated(ids), spans

    def _encode_once(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        with encoding([text]):
            encoded = self._backend.encode(text, add_special_tokens=False)
        return encoded.ids, encoded.offsets

    def _translated(self, ids: list[int]) -> list[int]:
        return [self._ids.get(index, index) for index in ids] if self._ids else ids


@contextmanager
def encoding(texts: Sequence[str]) -> Iterator[None]:
    """Turn what the library raises while it encodes ``texts``, Rust panics too, into one line for the user."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        for text in texts:
            if not isinstance(text, str):
                raise UserError(f"only text can be encoded, not a {type(text).__name__}") from error
            if any("\ud800" <= character <= "\udfff" for character in text):
                raise UserError("text holds half of a surrogate pair; it is not valid Unicode: repair it") from error
        raise UserError(f"the tokenizer cannot encode this text: {str(error).splitlines()[0]:.200}") from error
