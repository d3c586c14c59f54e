"""Texts as ids for a model to continue."""

from langwright.core.errors import UserError
from langwright.tokenizer.sentinels import SENTINELS
from langwright.tokenizer.tokenizer import Tokenizer


def frame(tokenizer: Tokenizer, text: str, *, allow_special: bool = False) -> tuple[list[int], list[int], list[int]]:
    """What the tokenizer's post-processing puts before the ids of ``text``, these ids, and what it puts after them."""
    ids = tokenizer.encode(text, allow_special=allow_special)
    framed = tokenizer.encode(text, add_special_tokens=True, allow_special=allow_special)
    start = next(place for place in range(len(framed) + 1) if framed[place : place + len(ids)] == ids)
    return framed[:start], ids, framed[start + len(ids) :]


def encode_prompt(tokenizer: Tokenizer, text: str, *, allow_special: bool = False) -> list[int]:
    """A text to be continued: with the beginning token where the tokenizer adds one, and never with an end token."""
    before, ids, _ = frame(tokenizer, text, allow_special=allow_special)
    return before + ids


def encode_gap(tokenizer: Tokenizer, prefix: str, suffix: str) -> list[int]:
    """What a model reads to write what fits between two texts, in the order prefix, suffix, middle (Bavarian et al.
    2022, arXiv:2207.14255); raises `UserError` for a vocabulary without the sentinels."""
    sentinels = [tokenizer.id(name) for name in SENTINELS]
    if any(index not in tokenizer.controls for index in sentinels):
        raise UserError(
            f"this model's vocabulary has no {', '.join(SENTINELS)}, so it cannot fill in a middle; use one that was "
            "trained with train.fim_rate"
        )
    before, ids, _ = frame(tokenizer, prefix)
    parts = (ids, tokenizer.encode(suffix), [])
    return before + [index for name, part in zip(sentinels, parts, strict=True) for index in (int(name or 0), *part)]


def encode_pair(tokenizer: Tokenizer, context: str, continuation: str) -> tuple[list[int], list[int]]:
    """A context and its continuation as ids, neither empty; raises `UserError` where one must be.

    The text is encoded whole, and parted after as many tokens as the context has by itself without the white space at
    its end, which goes to the continuation. An empty context is the beginning token, else an end token.
    """
    kept = context.rstrip()
    if kept:
        before = encode_prompt(tokenizer, kept)
        after = encode_prompt(tokenizer, context + continuation)[len(before) :]
    else:
        before = [token for token in (tokenizer.bos_id, *sorted(tokenizer.eos_ids)) if token is not None][:1]
        after = tokenizer.encode(context + continuation)
    if not before:
        raise UserError(
            "an empty context needs a beginning or end token; this tokenizer has neither, so give a context"
        )
    after = after or tokenizer.encode(continuation)  # the border may have merged into one token
    if not continuation or not after:
        raise UserError(f"the continuation of {context!r:.60} is empty; give at least one token")
    return before, after
