"""Losses of pairs of answers, one preferred: functions of what the two are worth, in nats."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

Kind = Literal["dpo", "ipo", "orpo", "simpo"]


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
    margin = beta * (worth.chosen - worth.chosen_reference - worth.rejected + worth.rejected_reference)
    return -(1 - label_smoothing) * F.logsigmoid(margin) - label_smoothing * F.logsigmoid(-margin)


def ipo(worth: Worth, beta: float) -> Tensor:
    """(margin - 1 / (2 beta))^2, the margin being a mean over tokens (Azar et al. 2023, arXiv:2310.12036). (P,)."""
    chosen = (worth.chosen - worth.chosen_reference) / worth.chosen_tokens
    rejected = (worth.rejected - worth.rejected_reference) / worth.rejected_tokens
    return (chosen - rejected - 1 / (2 * beta)).square()


def simpo(worth: Worth, beta: float, target_margin: float) -> Tensor:
    """-ln sigmoid(beta x difference of the means a token - ``target_margin``), without a reference (Meng et al. 2024,
    arXiv:2405.14734). (P,)."""
    difference = worth.chosen / worth.chosen_tokens - worth.rejected / worth.rejected_tokens
    return -F.logsigmoid(beta * difference - target_margin)


def orpo(worth: Worth, beta: float) -> Tensor:
    """The chosen answer's mean loss a token, and ``beta`` times -ln sigmoid of the log of the ratio of both odds (Hong
    et al. 2024, arXiv:2403.07691). (P,)."""
    chosen, rejected = worth.chosen / worth.chosen_tokens, worth.rejected / worth.rejected_tokens
    odds = (chosen - rejected) - (log1mexp(chosen) - log1mexp(rejected))
    return -chosen - beta * F.logsigmoid(odds)


def log1mexp(x: Tensor) -> Tensor:
    """ln(1 - e^x) for x < 0, exact near 0 and far from it (Maechler 2012)."""
    near = x > -0.6931471805599453
    return torch.where(
        near,
        torch.log(-torch.expm1(x.where(near, x.new_full((), -1.0)))),
        torch.log1p(-x.where(~near, x.new_full((), -1.0)).exp()),
    )
