"""Ollama's Modelfile, with the chat template in the language that Ollama has for them (Go's text/template).

A Jinja template cannot be translated in general. What can be is a conversation that is a row of turns, each the content
between two fixed texts that depend on the role alone. Those texts are found by rendering conversations of marks; that
the template is no more than that is then tried on other conversations.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from langwright.core.errors import UserError
from langwright.tokenizer.chat import ChatTemplate
from langwright.tokenizer.tokenizer import Tokenizer

MARKS = {"system": "Sq7x", "user": "Uq7x", "assistant": "Aq7x"}
TRIALS: tuple[tuple[tuple[str, str], ...], ...] = (
    (("user", "Hello"),),
    (("system", "Be brief."), ("user", "Hello")),
    (("user", "Hello"), ("assistant", "Hi!"), ("user", "And\nnow?")),
    (("system", "Be brief."), ("user", "1"), ("assistant", "2"), ("user", "3"), ("assistant", "4"), ("user", "5")),
)

Messages = Sequence[Mapping[str, str]]


@dataclass(frozen=True)
class Turns:
    """A template as data: what stands before all, around the content of each role, and before an answer."""

    head: str
    around: Mapping[str, tuple[str, str]]
    prompt: str
    system: str | None
    """What the system says where a conversation does not begin with a system message."""

    def render(self, messages: Messages) -> str:
        """As Ollama would."""
        if self.system is not None and messages[0]["role"] != "system":
            messages = [{"role": "system", "content": self.system}, *messages]
        turns = (message["content"].join(self.around[message["role"]]) for message in messages)
        return self.head + "".join(turns) + self.prompt

    def to_go(self, *, without: str = "") -> str:
        """Ollama's TEMPLATE; ``without`` is a beginning that llama.cpp puts there by itself."""
        head = self.head.removeprefix(without)
        inside = without if not self.head and self.system is not None else ""
        cases = [
            f'{{{{ {"else " * bool(at)}if eq .Role "{role}" }}}}{before.removeprefix(inside)}{{{{ .Content }}}}{after}'
            for at, (role, (before, after)) in enumerate(self.around.items())
        ]
        return f"{head}{{{{ range .Messages }}}}{''.join(cases)}{{{{ end }}}}{{{{ end }}}}{self.prompt}"


def find_turns(template: ChatTemplate) -> Turns | None:
    """The template of a tokenizer as `Turns`; None where it is more than that."""

    def render(roles: str, prompt: bool = False) -> str:
        names = {name[0]: name for name in MARKS}
        chat = [{"role": names[role], "content": MARKS[names[role]]} for role in roles]
        return template.render(chat, add_generation_prompt=prompt).text

    try:
        _, after_system = _parts(render("s"), "s")
        before_all, between, after_user = _parts(render("su"), "su")
        _, _, to_answer, after_answer = _parts(render("sua"), "sua")
        before_user = _tail(between, after_system)
        before_answer = _tail(to_answer, after_user)
        answered = render("suau")
        prompt = _tail(render("suau", prompt=True), answered)
        bare = _parts(render("u"), "u")[0]
    except (UserError, ValueError):
        return None
    # What stands before the first user without a system message: nothing but the head, or a system message by default.
    head, system, before_system = bare.removesuffix(before_user), None, before_all
    if before_all.startswith(head):
        before_system = before_all[len(head) :]
    elif head.startswith(before_all) and head.endswith(after_system):
        head, system = "", head[len(before_all) : len(head) - len(after_system)]
    else:
        return None
    around = {
        "system": (before_system, after_system),
        "user": (before_user, after_user),
        "assistant": (before_answer, after_answer),
    }
    found = Turns(head, around, prompt, system)
    for trial in TRIALS:
        chat = [{"role": role, "content": content} for role, content in trial]
        try:
            if template.render(chat, add_generation_prompt=True).text != found.render(chat):
                return None
        except UserError:
            return None
    return found


def write_modelfile(tokenizer: Tokenizer, gguf: str, ends: Sequence[str]) -> tuple[str, str | None]:
    """The text of a Modelfile for the file ``gguf`` beside it, and why it has no TEMPLATE; ``ends`` stop an answer."""
    lines, reason, turns = [f"FROM ./{gguf}"], None, None
    if tokenizer.chat_template is None:
        reason = "the model has no chat template"
    else:
        turns = find_turns(ChatTemplate(tokenizer.chat_template, tokenizer))
        bos = tokenizer.roles.get("bos", "")
        framed = tokenizer.encode("a", add_special_tokens=True)
        text = turns.to_go(without=bos if framed[:1] == [tokenizer.bos_id] else "") if turns else ""
        literal = "" if turns is None else turns.render([{"role": role, "content": ""} for role in MARKS])
        if turns is None or "{{" in literal or '"""' in text:
            turns, reason = None, "its chat template says more than Ollama's TEMPLATE can; Ollama takes the GGUF file's"
        else:
            lines.append(f'TEMPLATE """{text}"""')
    if turns is not None and turns.system and '"""' not in turns.system:
        lines.append(f'SYSTEM """{turns.system}"""')
    lines += [f'PARAMETER stop "{end}"' for end in ends if '"' not in end and "\n" not in end]
    if reason:
        lines.insert(1, f"# No TEMPLATE: {reason}.")
    return "\n".join(lines) + "\n", reason


def _parts(text: str, roles: str) -> list[str]:
    """``text`` cut at the marks of ``roles``; raises ValueError where one does not stand there once, in this order."""
    found = []
    for role in roles:
        mark = next(mark for name, mark in MARKS.items() if name[0] == role)
        before, there, text = text.partition(mark)
        if not there or any(other in before for other in MARKS.values()):
            raise ValueError
        found.append(before)
    if any(mark in text for mark in MARKS.values()):
        raise ValueError
    return [*found, text]


def _tail(text: str, begin: str) -> str:
    if not text.startswith(begin):
        raise ValueError
    return text[len(begin) :]
