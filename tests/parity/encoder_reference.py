"""Small random encoders of the reference library, their weights carried over, and both run on the same batch."""

import random
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertModel,
    ModernBertConfig,
    ModernBertForMaskedLM,
    ModernBertForSequenceClassification,
    ModernBertForTokenClassification,
    ModernBertModel,
    PreTrainedConfig,
    RobertaConfig,
    RobertaForMaskedLM,
    RobertaForSequenceClassification,
    RobertaForTokenClassification,
    RobertaModel,
)

from langwright.model.families import find_family
from langwright.model.heads import HeadKind
from langwright.model.model import Model, build_model
from langwright.model.rename import Rule, bind, join, split

CLASSES: dict[tuple[str, HeadKind], Any] = {
    ("bert", "embedding"): BertModel,
    ("bert", "masked_lm"): BertForMaskedLM,
    ("bert", "sequence_classifier"): BertForSequenceClassification,
    ("bert", "token_classifier"): BertForTokenClassification,
    ("roberta", "embedding"): RobertaModel,
    ("roberta", "masked_lm"): RobertaForMaskedLM,
    ("roberta", "sequence_classifier"): RobertaForSequenceClassification,
    ("roberta", "token_classifier"): RobertaForTokenClassification,
    ("modernbert", "embedding"): ModernBertModel,
    ("modernbert", "masked_lm"): ModernBertForMaskedLM,
    ("modernbert", "sequence_classifier"): ModernBertForSequenceClassification,
    ("modernbert", "token_classifier"): ModernBertForTokenClassification,
}
LONGEST = 20  # tokens in a row


def random_config(name: str, seed: int, **changes: Any) -> PreTrainedConfig:
    """A small configuration of the family ``name`` with every size and option drawn."""
    draw = random.Random(f"{name} {seed}")
    heads = draw.choice((1, 2, 4))
    common: dict[str, Any] = {
        "vocab_size": draw.randint(30, 70),
        "hidden_size": heads * draw.choice((4, 8, 10)),
        "intermediate_size": draw.randint(9, 40),
        "num_hidden_layers": draw.randint(1, 4),
        "num_attention_heads": heads,
        "num_labels": draw.choice((1, 2, 5)),
        "pad_token_id": draw.choice((0, 1, 3)),
        "bos_token_id": 5,
        "eos_token_id": 6,
    }
    if name == "modernbert":
        layers = common["num_hidden_layers"]
        listed = [draw.choice(("full_attention", "sliding_attention")) for _ in range(layers)]
        rope: dict[str, Any] = {
            "full_attention": {"rope_type": "default", "rope_theta": draw.choice((1e3, 160_000.0))},
            "sliding_attention": draw.choice(
                (
                    {"rope_type": "default", "rope_theta": 10_000.0},
                    {"rope_type": "linear", "rope_theta": 500.0, "factor": 2.0},
                )
            ),
        }
        special: dict[str, Any] = {
            "max_position_embeddings": 64,
            "cls_token_id": 5,
            "sep_token_id": 6,
            "norm_eps": draw.choice((1e-5, 1e-3)),
            "norm_bias": draw.random() < 0.5,
            "attention_bias": draw.random() < 0.5,
            "mlp_bias": draw.random() < 0.5,
            "decoder_bias": draw.random() < 0.5,
            "classifier_bias": draw.random() < 0.5,
            "classifier_pooling": draw.choice(("cls", "mean")),
            "classifier_activation": draw.choice(("gelu", "relu")),
            "hidden_activation": draw.choice(("gelu", "gelu_pytorch_tanh", "silu")),
            "tie_word_embeddings": draw.random() < 0.5,
            "local_attention": draw.choice((2, 5, 6, 9)),
            **draw.choice(
                (
                    {"layer_types": listed, "rope_parameters": rope},
                    {"global_attn_every_n_layers": 2, "global_rope_theta": 80_000.0, "local_rope_theta": 700.0},
                )
            ),
        }
        return ModernBertConfig(**common | special | changes)
    special: dict[str, Any] = {
        "max_position_embeddings": LONGEST + 5,
        "type_vocab_size": draw.choice((1, 2, 3)),
        "layer_norm_eps": draw.choice((1e-12, 1e-5, 1e-3)),
        "hidden_act": draw.choice(("gelu", "gelu_new", "relu", "silu")),
    }
    kind: Any = BertConfig if name == "bert" else RobertaConfig
    return kind(**common | special | changes)


def reference_model(hf_config: PreTrainedConfig, kind: Any, seed: int) -> Any:
    """A model of class ``kind`` with eager attention, whose every weight (norms too) is random and of size 1."""
    hf_config._attn_implementation = "eager"
    torch.manual_seed(seed)
    model = kind(hf_config).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim > 1:
                weight.normal_(0, 0.7 * weight.shape[1] ** -0.5)
            elif name.endswith("weight"):
                weight.uniform_(0.5, 1.5)
            else:
                weight.normal_(0, 0.3)
    return model


@dataclass(frozen=True)
class Pair:
    """The reference, our model with the same weights, and the rules between them under the reference's own names."""

    theirs: Any
    ours: Model
    rules: list[Rule]


def pair_up(theirs: Any, head: HeadKind) -> Pair:
    """Our model of the same configuration and weights; every tensor of either side must be accounted for."""
    values = theirs.config.to_dict() | {"architectures": [type(theirs).__name__]}
    family = find_family(values)
    assert family.head_of(values) == head
    ours = build_model(family.config_from_hf(values), head, seed=None).eval()
    weights = dict(ours.named_parameters())
    rules = bind(family.rules + family.heads[head], ours.config, weights)
    state = theirs.state_dict()
    if head == "embedding":
        rules = [Rule(rule.theirs.removeprefix(family.prefix), rule.ours, rule.layout) for rule in rules]
    with torch.no_grad():
        for rule in rules:
            targets = [weights[name] for name in rule.ours]
            for target, part in zip(
                targets, split(rule, state[rule.theirs], [t.shape for t in targets], ours.config), strict=True
            ):
                target.copy_(part)
    return Pair(theirs, ours, rules)


