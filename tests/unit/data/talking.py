"""A small tokenizer that can talk, and conversations for it."""

from functools import cache

from langwright.tokenizer.chat import ChatTemplate
from langwright.tokenizer.template_choice import read_template, with_template
from langwright.tokenizer.tokenizer import Tokenizer
from langwright.tokenizer.training import CHAT_AND_FIM, END, train_bpe

TEXTS = ["The quick brown fox, aged 12, jumps over the lazy dog.\n\nHello\n" * 3, "你好，世界！我们去公园吧。\n\n" * 3]
IM_START, IM_END = "<|im_start|>", "<|im_end|>"


@cache
def plain() -> Tokenizer:
    """A byte-level vocabulary with ChatML's tokens and no template."""
    return train_bpe(TEXTS, 330, special_tokens=(END, *CHAT_AND_FIM))


@cache
def chatty(template: str = "chatml") -> Tokenizer:
    """The same with a template; as in many instruction-tuned models, padding is the end token."""
    tokenizer = with_template(plain(), read_template(template))
    roles = {"bos": IM_START, "eos": IM_END, "pad": IM_END, "unk": END}
    return Tokenizer(tokenizer.backend, roles=roles, chat_template=tokenizer.chat_template)


def template_of(tokenizer: Tokenizer) -> ChatTemplate:
    """The tokenizer's own."""
    return ChatTemplate(tokenizer.chat_template, tokenizer)


def talk(*contents: str) -> tuple[dict[str, str], ...]:
    """User and assistant in turn."""
    return tuple(
        {"role": ("user", "assistant")[place % 2], "content": content} for place, content in enumerate(contents)
    )
