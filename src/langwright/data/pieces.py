"""Cutting a long document so that its pieces give the same tokens as the whole.

Pieces encode in parallel, bound the memory, and mark how many bytes stand before a token. A letter before a space, a
line end or plain punctuation ends a pre-token in GPT-2's, Llama 3's, Qwen's and SmolLM2's pre-tokenizers, in
whitespace-and-punctuation ones (BERT) and in character tokenizers, so there it is safe to cut. Tokenizers that join
text across such places, or put something before it (SentencePiece's "dummy prefix"), are found out by trial.
"""

import re
from collections.abc import Callable

PIECE = 4 << 10
"""Characters after which a piece ends at the next safe place."""

_SAFE_CUT = re.compile(r"(?<=[^\W\d_])(?=[ \n,.;:!?，。、；：！？])")


def cut(text: str, size: int = PIECE) -> list[str]:
    """``text`` in pieces of ``size`` characters or a little more; joined they are ``text`` again."""
    pieces, start = [], 0
    while len(text) - start > size:
        place = _SAFE_CUT.search(text, start + size)
        if place is None:
            break
        pieces.append(text[start : place.start()])
        start = place.start()
    pieces.append(text[start:])
    return pieces


def cuts_cleanly(encode: Callable[[str], list[int]], sample: str) -> bool:
    """Whether the pieces of ``sample`` encode to the tokens of the whole; small pieces, to try many places."""
    whole = encode(sample)
    return whole == [token for piece in cut(sample, 256) for token in encode(piece)]
