"""Chat templates in Ollama's language, where they can be said in it."""

import pytest

from langwright.apps.modelfile import find_turns, write_modelfile
from langwright.tokenizer.chat import ChatTemplate
from langwright.tokenizer.tokenizer import Tokenizer
from tests.unit.apps.exported import tokenizer
from tests.unit.tokenizer.conftest import CHATML

SMOLLM2 = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\n"
    "You are helpful<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + "
    "'<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
HEADED = (
    "<|endoftext|>{% for m in messages %}{{ {'system': 'S:', 'user': 'U:', 'assistant': 'A:'}[m.role] }}{{ m.content }}"
    "{% if m.role == 'assistant' %}<|im_end|>{% else %}{{ '\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}A:{% endif %}"
)


def having(template: str | None) -> Tokenizer:
    return Tokenizer(tokenizer().backend, roles=tokenizer().roles, chat_template=template)


def test_chatml():
    text, reason = write_modelfile(having(CHATML), "m.gguf", ["<|im_end|>"])
    turn = "<|im_start|>{role}\n{{{{ .Content }}}}<|im_end|>\n"
    cases = "".join(
        f'{{{{ {"else " * bool(at)}if eq .Role "{role}" }}}}{turn.format(role=role)}'
        for at, role in enumerate(("system", "user", "assistant"))
    )
    assert reason is None
    assert text == (
        f'FROM ./m.gguf\nTEMPLATE """{{{{ range .Messages }}}}{cases}{{{{ end }}}}{{{{ end }}}}'
        '<|im_start|>assistant\n"""\nPARAMETER stop "<|im_end|>"\n'
    )


def test_a_system_message_by_default_becomes_system():
    text, _ = write_modelfile(having(SMOLLM2), "m.gguf", [])
    assert 'SYSTEM """You are helpful"""' in text
    assert text.count("You are helpful") == 1


def test_what_stands_before_all_turns():
    found = find_turns(ChatTemplate(HEADED, having(HEADED)))
    assert found is not None
    assert found.head == "<|endoftext|>"
    assert found.around == {"system": ("S:", "\n"), "user": ("U:", "\n"), "assistant": ("A:", "<|im_end|>")}
    assert found.to_go().startswith("<|endoftext|>{{ range")
    assert found.to_go(without="<|endoftext|>").startswith("{{ range")


@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages %}{{ m.content | upper }}{% endfor %}",
        "{% for m in messages %}<|im_start|>{{ m.role }} {{ loop.index }}\n{{ m.content }}<|im_end|>{% endfor %}",
        "{% for m in messages %}{{ m.role }}: {{ m.content }}{{ '</s>' if loop.last else '\n' }}{% endfor %}",
        "{{ messages[0].content }}",
        "{% for m in messages %}{{ '{{' }} {{ m.role }} {{ m.content }}|{% endfor %}",
        "{{ raise_exception('no') }}",
        None,
    ],
)
def test_what_cannot_be_said_is_stated(template: str | None):
    text, reason = write_modelfile(having(template), "m.gguf", ["<|im_end|>"])
    assert reason
    assert "\nTEMPLATE" not in text
    assert f"# No TEMPLATE: {reason}." in text
