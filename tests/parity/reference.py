"""A `transformers` model and ours on the same random weights, and how the two are compared."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from langwright.model.config import ModelConfig
from langwright.model.families import find_family
from langwright.model.heads import HeadKind
from langwright.model.model import Model
from langwright.model.rename import Rule, bind, split

TOLERANCE = 1e-5
Parts = dict[str, Tensor]


@dataclass
class Pair:
    """Two models that should compute the same."""

    theirs: Any
    ours: Model
    rules: list[Rule]

    @property
    def config(self) -> ModelConfig:
        return self.ours.config


def make_pair(values: dict[str, Any], seed: int = 0, build: Callable[[Any], Any] | None = None) -> Pair:
    """A reference model of the configuration ``values`` with random weights, and ours with the same ones.

    ``values`` goes through the reference's own config.json, so our reader is part of what is compared.
    """
    model_type = values["model_type"]
    reference = AutoConfig.for_model(model_type, **{k: v for k, v in values.items() if k != "model_type"})
    reference._attn_implementation = "eager"
    theirs = (build or AutoModelForCausalLM.from_config)(reference).eval()
    randomise(theirs, seed)
    written = json.loads(theirs.config.to_json_string())
    family = find_family(written)
    head: HeadKind = family.head_of(written | {"architectures": [type(theirs).__name__]}) or "causal_lm"
    ours = Model(family.config_from_hf(written), head).eval()
    parameters = dict(ours.named_parameters())
    rules = bind(family.rules + family.heads[head], ours.config, parameters)
    for name, part in carry(theirs.state_dict(), rules, ours).items():
        parameters[name].data.copy_(part)
    return Pair(theirs, ours, rules)


@torch.no_grad()
def randomise(model: nn.Module, seed: int, scale: float = 0.15) -> None:
    """Weights large enough that a mistake would show, and norms and biases that are not the identity."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=generator) * scale
        parameter.copy_(parameter + noise if parameter.ndim == 1 else noise)


def carry(tensors: Parts, rules: list[Rule], ours: Model) -> Parts:
    """Their tensors (weights or gradients) under our names and in our shapes."""
    shapes = {name: parameter.shape for name, parameter in ours.named_parameters()}
    carried: Parts = {}
    for item in rules:
        # In memory GPT-NeoX's head is called lm_head; in every file it is embed_out.
        name = item.theirs if item.theirs in tensors else item.theirs.replace("embed_out", "lm_head")
        parts = split(item, tensors[name], [shapes[ours_name] for ours_name in item.ours], ours.config)
        carried |= dict(zip(item.ours, parts, strict=True))
    return carried


def assert_close(ours: Tensor, theirs: Tensor, what: str = "values", scale: float = 1.0) -> None:
    """Equal within 1e-5, relative where the values, or the ``scale`` of the terms of their sums, are larger than 1."""
    assert ours.shape == theirs.shape, f"{what}: {tuple(ours.shape)} is not {tuple(theirs.shape)}"
    allowed = TOLERANCE * max(1.0, scale, theirs.abs().max().item())
    worst = (ours - theirs).abs().max().item()
    assert worst <= allowed, f"{what}: differs by {worst:.2e}, allowed {allowed:.2e}"


def assert_gradients_close(ours: Model, theirs: Parts) -> None:
    """Every parameter has its counterpart's gradient.

    A bias is measured by its matrix: both gradients sum the same terms, and those of a key's bias cancel to zero (a
    softmax does not feel a constant), which leaves rounding of the size of the terms.
    """
    assert set(theirs) == set(dict(ours.named_parameters()))
    for name, parameter in ours.named_parameters():
        assert parameter.grad is not None, name
        matrix = theirs.get(name.removesuffix("bias") + "weight", theirs[name])
        assert_close(parameter.grad, theirs[name], name, scale=matrix.abs().max().item())


@contextmanager
def hidden_states(model: Model) -> Iterator[list[Tensor]]:
    """What the embedding and every block give, the last one after the final norm: as the reference reports them."""
    seen: list[Tensor] = []
    modules = [model.backbone.embed, *list(model.backbone.layers)[:-1], model.backbone.final_norm]
    hooks = [module.register_forward_hook(lambda _module, _inputs, out: seen.append(out)) for module in modules]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def random_ids(config: ModelConfig, rows: int, length: int, seed: int = 0) -> Tensor:
    """Ids that are never the padding id 0, whose embedding the reference does not train."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(1, config.vocab_size, (rows, length), generator=generator)


def pad(ids: Tensor, lengths: list[int], side: str) -> tuple[Tensor, Tensor]:
    """Rows of ``ids`` cut to ``lengths`` and padded with 0; also the mask of real tokens, (B, T) bool."""
    columns = torch.arange(ids.shape[1])
    kept = torch.tensor(lengths)[:, None]
    mask = columns < kept if side == "right" else columns >= ids.shape[1] - kept
    return ids.masked_fill(~mask, 0), mask


def numbered(mask: Tensor) -> Tensor:
    """Positions that count real tokens, as `transformers` wants them for padded rows."""
    return (mask.long().cumsum(-1) - 1).clamp(min=0)
