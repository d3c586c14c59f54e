"""How far a tuned model's own answers have moved from those of the model it began as."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from langwright.infer.generate import generate
from langwright.infer.sampling import SamplingConfig
from langwright.model.model import Model

PROMPTS, ANSWER = 32, 64
"""How many held-out prompts are answered, and with how many tokens at most, to see how far a model has moved."""


@dataclass(frozen=True)
class Divergence:
    """Kullback-Leibler divergence KL(model || reference), in nats: a mean over the tokens, and over the ``answers``."""

    a_token: float
    an_answer: float
    answers: int

    @property
    def figures(self) -> dict[str, float]:
        """By the names that programs read."""
        return {"nats_a_token": self.a_token, "nats_an_answer": self.an_answer, "answers": self.answers}

    def __str__(self) -> str:
        return (
            f"KL divergence from the model it began as: {self.a_token:.4f} nats a token, {self.an_answer:.2f} an answer"
            f" ({self.answers} answers)"
        )


@torch.no_grad()
def mean_divergence(
    model: Model, reference: Model, prompts: Sequence[Sequence[int]], *, tokens: int, seed: int
) -> Divergence:
    """Estimated on answers that ``model`` draws, at most ``tokens`` long, to ``prompts``.

    At every token of an answer the sum over the whole vocabulary is exact, which varies less than the ratio of the
    drawn tokens' probabilities would; only the answers are a sample. NaN where every answer is empty.
    """
    model.eval()
    reference = reference.to(model.device).eval()
    sampling = SamplingConfig(temperature=1.0, max_new_tokens=tokens, seed=seed)
    room = model.config.max_positions - tokens
    fitting = [list(prompt) for prompt in prompts if len(prompt) <= room]
    answers = generate(model, fitting, sampling)
    total, count = 0.0, 0
    for prompt, answer in zip(fitting, answers, strict=True):
        if not answer.token_ids:
            continue
        ids = torch.tensor([[*prompt, *answer.token_ids[:-1]]], device=model.device)
        start = len(prompt) - 1
        ours, theirs = (torch.log_softmax(each(ids)[0, start:].double(), -1) for each in (model, reference))  # (n, V)
        total += (ours.exp() * (ours - theirs)).sum().item()
        count += len(answer.token_ids)
    return Divergence(total / count if count else math.nan, total / len(fitting) if count else math.nan, len(fitting))
