"""Losses of a whole batch, in micro-batches: where a row's loss depends on the other rows, gradients are cached.

The model goes over every piece twice: first without a graph, for what the loss is computed from; then, with the loss's
gradient by each piece's share of that at hand, forward and backward piece by piece (GradCache; Gao et al. 2021,
arXiv:2101.06983). The gradient is that of the batch as one, at the memory of a piece and the price of one more forward.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from langwright.train.compute import ComputeModel
from langwright.train.objective import Objective, Piece


def join_pieces(
    compute: ComputeModel,
    pieces: Sequence[Piece],
    objective: Objective,
    total: float,
    stopping: Callable[[], bool] = lambda: False,
) -> Tensor | None:
    """Gradients of ``objective``'s joint loss over ``total`` on the masters, and that loss (); None when stopped.

    Dropout draws the same in both passes.
    """
    join = objective.join
    assert join is not None
    targets, device = torch.cat([piece.targets for piece in pieces]), compute.master.device
    if len(pieces) == 1:
        if stopping():
            return None
        loss = join(objective.loss(compute.model, pieces[0]), targets) / total
        loss.backward()
        compute.collect()
        return loss.detach()
    drawn, found = [], []
    for piece in pieces:
        if stopping():
            return None
        drawn.append([generator.get_state() for generator in _generators(device)])
        with torch.no_grad():
            found.append(objective.loss(compute.model, piece))
    whole = torch.cat(found).requires_grad_()
    loss = join(whole, targets) / total
    loss.backward()
    assert whole.grad is not None
    for piece, states, grad in zip(pieces, drawn, whole.grad.split([len(each) for each in found]), strict=True):
        if stopping():
            compute.master.zero_grad(set_to_none=True)
            return None
        for generator, state in zip(_generators(device), states, strict=True):
            generator.set_state(state)
        objective.loss(compute.model, piece).backward(grad)
        compute.collect()
    return loss.detach()


def _generators(device: torch.device) -> list[torch.Generator]:
    """What dropout draws from there."""
    if device.type != "cuda":
        return [torch.default_generator]
    index = torch.cuda.current_device() if device.index is None else device.index
    return [torch.default_generator, torch.cuda.default_generators[index]]
