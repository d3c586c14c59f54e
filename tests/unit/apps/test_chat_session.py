"""A conversation keeps its turns, forgets the oldest when it must, and loses nothing when stopped."""

import pytest

from langwright.apps.chat import ChatSession
from langwright.core.errors import UserError
from langwright.infer.lm import LM
from tests.unit.infer.small import END_OF_TURN, TEMPLATE, byte_tokenizer, scripted


def session(context: int = 64, **sampling: object) -> ChatSession:
    """A model that says ``aaa`` and ends its turn, wherever it stands in its context."""
    script = [ord("a")] * (context - 1) + [END_OF_TURN]
    model = LM(scripted(script, context=context), byte_tokenizer(chat_template=TEMPLATE))
    return ChatSession(model, **({"temperature": 0, "max_new_tokens": 3} | sampling))


def test_turns_are_kept_and_shown_to_the_model() -> None:
    chat = session(context=200, system="be kind")
    assert "".join(chat.say("hi")) == "aaa"
    assert "".join(chat.say("and?")) == "aaa"
    roles = [message["role"] for message in chat.messages]
    assert roles == ["system", "user", "assistant", "user", "assistant"]
    assert chat.last is not None
    assert chat.last.finish_reason == "length"
    chat.reset()
    assert chat.messages == [{"role": "system", "content": "be kind"}]


def test_the_oldest_turns_go_when_the_context_is_full() -> None:
    chat = session(context=120)
    for number in range(5):
        "".join(chat.say(f"message {number}"))
    assert chat.forgotten > 0
    assert chat.forgotten % 2 == 0
    assert chat.turns[0] == {"role": "user", "content": f"message {chat.forgotten // 2}"}


def test_one_message_too_long_is_refused_and_not_kept() -> None:
    chat = session()
    with pytest.raises(UserError, match="context is 64"):
        list(chat.say("x" * 100))
    assert chat.turns == []


def test_a_stopped_answer_is_kept_as_far_as_it_was_read() -> None:
    chat = session(context=200, max_new_tokens=50)
    answer = chat.say("hi")
    said = next(answer)
    answer.close()
    assert chat.turns[-1] == {"role": "assistant", "content": said}
    assert "".join(chat.say("go on")).startswith("a")


def test_a_model_without_a_template_cannot_chat() -> None:
    model = LM(scripted([ord("a")] * 64), byte_tokenizer())
    with pytest.raises(UserError, match="no chat template"):
        ChatSession(model)
