"""Keeps one answer within its grammar, and sees to it that it ends in time.

A guide always knows one way to finish from where the answer stands, no longer than the tokens that are left. A token
from which no such way is found is not taken; the next one of the known way is taken instead. So an answer that began
with a way that fits its budget ends within it, whatever the model wants.

Ways are looked for byte by byte, by a second matcher whose vocabulary is the 256 bytes: there its masks are small and
copies cost a microsecond.
"""

from collections.abc import Iterator
from functools import partial
from heapq import heappop, heappush
from weakref import WeakKeyDictionary

import numpy as np
import torch
from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper
from torch import Tensor

from langwright.infer.constraints import LIMITS, Constraint, ConstraintError
from langwright.tokenizer.tokenizer import Tokenizer

END = 256
"""The end token of the vocabulary of bytes."""
WIDE_SEARCH, SMALL_SEARCH = 6000, 300
"""Places looked at for a way from the beginning, and from within an answer."""
TWINS = 2
"""Places that look alike (see `search`) of which all but so many are left out."""
IN_TEXT = 64
"""Where so many bytes are allowed we are likely within a string, which only a quote ends."""
SAMPLES = tuple(b"0 a A aa /a a.b 0.0.0 a@a.aa http://a.aa 2000-01-01 2000-01-01T00:00:00Z".split())
"""Texts that patterns often ask for: tried where a string has only begun and may not end."""
FIRST_BYTES = bytes([*b'}]"0,:1ntf{[-'])
TYPICAL = frozenset(b'}]"{[:,.-+/\\@_0129aAeEnrstuTZzxk')
"""Tried where more than `FEW` are allowed."""
FEW = 24


class _Bytes:
    """The vocabulary of bytes, as llguidance asks for it."""

    eos_token_id, bos_token_id = END, None
    tokens = (*(bytes([byte]) for byte in range(256)), b"<end>")
    special_token_ids = (END,)

    def __call__(self, text: bytes | str) -> list[int]:
        return list(text if isinstance(text, bytes) else text.encode())


class Vocabulary:
    """A tokenizer in llguidance's form; raises `ConstraintError` for one whose tokens are not bytes of the text."""

    def __init__(self, tokenizer: Tokenizer):
        if not tokenizer.eos_ids:
            raise ConstraintError("constrained answers need a tokenizer with an end token; this one has none")
        try:
            self.wide = LLTokenizer(
                tokenizer.backend.to_str(), n_vocab=tokenizer.vocab_size, eos_token=sorted(tokenizer.eos_ids)
            )
        except (ValueError, RuntimeError) as error:
            raise ConstraintError(f"this tokenizer cannot be constrained: {error}") from None
        self.narrow = LLTokenizer(TokenizerWrapper(_Bytes()), slices=[])
        self.ends = tokenizer.eos_ids


_vocabularies: WeakKeyDictionary[Tokenizer, Vocabulary] = WeakKeyDictionary()


