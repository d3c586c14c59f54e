"""Muon: momentum whose matrices are made orthogonal before they are applied, all of one shape at once.

Jordan et al. 2024 (kellerjordan.github.io/posts/muon): every direction of a gradient matrix gets the same length, so
rare directions learn as fast as common ones. NorMuon (Li et al. 2025, arXiv:2510.05491) then evens out the neurons
(rows) by a running second moment, at almost no cost. Everything that is no matrix of a hidden layer (embeddings, the
head, norms, biases) goes through AdamW.
"""

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.adamw import adamw

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
"""Coefficients of the quintic iteration, chosen by the authors for the steepest slope at zero."""
ITERATIONS = 5


def orthogonalise(matrices: Tensor, iterations: int = ITERATIONS) -> Tensor:
    """Nearly U V^T of each matrix U S V^T of ``matrices`` (N, rows, columns): singular values come to about 0.7 - 1.2.

    Newton-Schulz iterations on the shorter side; the cost is about 4 iterations x shorter^2 x longer a matrix.
    """
    a, b, c = NEWTON_SCHULZ
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(iterations):
        gram = x @ x.mT  # (N, shorter, shorter)
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


def even_rows(update: Tensor, second: Tensor, beta: float) -> Tensor:
    """NorMuon's step on ``update`` (N, rows, columns): rows divided by the root of ``second`` (N, rows, 1), a running
    mean of their squares that is moved in place; the whole keeps its length."""
    length = update.norm(dim=(1, 2), keepdim=True)
    second.lerp_(update.square().mean(2, keepdim=True), 1 - beta)
    evened = update / (second.sqrt() + 1e-8)
    return evened * (length / evened.norm(dim=(1, 2), keepdim=True).clamp(min=1e-8))


class Muon(Optimizer):
    """Groups with ``kind`` ``muon`` hold matrices alone; those with ``kind`` ``adamw`` anything.

    A step of a matrix has the length of ``lr`` x sqrt(max(1, rows / columns)) x sqrt(rank). Weight decay is decoupled.
    Raises ValueError for a group of another kind and a muon group that holds something else than matrices.
    """

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        *,
        lr: float,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        row_beta: float = 0.95,
    ):
        defaults = {"lr": lr, "momentum": momentum, "betas": betas, "eps": eps, "row_beta": row_beta}
        super().__init__(groups, defaults | {"weight_decay": 0.0, "kind": "adamw"})
        for group in self.param_groups:
            if group["kind"] not in ("muon", "adamw"):
                raise ValueError(f"a group's kind is muon or adamw, not {group['kind']!r}")
            if group["kind"] == "muon" and any(parameter.ndim != 2 for parameter in group["params"]):
                raise ValueError("a muon group holds matrices alone")

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Move every parameter that has a gradient."""
        for group in self.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            if group["kind"] == "adamw":
                self._adamw(parameters, group)
                continue
            by_shape: dict[torch.Size, list[Tensor]] = defaultdict(list)
            for parameter in parameters:
                by_shape[parameter.shape].append(parameter)
            for alike in by_shape.values():
                self._muon(alike, group)

    def _muon(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        rows, columns = parameters[0].shape
        for parameter in parameters:
            state = self.state[parameter]
            if not state:
                state["momentum"] = torch.zeros_like(parameter)
                state["row_squares"] = torch.zeros_like(parameter[:, :1])
        momentum, beta = group["momentum"], group["row_beta"]
        kept = [self.state[parameter]["momentum"] for parameter in parameters]
        grads = [parameter.grad for parameter in parameters if parameter.grad is not None]
        torch._foreach_lerp_(kept, grads, 1 - momentum)  # pyright: ignore[reportPrivateImportUsage]
        looking_ahead = torch._foreach_lerp(grads, kept, momentum)  # pyright: ignore[reportPrivateImportUsage]  # Nesterov
        update = orthogonalise(torch.stack(list(looking_ahead)))  # (N, rows, columns)
        if beta:
            seconds = torch.stack([self.state[parameter]["row_squares"] for parameter in parameters])
            update = even_rows(update, seconds, beta)
            for parameter, second in zip(parameters, seconds, strict=True):
                self.state[parameter]["row_squares"].copy_(second)
        scale = max(1.0, rows / columns) ** 0.5
        if group["weight_decay"]:
            torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])  # pyright: ignore[reportPrivateImportUsage]
        step = -group["lr"] * scale
        torch._foreach_add_(parameters, list(update.unbind()), alpha=step)  # pyright: ignore[reportPrivateImportUsage]

    def _adamw(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        if not parameters:
            return
        for parameter in parameters:
            state = self.state[parameter]
            if not state:
                state["step"] = torch.zeros((), device=parameter.device)
                state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
        states = [self.state[parameter] for parameter in parameters]
        adamw(
            parameters,
            [parameter.grad for parameter in parameters if parameter.grad is not None],
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            [state["step"] for state in states],
            fused=parameters[0].device.type in ("cpu", "cuda"),
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )
