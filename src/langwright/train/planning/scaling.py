"""How much data a model wants: the law of Hoffmann et al. and its repair, and what repeating data is worth.

The loss of N parameters after D tokens is modelled as L = E + A / N^alpha + B / D^beta, in nats a token of their text
and tokenizer, so only comparisons of such losses mean something for other data. The runs behind it had 44 M parameters
and more; below that it is an extrapolation.
"""

import math
from dataclasses import dataclass

SMALLEST_FITTED = 44e6
"""Parameters of the smallest model behind the law."""


@dataclass(frozen=True)
class Law:
    """Constants of the loss, and where they are from."""

    name: str
    irreducible: float
    a: float
    alpha: float
    b: float
    beta: float

    def loss(self, parameters: float, tokens: float) -> float:
        """Nats a token."""
        return self.irreducible + self.a / parameters**self.alpha + self.b / tokens**self.beta

    def tokens_for(self, parameters: float) -> float:
        """Tokens with which ``parameters`` is the best size for the arithmetic spent, 6 N D: where both errors weigh
        alike, alpha A / N^alpha = beta B / D^beta."""
        return (self.beta * self.b * parameters**self.alpha / (self.alpha * self.a)) ** (1 / self.beta)

    def parameters_for(self, flops: float) -> float:
        """The best size for ``flops`` = 6 N D."""
        ratio = (self.alpha * self.a / (self.beta * self.b)) ** (1 / (self.alpha + self.beta))
        return ratio * (flops / 6) ** (self.beta / (self.alpha + self.beta))

    def same_loss(self, parameters: float, tokens: float, smaller: float) -> float:
        """Tokens with which a model of ``smaller`` size gets as good; infinite when it never does."""
        left = self.loss(parameters, tokens) - self.irreducible - self.a / smaller**self.alpha
        return math.inf if left <= 0 else (self.b / left) ** (1 / self.beta)


HOFFMANN = Law("Hoffmann et al. 2022, arXiv:2203.15556, approach 3", 1.69, 406.4, 0.34, 410.7, 0.28)
"""As published; its own authors' other two approaches and the replication disagree with its optimum."""
BESIROGLU = Law("Besiroglu et al. 2024, arXiv:2404.10102", 1.8172, 482.01, 0.3478, 2085.43, 0.3658)
"""The same runs fitted anew: agrees with approaches 1 and 2, about 20 tokens a parameter."""

TOKENS_A_PARAMETER = 20
"""What approaches 1 and 2 of Hoffmann et al. come to, at every size."""

OVERTRAINED = {"Llama 2 7B": 2e12 / 6.74e9, "Llama 3 8B": 15e12 / 8.03e9, "SmolLM2-135M": 2e12 / 134.5e6}
"""Tokens a parameter of models that were made to be cheap to run, by their model cards."""

WORTH_OF_REPEATS = 15.4
"""R* of Muennighoff et al. 2023, arXiv:2305.16264: repeats after which more of the same hardly helps."""


def worth_of(tokens: float, unique: float) -> float:
    """Fresh tokens that training on ``tokens``, with only ``unique`` different ones, is worth (Muennighoff et al. 2023,
    equation 5): U + U R* (1 - exp(-R / R*)) for R repeats. Four passes are worth nearly four times the data."""
    if tokens <= unique:
        return tokens
    repeats = tokens / unique - 1
    return unique + unique * WORTH_OF_REPEATS * (1 - math.exp(-repeats / WORTH_OF_REPEATS))
