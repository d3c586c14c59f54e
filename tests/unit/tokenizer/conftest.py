import pytest

from langwright.tokenizer.tokenizer import Tokenizer
from langwright.tokenizer.training import CHAT_AND_FIM, END, train_bpe

TEXTS = [
    "The quick brown fox jumps over the lazy dog. I'm sure that you'll see 123 dogs and 4567 foxes in 2024.\n" * 3,
    "你好，世界！今天天气很好，我们去公园吧。你好吗？我很好，谢谢。\n" * 3,
    "def add(a, b):\n    return a + b\n\nclass Dog:\n    pass\n" * 3,
    "emoji 😀👍🏽 and accents: naïve café über\n" * 3,
]
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@pytest.fixture(scope="session")
def plain() -> Tokenizer:
    """A byte-level vocabulary of 500 without a chat template."""
    return train_bpe(TEXTS, 500, special_tokens=(END, *CHAT_AND_FIM))


@pytest.fixture(scope="session")
def chatty(plain: Tokenizer) -> Tokenizer:
    """The same vocabulary with a ChatML template."""
    return Tokenizer(plain.backend, roles=plain.roles, chat_template=CHATML)
