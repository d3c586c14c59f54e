"""Stop strings, found across token borders."""

from collections.abc import Sequence


class StopScanner:
    """Lets text through until a stop string is complete; holds back what may still become one.

    Of several stop strings the one that ends first counts, so the outcome does not depend on how the text is cut into
    pieces.
    """

    def __init__(self, stops: Sequence[str]):
        self.stops = stops
        self.held = ""
        self.found: str | None = None
        """The stop string that was found; nothing more comes out after it."""

    def push(self, text: str) -> str:
        """Take the next piece; returns what is now known to stand before any stop string."""
        if self.found is not None:
            return ""
        self.held += text
        ends = [(start + len(stop), start, stop) for stop in self.stops if (start := self.held.find(stop)) >= 0]
        if ends:
            _, start, self.found = min(ends)
            out, self.held = self.held[:start], ""
            return out
        cut = len(self.held) - self._overlap()
        out, self.held = self.held[:cut], self.held[cut:]
        return out

    def finish(self) -> str:
        """The text ended without a stop string: what was held back."""
        out, self.held = self.held, ""
        return out

    def _overlap(self) -> int:
        """Length of the longest end of ``held`` that begins a stop string."""
        longest = max((len(stop) - 1 for stop in self.stops), default=0)
        for size in range(min(longest, len(self.held)), 0, -1):
            if any(stop.startswith(self.held[-size:]) for stop in self.stops):
                return size
        return 0
