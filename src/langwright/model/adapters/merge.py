"""Folding adapters into the weights, and how far that changes what comes out."""

import copy
import math

import torch
from torch import Tensor, nn

from langwright.model.adapters.lora import LoRALinear
from langwright.model.adapters.quantise import QuantisedLinear
from langwright.model.model import Model


def fuse(model: Model) -> Model:
    """A plain model in float32 that computes what ``model`` does with its adapters; ``model`` stays as it is.

    Quantised projections become the float32 matrices that their codes stand for, since those are what the adapters
    were trained with. Embeddings that are tied stay tied. Everything can be trained again.
    """
    return fold(copy.deepcopy(model).float())


@torch.no_grad()
def fold(model: Model) -> Model:
    """`fuse` in place: the sums are made in float32 and rounded once, to the dtype of ``model``."""
    for name, module in list(model.named_modules()):
        if isinstance(module, LoRALinear):
            model.set_submodule(name, _plain(module.base, module.merged_weight(), model.dtype))
        elif isinstance(module, QuantisedLinear) and not name.endswith(".base"):
            model.set_submodule(name, _plain(module, module.weight, model.dtype))
    return model.requires_grad_(True)


def _plain(base: nn.Linear | QuantisedLinear, weight: Tensor, dtype: torch.dtype) -> nn.Linear:
    linear = nn.Linear(1, 1, bias=base.bias is not None).train(base.training)
    linear.out_features, linear.in_features = weight.shape
    linear.weight = nn.Parameter(weight.to(dtype))
    if base.bias is not None:
        linear.bias = nn.Parameter(base.bias.to(dtype))
    return linear


@torch.inference_mode()
def merge_error(adapted: Model, fused: Model, ids: Tensor) -> float:
    """The largest absolute difference of what the two give for ``ids`` (B, T), without dropout; NaN counts as inf."""
    outputs = []
    for model in (adapted, fused):
        was_training = model.training
        model.eval()
        try:
            outputs.append(model(ids.to(model.device)).float().cpu())
        finally:
            model.train(was_training)
    worst = float((outputs[0] - outputs[1]).abs().max())
    return math.inf if math.isnan(worst) else worst
