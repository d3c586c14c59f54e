"""A conversation: its turns, and what happens when they outgrow the model's context."""

from collections.abc import Generator
from typing import Any

from langwright.core.errors import UserError
from langwright.infer.lm import LM
from langwright.infer.row import Generation


class ChatSession:
    """Turns with one model. ``sampling`` are fields of `langwright.infer.sampling.SamplingConfig`.

    Raises `UserError` when the model has no chat template.
    """

    def __init__(self, model: LM, *, system: str | None = None, **sampling: Any):
        self.model, self.sampling = model, sampling
        self.system = system
        self.turns: list[dict[str, str]] = []
        self.forgotten = 0
        """Turns that were dropped, oldest first, because the context was full."""
        self.last: Generation | None = None
        """The newest answer in full."""
        _ = model.chat_template

    @property
    def messages(self) -> list[dict[str, str]]:
        """What the model is shown."""
        head = [{"role": "system", "content": self.system}] if self.system else []
        return head + self.turns

    def reset(self) -> None:
        """Forget all turns, keep the system prompt."""
        self.turns, self.forgotten, self.last = [], 0, None

    def say(self, text: str) -> Generator[str, None, None]:
        """Add the user's turn and stream the answer, which becomes a turn too, whole or as far as it was read.

        When the conversation leaves less than a quarter of the context for the answer, the oldest exchanges are dropped
        and counted in ``forgotten``. Raises `UserError` when this one message alone is too long; then nothing is added.
        """
        self.turns.append({"role": "user", "content": text})
        try:
            prompt = self._fitting()
        except UserError:
            self.turns.pop()
            raise
        pieces: list[str] = []
        stream = self.model.stream(prompt, **self.sampling)
        try:
            for piece in stream:
                pieces.append(piece)
                yield piece
        finally:
            stream.close()
            self.last = stream.result
            self.turns.append({"role": "assistant", "content": "".join(pieces)})

    def _fitting(self) -> list[int]:
        context = self.model.config.max_positions
        while True:
            prompt = self.model.encode_prompt(self.messages)
            if len(prompt) <= context * 3 // 4:
                return prompt
            if len(self.turns) == 1:
                if len(prompt) < context:
                    return prompt
                raise UserError(
                    f"this message makes a prompt of {len(prompt):,} tokens and the model's context is {context:,}; "
                    "shorten it"
                )
            del self.turns[:2]
            self.forgotten += 2
