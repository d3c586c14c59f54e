"""Guesses at the next tokens from the text itself, to be checked several in one step.

Text repeats itself: what followed the last few tokens where they stood before often follows again (prompt lookup,
Saxena 2023). A guess is kept where it is the very token that the sampler chooses, so answers are what they would be
without: greedy ones, and drawn ones too, as each token is drawn by the same number of the same generator.
"""

from collections.abc import Sequence

GRAMS = (4, 3, 2)
"""Lengths of the runs that are looked up, the longest first."""
MOST = 8
"""Tokens guessed at a time at most."""


class PromptLookup:
    """Of one request: guesses more while its guesses are right, and begins again with two after a wrong one."""

    def __init__(self) -> None:
        self.depth = 2
        self._after: dict[tuple[int, ...], int] = {}
        """Where the token after a run stands, last."""
        self._known = 0

    def guess(self, ids: Sequence[int], room: int) -> list[int]:
        """At most ``room`` tokens that may follow ``ids``, which has only grown since the last call."""
        for end in range(max(self._known, min(GRAMS)), len(ids)):
            for size in GRAMS:
                if size <= end:
                    self._after[tuple(ids[end - size : end])] = end
        self._known = len(ids)
        for size in GRAMS:
            if (at := self._after.get(tuple(ids[-size:]))) is not None:
                return list(ids[at : at + min(self.depth, room)]) if room > 0 else []
        return []

    def learn(self, guessed: int, right: int) -> None:
        """Of ``guessed`` tokens the first ``right`` were so."""
        if guessed:
            self.depth = min(2 * self.depth, MOST) if right == guessed else 2