@dataclass(frozen=True)
class Batch:
    """Inputs of our model, and the positions that the reference must be given to mean the same (None: its own)."""

    ids: Tensor
    attention_mask: Tensor | None = None
    type_ids: Tensor | None = None
    positions: Tensor | None = None
    their_positions: Tensor | None = None

    @property
    def real(self) -> Tensor:
        """(B, T) bool: which places count."""
        return torch.ones_like(self.ids, dtype=torch.bool) if self.attention_mask is None else self.attention_mask

    def rows(self) -> list["Batch"]:
        """Every row by itself, without its padding."""
        types = [None] * len(self.ids) if self.type_ids is None else self.type_ids
        return [
            Batch(ids[None, real], type_ids=None if kinds is None else kinds[None, real])
            for ids, real, kinds in zip(self.ids, self.real, types, strict=True)
        ]

    def run(self, pair: Pair) -> tuple[Tensor, Any, list[Tensor], list[Tensor]]:
        """Our output, their output, and the hidden states of both after the embedding and after every layer."""
        base = pair.theirs.base_model
        layers = base.layers if hasattr(base, "layers") else base.encoder.layer
        their_states, our_states = (
            Recorder(base.embeddings, *layers),
            Recorder(pair.ours.backbone.embed, *pair.ours.backbone.layers),
        )
        keywords = {"attention_mask": None if self.attention_mask is None else self.attention_mask.long()}
        keywords["position_ids"] = self.their_positions
        if self.type_ids is not None:
            keywords["token_type_ids"] = self.type_ids
        theirs = pair.theirs(self.ids, **keywords)
        ours = pair.ours(self.ids, attention_mask=self.attention_mask, positions=self.positions, type_ids=self.type_ids)
        return ours, theirs, our_states.finish(), their_states.finish()


class Recorder:
    """Keeps what modules return until `finish`."""

    def __init__(self, *modules: nn.Module):
        self.seen: list[Tensor] = []
        self.handles = [module.register_forward_hook(self.keep) for module in modules]

    def keep(self, _module: nn.Module, _inputs: Any, output: Any) -> None:
        self.seen.append(output[0] if isinstance(output, tuple) else output)

    def finish(self) -> list[Tensor]:
        for handle in self.handles:
            handle.remove()
        return self.seen


def make_batch(pair: Pair, style: str, seed: int) -> Batch:
    """Random inputs: ``plain``, padded on the ``right`` or ``left``, or at ``positions`` of their own."""
    config, generator = pair.ours.config, torch.Generator().manual_seed(seed)
    B, T = 3, int(torch.randint(7, LONGEST + 1, (), generator=generator))
    ids = torch.randint(7, config.vocab_size, (B, T), generator=generator)
    columns = torch.arange(T)
    types = torch.randint(0, config.n_types, (B, T), generator=generator) if config.n_types else None
    if style == "plain":
        return Batch(ids)
    if style == "positions":
        if config.positions == "rotary":  # the reference's local attention counts columns, so keep them consecutive
            positions = columns + torch.randint(0, 30, (B, 1), generator=generator)
        else:
            positions = torch.stack([torch.randperm(config.max_positions, generator=generator)[:T] for _ in range(B)])
        return Batch(ids, None, types, positions, positions + config.position_offset)
    lengths = torch.randint(2, T + 1, (B, 1), generator=generator)
    lengths[0] = T
    mask = columns < lengths if style == "right" else columns >= T - lengths
    assert config.pad_id is not None
    ids = ids.masked_fill(~mask, config.pad_id)
    # BERT counts columns, so with padding on the left the reference must be told. RoBERTa counts real tokens by itself,
    # and for rotary positions it is all one.
    counted = (mask.long().cumsum(-1) - 1).clamp(min=0)
    return Batch(ids, mask, types, None, counted if config.family == "bert" else None)


def farthest(ours: Tensor, theirs: Tensor) -> float:
    """Largest difference, relative to the reference where that is larger than 1."""
    assert ours.shape == theirs.shape
    ours, theirs = ours.detach(), theirs.detach()
    return float(((ours - theirs).abs() / theirs.abs().clamp(min=1)).max())


def gradient_gaps(pair: Pair) -> dict[str, float]:
    """The largest gradient difference in each of their tensors, relative to its largest gradient if that is above 1.

    A bias is measured by its matrix: both sum the same terms, and those of a key's bias cancel to rounding.
    """
    matrices = {rule.theirs: pair.theirs.get_parameter(rule.theirs).grad for rule in pair.rules}
    theirs = dict(pair.theirs.named_parameters(remove_duplicate=False))
    gaps = {}
    for rule in pair.rules:
        expected = theirs.pop(rule.theirs).grad
        parts = [pair.ours.get_parameter(name).grad for name in rule.ours]
        found = join(rule, [part for part in parts if part is not None], pair.ours.config)
        matrix = matrices.get(rule.theirs.removesuffix("bias") + "weight", expected)
        scale = torch.maximum(matrix.abs().max(), expected.abs().max()).clamp(min=1)
        gaps[rule.theirs] = float((found - expected).abs().max() / scale)
    compared = {id(pair.theirs.get_parameter(rule.theirs)) for rule in pair.rules}
    left = [name for name, weight in theirs.items() if weight.grad is not None and id(weight) not in compared]
    assert not left, f"the reference also learns {left}"
    return gaps
