"""One sequence being written: its tokens, its text, and when it ends. No tensors here."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from langwright.infer.sampling import SamplingConfig
from langwright.infer.stopping import StopScanner
from langwright.tokenizer.stream import IncrementalDecoder
from langwright.tokenizer.tokenizer import Tokenizer

FinishReason = Literal["stop", "length"]


class TokenLogprob(NamedTuple):
    """Natural log-probabilities at one step, of the model's own distribution before any sampling step."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...]
    """The most probable ids with theirs, best first."""


@dataclass(frozen=True)
class Generation:
    """A finished answer."""

    text: str
    """Without special tokens, cut before the stop string."""
    token_ids: list[int]
    """Every token the model chose, the end token and those of the stop string included."""
    finish_reason: FinishReason
    """``stop``: an end token or a stop string; ``length``: the token limit or the end of the context."""
    prompt_ids: list[int]
    stop: str | None = None
    """The stop string that ended it."""
    logprobs: list[TokenLogprob] | None = None
    """One for each of ``token_ids``, when asked for."""


class Row:
    """What is known of one sequence between steps.

    ``prompt`` are checked ids; ``budget`` is how many tokens may follow; ``ends`` are the ids that end the answer.
    Without a tokenizer there is no text.
    """

    def __init__(
        self,
        prompt: list[int],
        budget: int,
        ends: Collection[int],
        seed: int,
        stops: Sequence[str] = (),
        tokenizer: Tokenizer | None = None,
    ):
        self.prompt, self.budget, self.ends, self.seed = prompt, budget, ends, seed
        self.ids: list[int] = []
        self.pieces: list[str] = []
        self.logprobs: list[TokenLogprob] = []
        self.reason: FinishReason | None = None if budget else "length"
        self.scanner = StopScanner(stops)
        self.decoder = None if tokenizer is None else IncrementalDecoder(tokenizer, skip_special_tokens=True)

    @property
    def finished(self) -> bool:
        return self.reason is not None

    def push(self, token: int, logprob: TokenLogprob | None = None) -> str:
        """Add the next token; returns the text that is now certain, which may be empty."""
        assert not self.finished
        self.ids.append(token)
        if logprob is not None:
            self.logprobs.append(logprob)
        text = "" if self.decoder is None else self.scanner.push(self.decoder.push(token))
        if self.scanner.found is None and (token in self.ends or len(self.ids) >= self.budget):
            text += self._flush()
            self.reason = "stop" if token in self.ends else "length"
        if self.scanner.found is not None:
            self.reason = "stop"
        self.pieces.append(text)
        return text

    def complete(self) -> str:
        """The answer is whole as it stands; returns the text that was still held back."""
        text = "" if self.finished else self._flush()
        self.reason = "stop"
        self.pieces.append(text)
        return text

    def _flush(self) -> str:
        rest = "" if self.decoder is None else self.scanner.push(self.decoder.finish())
        return rest + self.scanner.finish()

    def result(self, config: SamplingConfig) -> Generation:
        """The finished answer."""
        assert self.reason is not None
        return Generation(
            text="".join(self.pieces),
            token_ids=list(self.ids),
            finish_reason=self.reason,
            prompt_ids=list(self.prompt),
            stop=self.scanner.found,
            logprobs=None if config.logprobs is None else list(self.logprobs),
        )
