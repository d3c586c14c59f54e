"""Chat templates for models that have none: a few by name, or a file; and a tokenizer that is saved with one."""

from importlib.resources import files
from pathlib import Path

from langwright.core.errors import UserError
from langwright.tokenizer.chat import ChatTemplate
from langwright.tokenizer.load import MAX_TEMPLATE_BYTES
from langwright.tokenizer.tokenizer import TURN_ENDS, Tokenizer
from langwright.tokenizer.vocabulary import read_text

FOLDER = files("langwright.tokenizer") / "chat_templates"


def list_templates() -> list[str]:
    """Names of the templates that come with the package."""
    return sorted(entry.name.removesuffix(".jinja") for entry in FOLDER.iterdir() if entry.name.endswith(".jinja"))


def read_template(choice: str) -> str:
    """The source of a chat template: a name of `list_templates`, or the path of a .jinja file."""
    if choice in list_templates():
        return (FOLDER / f"{choice}.jinja").read_text(encoding="utf-8")
    path = Path(choice)
    if not path.is_file():
        raise UserError(f"{choice}: no such chat template; give a .jinja file, or one of {', '.join(list_templates())}")
    return read_text(path, MAX_TEMPLATE_BYTES)


def with_template(tokenizer: Tokenizer, source: str) -> Tokenizer:
    """The same vocabulary with another chat template, whose ends of turns it then knows and with which it is saved.

    Raises `UserError` when the template does not compile, and when it ends turns with a token that the vocabulary
    lacks: the end would be learnt as a few words, and nothing would stop on them.
    """
    ends = [end for end in TURN_ENDS if end in source]
    if ends and not any(tokenizer.id(end) in tokenizer.controls for end in ends):
        raise UserError(
            f"the chat template ends turns with {ends[0]}, which is no token of this vocabulary; use a template that"
            " ends them with {{ eos_token }}, or a tokenizer that has it (langwright prepare --special-tokens fim)"
        )
    adopted = Tokenizer(
        tokenizer.backend,
        roles=tokenizer.roles,
        eos_ids=tokenizer.eos_ids,
        chat_template=source,
        named_templates=tokenizer.named_templates,
        max_length=tokenizer.max_length,
    )
    ChatTemplate(source, adopted)
    return adopted
