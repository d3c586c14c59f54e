"""Losses of answers that were judged: functions of what they are worth, in nats."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from langwright.train.tuning.config import PreferenceSettings


@dataclass(frozen=True)
class Worth:
    """Of P pairs, all (P,): log-likelihoods of the answers, how many tokens they have, and the reference's."""

    chosen: Tensor
    rejected: Tensor
    chosen_tokens: Tensor
    rejected_tokens: Tensor
    chosen_reference: Tensor
    rejected_reference: Tensor


def dpo(worth: Worth, beta: float, label_smoothing: float = 0.0) -> Tensor:
    """-ln sigmoid(beta x margin), the margin being that of the model over the reference's (Rafailov et al. 2023,
    arXiv:2305.18290); with ``label_smoothing`` so many labels are taken to be swapped (Mitchell 2023). (P,)."""
    margin = reward_margin(worth, beta)
    return -(1 - label_smoothing) * F.logsigmoid(margin) - label_smoothing * F.logsigmoid(-margin)


def ipo(worth: Worth, beta: float) -> Tensor:
    """(margin - 1 / (2 beta))^2, the margin being a mean over tokens (Azar et al. 2023, arXiv:2310.12036). (P,)."""
    chosen = (worth.chosen - worth.chosen_reference) / worth.chosen_tokens
    rejected = (worth.rejected - worth.rejected_reference) / worth.rejected_tokens
    return (chosen - rejected - 1 / (2 * beta)).square()


def simpo(worth: Worth, beta: float, target_margin: float) -> Tensor:
    """-ln sigmoid(beta x difference of the means a token - ``target_margin``), without a reference (Meng et al. 2024,
    arXiv:2405.14734). (P,)."""
    return -F.logsigmoid(beta * mean_margin(worth) - target_margin)


def orpo(worth: Worth, beta: float) -> Tensor:
    """The chosen answer's mean loss a token, and ``beta`` times -ln sigmoid of the log of the ratio of both odds (Hong
    et al. 2024, arXiv:2403.07691). (P,)."""
    chosen, rejected = worth.chosen / worth.chosen_tokens, worth.rejected / worth.rejected_tokens
    odds = (chosen - rejected) - (log1mexp(chosen) - log1mexp(rejected))
    return -chosen - beta * F.logsigmoid(odds)


def kto(likelihood: Tensor, point: Tensor, reward: Tensor, beta: float) -> Tensor:
    """1 - sigmoid(beta x (``likelihood`` - ``point``)) of a good answer, 1 - sigmoid(beta x (``point`` -
    ``likelihood``)) of a bad one, times the size of its ``reward``, whose sign tells the two apart (Ethayarajh et al.
    2024, arXiv:2402.01306).

    ``point`` is the log-likelihood at which an answer is neither gain nor loss: that of the reference and, over it,
    KL(model || reference). All (N,).
    """
    return reward.abs() * torch.sigmoid(-reward.sign() * beta * (likelihood - point))


def log1mexp(x: Tensor) -> Tensor:
    """ln(1 - e^x) for x < 0, exact near 0 and far from it (Maechler 2012)."""
    near = x > -0.6931471805599453
    return torch.where(
        near,
        torch.log(-torch.expm1(x.where(near, x.new_full((), -1.0)))),
        torch.log1p(-x.where(~near, x.new_full((), -1.0)).exp()),
    )


def reward_margin(worth: Worth, beta: float) -> Tensor:
    """Difference of the rewards beta x (ln p - ln p of the reference). (P,)."""
    return beta * (worth.chosen - worth.chosen_reference - worth.rejected + worth.rejected_reference)


def mean_margin(worth: Worth) -> Tensor:
    """Difference of the mean log-likelihoods of a token. (P,)."""
    return worth.chosen / worth.chosen_tokens - worth.rejected / worth.rejected_tokens


@dataclass(frozen=True)
class Comparison:
    """How a method learns from pairs: their losses, by how much the chosen answers are preferred (0 is not at all), and
    whether it compares with the model that tuning began with."""

    loss: Callable[[Worth, PreferenceSettings], Tensor]
    margin: Callable[[Worth, PreferenceSettings], Tensor]
    reference: bool


COMPARISONS = {
    "dpo": Comparison(
        lambda worth, by: dpo(worth, by.beta, by.label_smoothing), lambda worth, by: reward_margin(worth, by.beta), True
    ),
    "ipo": Comparison(lambda worth, by: ipo(worth, by.beta), lambda worth, by: reward_margin(worth, by.beta), True),
    "simpo": Comparison(
        lambda worth, by: simpo(worth, by.beta, by.target_margin), lambda worth, _: mean_margin(worth), False
    ),
    "orpo": Comparison(lambda worth, by: orpo(worth, by.beta), lambda worth, _: mean_margin(worth), False),
}
