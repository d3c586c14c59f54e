"""A backbone with a head, and how its weights begin."""

import math
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from langwright.model.cache import KVCache
from langwright.model.config import ModelConfig
from langwright.model.heads import HEADS, CausalLMHead, HeadKind, MaskedLMHead
from langwright.model.norm import LayerNorm, RMSNorm
from langwright.model.transformer import Transformer


class Model(nn.Module):
    """A `Transformer` and the head of one task."""

    def __init__(self, config: ModelConfig, head: HeadKind = "causal_lm"):
        super().__init__()
        self.config = config
        self.head_kind: HeadKind = head
        self.fresh: list[str] = []
        """Parameters that a checkpoint did not hold and that began at random."""
        self.backbone = Transformer(config)
        self.head = HEADS[head](config)
        self.tie()

    def tie(self) -> None:
        """Make a language-model head share the token embedding, where the config says so."""
        if self.config.tie_embeddings and isinstance(self.head, CausalLMHead | MaskedLMHead):
            self.head.proj.weight = self.backbone.embed.tokens.weight

    def forward(
        self,
        ids: Tensor,
        *,
        attention_mask: Tensor | None = None,
        positions: Tensor | None = None,
        type_ids: Tensor | None = None,
        cache: KVCache | None = None,
        documents: Tensor | None = None,
        last_only: bool = False,
    ) -> Tensor:
        """``ids`` (B, T) -> what the head gives: logits (B, T, V) of a language model, (B, n_labels), (B, D).

        With ``last_only`` a language model computes the last column only, (B, 1, V). Other arguments: `Transformer`.
        """
        if last_only and self.head_kind != "causal_lm":
            raise ValueError(f"last_only is for causal language models; a {self.head_kind} head needs every column")
        hidden = self.backbone(
            ids,
            attention_mask=attention_mask,
            positions=positions,
            type_ids=type_ids,
            cache=cache,
            documents=documents,
        )  # (B, T, D)
        return self.head(hidden[:, -1:] if last_only else hidden, attention_mask)

    @property
    def dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device


class _WithoutInit(TorchFunctionMode):
    """Makes torch's layers leave their weights as they were allocated.

    They are overwritten anyway; and on the meta device drawing them imports torch's compiler, which takes two seconds.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", None) == "torch.nn.init":
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        return func(*args, **kwargs)


def allocate_model(config: ModelConfig, head: HeadKind, device: torch.device | str = "meta") -> Model:
    """A model whose weights mean nothing yet; on the meta device they take no memory."""
    with _WithoutInit(), torch.device(device):
        return Model(config, head)


def build_model(config: ModelConfig, head: HeadKind | None = None, seed: int | None = 0) -> Model:
    """A model with fresh weights; ``head`` defaults to causal or masked LM as the config is causal or not."""
    head = head or default_head(config)
    if seed is None:
        return Model(config, head)
    model = allocate_model(config, head, "cpu")
    init_weights(model, seed)
    return model


def with_head(model: Model, head: HeadKind, labels: tuple[str, ...] = (), seed: int = 0, **fields: Any) -> Model:
    """The backbone of ``model``, itself and no copy, with a fresh ``head``, of a classifier for ``labels``.

    ``fields`` of the configuration are changed as well. How sentences were pooled says nothing about another head.
    """
    pooling = None if model.head_kind == "embedding" else model.config.pooling
    config = model.config.replace(**{"labels": labels, "n_labels": len(labels) or None, "pooling": pooling} | fields)
    found = allocate_model(config, head)
    found.backbone = model.backbone
    with _WithoutInit():
        found.head = HEADS[head](config)
    init_weights(found, seed, part="head")
    found.tie()
    found.fresh = [f"head.{name}" for name, _ in found.head.named_parameters()]
    return found


def default_head(config: ModelConfig) -> HeadKind:
    """The language-model head that fits the config."""
    return "causal_lm" if config.causal else "masked_lm"


@torch.no_grad()
def init_weights(model: Model, seed: int, part: str = "") -> None:
    """All initialisation, in one place, from one generator; ``part`` names a sub-module to begin alone (``head``).

    ``normal``: N(0, init_std), and projections back into the stream divided by sqrt(2 n_layers) (GPT-2, section 2.3);
    biases 0, norms the identity. ``tutorial``: what torch's own layers do (Xavier for query, key and value as one
    matrix, Kaiming-uniform elsewhere), embeddings and head uniform in +-0.1, biases of attention and head 0.
    With ``zero_init`` projections back into the stream and an untied head are 0 in either.
    Numbers are drawn on the CPU, so that a seed means the same on every device.
    """
    config, generator = model.config, torch.Generator().manual_seed(seed)

    def normal(tensor: Tensor, std: float) -> None:
        tensor.copy_(torch.empty(tensor.shape).normal_(0.0, std, generator=generator))

    def uniform(tensor: Tensor, bound: float) -> None:
        tensor.copy_(torch.empty(tensor.shape).uniform_(-bound, bound, generator=generator))

    for name, module in model.named_modules():
        if not name.startswith(part):
            continue
        tutorial = config.init == "tutorial"
        if isinstance(module, nn.Embedding):
            uniform(module.weight, 0.1) if tutorial else normal(module.weight, config.init_std)
        elif isinstance(module, nn.Linear):
            if module.weight is not model.backbone.embed.tokens.weight:  # a tied head is already drawn
                back = name.endswith(("o_proj", "down_proj"))
                if config.zero_init and (back or name == "head.proj"):
                    module.weight.zero_()
                elif tutorial:
                    uniform(module.weight, _torch_bound(name, module, config))
                else:
                    normal(module.weight, config.init_std / math.sqrt(2 * config.n_layers) if back else config.init_std)
            if module.bias is not None:
                if tutorial and name.endswith(("up_proj", "down_proj", "gate_proj")):
                    uniform(module.bias, 1 / math.sqrt(module.weight.shape[1]))
                else:
                    module.bias.zero_()
        elif isinstance(module, LayerNorm | RMSNorm):
            module.reset()


def _torch_bound(name: str, module: nn.Linear, config: ModelConfig) -> float:
    """Half-width of the uniform distribution that torch's layers (and the tutorial's head) draw this weight from."""
    fan_in = module.weight.shape[1]
    if name == "head.proj":
        return 0.1
    if name.endswith(("q_proj", "k_proj", "v_proj")):
        # torch.nn.MultiheadAttention draws the three as one (3D, D) matrix.
        return math.sqrt(6 / (fan_in + (config.n_heads + 2 * config.n_kv_heads) * config.d_head))
    return 1 / math.sqrt(fan_in)


def count_parameters(model: nn.Module) -> int:
    """Distinct parameters; tied ones count once."""
    return sum(parameter.numel() for parameter in model.parameters())


def lm_projection(model: Model) -> nn.Linear:
    """The last linear layer of a language-model head; raises ValueError for other heads."""
    if not isinstance(model.head, CausalLMHead | MaskedLMHead):
        raise ValueError(f"a {model.head_kind} head gives no token logits")
    return cast(nn.Linear, model.head.proj)
