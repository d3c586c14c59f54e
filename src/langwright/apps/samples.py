"""Text out of a model that is still being made."""

from collections.abc import Callable
from functools import cache
from pathlib import Path

from langwright.infer.lm import LM
from langwright.model.model import Model
from langwright.tokenizer.load import load_tokenizer

SAMPLE_TOKENS = 120


def text_sampler(data: Path) -> Callable[[Model, str], str]:
    """A function ``(model, prompt) -> text that follows``, with the tokenizer of the prepared folder ``data``.

    The draw is the same every time, so samples differ by the model alone. An empty prompt is a line break.
    """
    tokenizer = cache(lambda: load_tokenizer(data))

    def sample(model: Model, prompt: str) -> str:
        budget = min(SAMPLE_TOKENS, model.config.max_positions // 2)
        lm = LM(model, tokenizer())
        return lm.generate(prompt or "\n", max_new_tokens=budget, temperature=0.8, top_k=200, seed=0).text

    return sample
