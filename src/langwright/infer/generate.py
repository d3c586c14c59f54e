"""Prompts in, answers out, on an engine of their own: its memory is what these prompts need, its life this call's."""

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from typing import NamedTuple, Self

from langwright.core.errors import UserError
from langwright.infer.admission import open_rows
from langwright.infer.engine import BLOCK_SIZE, Engine, serves
from langwright.infer.native.decoder import serves as takes_whole_steps
from langwright.infer.row import Generation, Row
from langwright.infer.sampling import SamplingConfig
from langwright.infer.static_batch import decode
from langwright.model.model import Model
from langwright.model.paged import PagePool
from langwright.tokenizer.tokenizer import Tokenizer


class Token(NamedTuple):
    """One token that was just chosen."""

    row: int
    """Index of its prompt."""
    token_id: int
    text: str
    """What has become certain of the text with it; may be empty or end an earlier character."""


OnToken = Callable[[Token], None]


def generate(
    model: Model,
    prompts: Sequence[Sequence[int]],
    sampling: SamplingConfig,
    *,
    tokenizer: Tokenizer | None = None,
    on_token: OnToken | None = None,
    batch_size: int = 16,
) -> list[Generation]:
    """Answers to ``prompts`` (token ids), in their order; at most ``batch_size`` run together.

    Without a tokenizer the answers have no text and stop strings are refused. Generation ends when the context is full.
    Raises `UserError` for a prompt that leaves no room in the context, ids outside the vocabulary, and an empty prompt
    where there is no beginning token.
    """
    if batch_size < 1:
        raise UserError(f"batch_size is {batch_size}; it must be at least 1")
    rows = open_rows(model, prompts, sampling, tokenizer)
    with closing(run(model, rows, sampling, tokenizer, batch_size)) as tokens:
        for token in tokens:
            if on_token is not None:
                on_token(token)
    return [row.result(sampling) for row in rows]


class Stream:
    """Text as it is written: iterate for non-empty increments; their concatenation is ``result.text``.

    Nothing is computed ahead of the reader. Leaving the ``with`` block, or `close`, ends the work and frees the cache.
    """

    def __init__(self, row: Row, tokens: Generator[Token, None, None], sampling: SamplingConfig):
        self._row, self._sampling, self._tokens = row, sampling, tokens
        self._pieces: Iterator[str] = (token.text for token in tokens if token.text)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> str:
        return next(self._pieces)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop; no further token is computed."""
        self._tokens.close()

    @property
    def token_ids(self) -> list[int]:
        """The tokens chosen so far."""
        return list(self._row.ids)

    @property
    def result(self) -> Generation | None:
        """The whole answer once the stream has ended by itself; None before, and after an early `close`."""
        return self._row.result(self._sampling) if self._row.finished else None


def stream(model: Model, prompt: Sequence[int], sampling: SamplingConfig, *, tokenizer: Tokenizer) -> Stream:
    """Like `generate` for one prompt, bit by bit; what is wrong with the prompt is raised here, before any work."""
    rows = open_rows(model, [prompt], sampling, tokenizer)
    return Stream(rows[0], run(model, rows, sampling, tokenizer, 1), sampling)


def run(
    model: Model, rows: list[Row], sampling: SamplingConfig, tokenizer: Tokenizer | None, batch_size: int
) -> Generator[Token, None, None]:
    """Run ``rows`` until each has finished, at most ``batch_size`` at a time; yields the tokens as they come."""
    numbers = {id(row): number for number, row in enumerate(rows)}
    waiting = [row for row in rows if not row.finished]
    if not waiting:
        return
    constrained = sampling.constraint is not None
    if not serves(model.config) or (takes_whole_steps(model) and not constrained):
        if constrained:
            raise UserError("this model's rotary positions depend on the length of the text; it cannot be constrained")
        order = sorted(waiting, key=lambda row: len(row.prompt))  # little padding in each batch
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            for tokens in decode(model, chosen, sampling, tokenizer):
                yield from (Token(numbers[id(chosen[place])], token, text) for place, token, text in tokens)
        return
    needs = sorted((-(-(len(row.prompt) + row.budget) // BLOCK_SIZE) for row in waiting), reverse=True)
    blocks = sum(needs[:batch_size]) + batch_size  # the last is for requests that wait for others to grow
    memory = blocks * PagePool.block_bytes(model.config, BLOCK_SIZE, model.dtype)
    engine = Engine(model, tokenizer, memory=memory, max_running=batch_size)
    requests = [engine.adopt(row, sampling) for row in waiting]
    for request in requests:
        engine.add(request)
    while not engine.idle:
        for request, token, text, _ in engine.step():
            yield Token(numbers[id(request.row)], token, text)
        if error := next((request.error for request in requests if request.error is not None), None):
            raise error
