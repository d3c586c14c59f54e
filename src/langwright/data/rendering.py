"""Examples as token ids, with a flag for each that says whether it is learnt."""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, overload

from langwright.core.errors import UserError
from langwright.data.conversations import Message
from langwright.data.examples import Chat, Completion, Feedback, Preference, Text, Tools
from langwright.data.prepare import end_of_text
from langwright.tokenizer.chat import ChatTemplate
from langwright.tokenizer.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Rendered:
    """One example for a language model.

    ``trained`` has one flag for each id, true where the model learns to write it. ``text`` is what the ids say, control
    tokens spelled out, and ``spelled`` the number of such spellings that the content holds as plain words.
    """

    ids: list[int]
    trained: list[bool]
    where: str
    text: str
    spelled: int = 0


class Renderer:
    """Turns examples into ids as they will be when the model is used.

    A prompt is encoded by itself, as it is before a model answers, so that no token holds its end and the beginning of
    the answer. No content becomes a control token. ``turns`` says which of an assistant's turns in a `Chat` are learnt;
    of `Preference` and `Feedback` it is what follows the prompt. ``variables`` are given to the chat template.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        template: ChatTemplate | None,
        *,
        turns: Literal["all", "last"] = "all",
        variables: Mapping[str, Any] | None = None,
    ):
        """Raises `UserError` when ``template`` is not the one that ``tokenizer`` is saved with: the model would be
        served in another form than it was trained in."""
        if template is not None and template.source != tokenizer.chat_template:
            raise UserError(
                "the chat template of training is not the one that the model is saved with and served by; give the"
                " tokenizer this template (langwright.tokenizer.template_choice.with_template), or train with its own"
            )
        self.tokenizer, self.template = tokenizer, template
        self.turns: Literal["all", "last"] = turns
        self._variables = dict(variables or {})
        bare, framed = tokenizer.encode("a"), tokenizer.encode("a", add_special_tokens=True)
        self._before = framed[: next(at for at in range(len(framed)) if framed[at : at + len(bare)] == bare)]
        self._text_end = end_of_text(tokenizer)
        self._end = self._text_end if tokenizer.eos_id is None else tokenizer.eos_id
        self._spellings = Spellings(tokenizer)

    @overload
    def render(self, example: Chat | Completion | Text | Feedback) -> Rendered: ...

    @overload
    def render(self, example: Preference) -> tuple[Rendered, Rendered]: ...

    def render(self, example: Chat | Completion | Text | Feedback | Preference) -> Rendered | tuple[Rendered, Rendered]:
        """The ids of an example; of a `Preference` two, chosen and rejected, that begin with the same prompt.

        Raises `UserError` naming the row when there is no chat template and one is needed, when the template has no
        place for tools, when it fails, and when it writes the prompt otherwise than it does before an answer.
        """
        with _blaming(example.where):
            match example:
                case Text(text=text):
                    return self._plain("", text, self._text_end, example.where)
                case Completion(prompt=prompt, completion=completion):
                    return self._plain(prompt, completion, self._end, example.where)
                case Chat(messages=messages, tools=tools):
                    return self._chat(messages[:-1], messages[-1:], tools, example.where, turns=self.turns)
                case Feedback(prompt=prompt, completion=completion, tools=tools):
                    return self._chat(prompt, completion, tools, example.where, turns="last")
                case Preference(prompt=prompt, tools=tools):
                    chosen, rejected = (
                        self._chat(prompt, side, tools, example.where, turns="last")
                        for side in (example.chosen, example.rejected)
                    )
                    _check_shared(chosen, rejected)
                    return chosen, rejected
        raise ValueError(f"a {type(example).__name__} has no text to write; give it to a classifier")

    def _plain(self, prompt: str, completion: str, end: int | None, where: str) -> Rendered:
        if end is None:
            raise UserError("the tokenizer has no end token, so no end can be learnt; use one that has")
        asked = self.tokenizer.encode(prompt) if prompt else []
        said = _follow(self.tokenizer, prompt, completion, asked)
        ids = [*self._before, *asked, *said, end]
        start = len(self._before) + len(asked)
        begin = "".join(map(self.tokenizer.token, self._before))
        text = f"{begin}{prompt}{completion}{self.tokenizer.token(end)}"
        trained = [place >= start for place in range(len(ids))]
        return Rendered(ids, trained, where, text, self._spellings.count(prompt + completion))

    def _chat(
        self,
        prompt: Sequence[Message],
        answer: Sequence[Message],
        tools: Tools,
        where: str,
        *,
        turns: Literal["all", "last"],
    ) -> Rendered:
        template = self._template_for((*prompt, *answer), tools)
        given = {"tools": list(tools) or None, **self._variables}
        # Of several messages that answer, such as a call, its result and an answer, all that the assistant says counts.
        last_turn = turns == "last" and len(answer) == 1
        found = template.render(
            (*prompt, *answer), add_generation_prompt=False, assistant_mask=True, last_turn=last_turn, **given
        )
        served = template.render(prompt, add_generation_prompt=True, **given).ids
        if found.ids[: len(served)] != served:
            raise UserError(
                "the chat template writes the prompt of the last answer otherwise when the model is to answer it; use a"
                " template whose add_generation_prompt writes the beginning of an assistant's turn"
            )
        start = len(served) if turns == "last" else 0
        trained = [flag and place >= start for place, flag in enumerate(found.assistant_mask)]
        spelled = self._spellings.count_shown([*prompt, *answer, *tools, self._variables], found.text)
        return Rendered(found.ids, trained, where, found.text, spelled)

    def _template_for(self, messages: Sequence[Message], tools: Tools) -> ChatTemplate:
        if self.template is None:
            raise UserError(
                "a conversation needs a chat template and this model has none; give --chat-template chatml, or a file"
            )
        calls = any(message.get("tool_calls") for message in messages)
        for wanted, name in ((tools, "tools"), (calls, "tool_calls")):
            if wanted and name not in self.template.source:
                raise UserError(
                    f"the conversation has {name} and the chat template does not write them; give one that does, such"
                    " as --chat-template chatml-tools"
                )
        return self.template


class Spellings:
    """Counts control tokens, and where a text spells them.

    Left out is the token that a vocabulary without bytes gives to what it cannot spell: it may be anything.
    """

    def __init__(self, tokenizer: Tokenizer):
        unknown = getattr(tokenizer.backend.model, "unk_token", None)
        spelled = {index: tokenizer.spelling(index) for index in tokenizer.controls}
        self._ids = frozenset(index for index, token in spelled.items() if token and token != unknown)
        longest_first = sorted((spelled[index] or "" for index in self._ids), key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")

    def count_ids(self, ids: Sequence[int]) -> int:
        """How many of ``ids`` are control tokens."""
        return sum(index in self._ids for index in ids)

    def count(self, text: str) -> int:
        """How many control tokens ``text`` spells."""
        return len(self._pattern.findall(text))

    def count_shown(self, value: Any, text: str) -> int:
        """How many there are in the strings of a value, as JSON has it, that stand in ``text`` too, roles apart."""
        if isinstance(value, str):
            return self.count(value) if value.strip() in text else 0
        if isinstance(value, Mapping):
            parts = [item for key, item in value.items() if key != "role"] + list(value)
            return sum(self.count_shown(part, text) for part in parts)
        return sum(self.count_shown(part, text) for part in value) if isinstance(value, list | tuple) else 0


def _follow(tokenizer: Tokenizer, prompt: str, completion: str, asked: list[int]) -> list[int]:
    """The ids of ``completion`` after those of ``prompt``: those in the whole text if its tokens part there."""
    whole = tokenizer.encode(prompt + completion)
    if whole[: len(asked)] == asked:
        return whole[len(asked) :]
    said = tokenizer.encode(completion)
    if tokenizer.decode([*asked, *said]) != tokenizer.decode(whole):
        raise UserError(
            "the border between prompt and completion falls inside a token and cannot be moved; begin the completion"
            " with a space or a line break, or end the prompt with one"
        )
    return said


def _check_shared(chosen: Rendered, rejected: Rendered) -> None:
    start = chosen.trained.index(True) if True in chosen.trained else len(chosen.ids)
    other = rejected.trained.index(True) if True in rejected.trained else len(rejected.ids)
    if start != other or chosen.ids[:start] != rejected.ids[:start]:
        raise UserError("chosen and rejected do not begin with the same prompt; let the template end it alike for both")


@contextmanager
def _blaming(where: str) -> Iterator[None]:
    try:
        yield
    except UserError as error:
        if not where or str(error).startswith(where):
            raise
        raise UserError(f"{where}: {error}") from None
