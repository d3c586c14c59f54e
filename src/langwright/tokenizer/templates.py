"""Chat templates for models that come without one."""

from pathlib import Path

from langwright.core.errors import UserError
from langwright.core.files import explained
from langwright.tokenizer.chat import ChatTemplate
from langwright.tokenizer.tokenizer import Tokenizer

CHATML = """\
{%- for message in messages -%}
{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{ '<|im_start|>assistant\\n' }}
{%- endif -%}
"""
TEMPLATES = {"chatml": (CHATML, ("<|im_start|>", "<|im_end|>"))}
"""By name: the source, and the control tokens that it needs."""
LARGEST = 1 << 20
"""Bytes of a template file."""


def with_template(tokenizer: Tokenizer, name_or_path: str | None) -> Tokenizer:
    """``tokenizer`` with the template of that name or in that file; as it is for None.

    Raises `UserError` when the template does not compile, or needs control tokens that the vocabulary lacks.
    """
    if name_or_path is None:
        return tokenizer
    if name_or_path in TEMPLATES:
        source, controls = TEMPLATES[name_or_path]
        if missing := [token for token in controls if tokenizer.id(token) is None]:
            raise UserError(
                f"the template {name_or_path} needs {' and '.join(missing)}, which the tokenizer lacks; give a file "
                "with a template of tokens that it has"
            )
    else:
        path = Path(name_or_path)
        if not path.is_file():
            raise UserError(f"{name_or_path}: no template of that name ({', '.join(TEMPLATES)}) and no such file")
        with explained(path, "read"):
            if path.stat().st_size > LARGEST:
                raise UserError(f"{path}: larger than a chat template can be")
            source = path.read_text(encoding="utf-8")
    found = Tokenizer(
        tokenizer.backend,
        roles=tokenizer.roles,
        eos_ids=tokenizer.eos_ids,
        chat_template=source,
        named_templates=tokenizer.named_templates,
        max_length=tokenizer.max_length,
    )
    ChatTemplate(source, found)  # raises when it does not compile
    return found