class Guide:
    """Of one answer of at most ``budget`` tokens."""

    def __init__(self, constraint: Constraint, tokenizer: Tokenizer, budget: int):
        """Raises `ConstraintError` for what cannot be compiled, and where the shortest answer found does not fit."""
        grammar, limits = constraint.grammar(), LLParserLimits(**LIMITS)
        self._vocabulary = _vocabularies.get(tokenizer) or _vocabularies.setdefault(tokenizer, Vocabulary(tokenizer))
        self._wide = LLMatcher(self._vocabulary.wide, grammar, limits=limits, log_level=0)
        self._narrow = LLMatcher(self._vocabulary.narrow, grammar, limits=limits, log_level=0)
        self._raise_errors(self._wide)
        self._raise_errors(self._narrow)
        self._left = budget
        self._way_ids: list[int] | None = None
        costs = []
        for look in (partial(close_greedily, most=1 << 14), partial(search, places=WIDE_SEARCH)):
            if (way := look(self._narrow)) is not None:
                self._way = way
                costs.append(self._cost(way))
                if costs[-1] <= budget:
                    return
        if not costs:
            raise ConstraintError("no answer that meets the constraint was found; make it simpler")
        raise ConstraintError(
            f"the shortest answer found that meets the constraint takes {min(costs)} tokens and max_new_tokens leaves "
            f"room for {budget}; raise it"
        )

    @property
    def accepting(self) -> bool:
        """Whether the answer as it stands meets the constraint."""
        return self._narrow.is_accepting()

    @property
    def complete(self) -> bool:
        """Whether it does, and nothing can follow."""
        return self._narrow.is_stopped()

    def allowed(self) -> Tensor:
        """Which ids the grammar allows next, (vocabulary of the tokenizer,) bool."""
        packed = np.frombuffer(self._wide.compute_bitmask(), dtype=np.uint8)
        self._raise_errors(self._wide)
        bits = np.unpackbits(packed, bitorder="little")[: self._vocabulary.wide.vocab_size]
        return torch.from_numpy(bits).bool()

    def settle(self, token: int) -> int:
        """Take an allowed token, or another one where it leads too far; returns the one that was taken."""
        if token in self._vocabulary.ends:
            assert self.accepting
            self._left -= 1
            return token
        text, after = self._spell(token), self._narrow.deep_copy()
        way = None
        if after.try_consume_tokens(list(text)) == len(text):
            way = self._go_on(after, text)
        if way is None and not self._way:
            self._left -= 1
            return min(self._vocabulary.ends)  # whole as it stands, and no room for what the token begins
        if way is None:
            if self._way_ids is None:
                self._way_ids = self._encode(self._way)
            token, *rest = self._way_ids
            text, after = self._spell(token), self._narrow
            after.consume_tokens(list(text))
            self._way, self._way_ids = self._way[len(text) :], rest
        else:
            self._way, self._way_ids = way, None
        self._narrow, self._left = after, self._left - 1
        self._wide.consume_token(token)
        self._raise_errors(self._wide)
        self._raise_errors(self._narrow)
        return token

    def _go_on(self, after: LLMatcher, text: bytes) -> bytes | None:
        """A way from ``after``, where ``text`` leads, that the tokens left after it allow."""
        if self._way.startswith(text):
            ways: Iterator[bytes] = iter([self._way[len(text) :]])
        else:
            ways = self._known_or_new(after)
        return next((way for way in ways if self._cost(way) < self._left), None)

    def _known_or_new(self, after: LLMatcher) -> Iterator[bytes]:
        for cut in range(4):  # within a string the old way still holds; behind a quote all but its first bytes
            way = self._way[cut:]
            if after.validate_tokens([*way, END]) == len(way) + 1:
                yield way
        way = close_greedily(after, 8 * self._left)
        way = search(after, SMALL_SEARCH) if way is None else way
        if way is not None:
            yield way

    def _cost(self, way: bytes) -> int:
        """Tokens of a way; where even its bytes fit it is not tokenized, and these are counted."""
        return len(way) if len(way) < self._left else len(self._encode(way))

    def _encode(self, way: bytes) -> list[int]:
        ids = self._vocabulary.wide.tokenize_bytes(way)
        return (
            ids
            if self._vocabulary.wide.decode_bytes(ids) == way
            else self._vocabulary.wide.greedy_tokenize(way.decode())
        )

    def _spell(self, token: int) -> bytes:
        return self._vocabulary.wide.decode_bytes([token])

    @staticmethod
    def _raise_errors(matcher: LLMatcher) -> None:
        if matcher.is_error():
            raise ConstraintError(f"the constraint cannot be followed: {' '.join(matcher.get_error().split())[:300]}")


def close_greedily(start: LLMatcher, most: int) -> bytes | None:
    """An ending by always taking what tends to end things; None where that leads beyond ``most`` bytes.

    Good for JSON, where a closing bracket or quote is nearly always right.
    """
    at, way = start.deep_copy(), bytearray()
    while not at.is_accepting():
        forced = at.compute_ff_bytes()
        if not forced:
            options = allowed_bytes(at)
            if not options:
                return None
            first = b'"' if len(options) > IN_TEXT else FIRST_BYTES
            forced = bytes([next((byte for byte in first if byte in options), min(options))])
            if len(options) > IN_TEXT and forced != b'"' and way.endswith(b'"'):
                ends = (text for text in SAMPLES if at.validate_tokens([*text, *b'"']) == len(text) + 1)
                forced = next(ends, forced)
        if len(way) + len(forced) > most or not at.consume_tokens(list(forced)):
            return None
        way += forced
    return bytes(way)


def search(start: LLMatcher, places: int) -> bytes | None:
    """The shortest ending in bytes, but for what `TYPICAL` and `TWINS` leave out; None beyond ``places``.

    Places look alike where their ways have the same length, the same bytes may follow, and have been so for as long.
    """
    queue: list[tuple[int, int, bytes, LLMatcher, bytes, int]] = [(0, 0, b"", start.deep_copy(), b"", 0)]
    seen: dict[tuple[int, bytes, int], int] = {}
    count = 0
    while queue and count < places:
        _, _, way, at, before, run = heappop(queue)
        if at.is_accepting():
            return way
        forced = at.compute_ff_bytes()
        options = allowed_bytes(at) if not forced else set()
        options = options - {ord(" ")} or options  # where it may be left out it only makes things longer
        if len(options) > FEW:
            options = {byte for byte in options if byte in TYPICAL} or set(sorted(options)[:FEW])
        for step in [forced] if forced else [bytes([byte]) for byte in sorted(options)]:
            after = at.deep_copy()
            if not after.consume_tokens(list(step)):
                continue
            longer, mask = way + step, after.compute_bitmask()
            key = len(longer), mask, run + 1 if mask == before else 1  # the last tells counted repeats apart
            seen[key] = seen.get(key, 0) + 1
            if seen[key] <= TWINS:
                count += 1
                heappush(queue, (len(longer), count, longer, after, mask, key[2]))
    return None


def allowed_bytes(at: LLMatcher) -> set[int]:
    """The bytes that may come next."""
    bits = np.unpackbits(np.frombuffer(at.compute_bitmask(), dtype=np.uint8), bitorder="little")[:END]
    return set(bits.nonzero()[0].tolist())
