"""A model that lies on several ranks, put together again."""

import torch

from langwright.model.model import Model
from langwright.train.ranks import Ranks
from langwright.train.spread import is_shared


@torch.no_grad()
def whole_model(model: Model, ranks: Ranks) -> Model | None:
    """``model`` with all of its parameters in the first rank's host memory; itself where it is whole, None elsewhere.

    One parameter at a time passes through the devices; every rank must ask.
    """
    if not any(is_shared(parameter) for parameter in model.parameters()):
        return model if ranks.first else None
    state = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        whole = parameter.full_tensor() if is_shared(parameter) else parameter
        if ranks.first:
            state[name] = whole.cpu()
    if not ranks.first:
        return None
    with torch.device("meta"):
        copy = Model(model.config, model.head_kind)
    copy.load_state_dict(state, assign=True)
    copy.tie()
    return copy.train(model.training)
