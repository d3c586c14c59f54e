"""What a model is, as data. A new family is a new `ModelConfig` and one rename table, never a new model class."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from langwright.core.config import Frozen

Positive = Annotated[int, Field(gt=0)]
Rate = Annotated[float, Field(ge=0, lt=1)]
Activation = Literal["gelu", "gelu_tanh", "quick_gelu", "silu", "relu", "relu2"]
NormKind = Literal["layernorm", "rmsnorm", "gemma_rmsnorm"]
NormSlot = Literal["attn_in", "attn_out", "attn_res", "mlp_in", "mlp_out", "mlp_res"]
Pooling = Literal["cls", "mean", "last"]
Problem = Literal["one", "several", "number"]
PositionKind = Literal["rotary", "learned", "sinusoidal", "none"]


class LinearScaling(Frozen):
    """Position interpolation (Chen et al. 2023, arXiv:2306.15595): every position is divided by ``factor``."""

    kind: Literal["linear"] = "linear"
    factor: float = Field(ge=1)


class DynamicScaling(Frozen):
    """Dynamic NTK scaling: the base grows once a sequence is longer than ``original_positions``."""

    kind: Literal["dynamic"] = "dynamic"
    factor: float = Field(ge=1)
    original_positions: Positive


class YarnScaling(Frozen):
    """YaRN (Peng et al. 2023, arXiv:2309.00071): slow frequencies are interpolated, fast ones are kept."""

    kind: Literal["yarn"] = "yarn"
    factor: float = Field(ge=1)
    original_positions: Positive
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None
    """Multiplies the rotary tables; None is 0.1 ln(factor) + 1, or the ratio of the two mscales when both are given."""
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True
    """Round the borders of the ramp to whole dimensions."""


class Llama3Scaling(Frozen):
    """Llama 3.1's frequency-dependent interpolation (Dubey et al. 2024, arXiv:2407.21783)."""

    kind: Literal["llama3"] = "llama3"
    factor: float = Field(ge=1)
    low_freq_factor: float
    high_freq_factor: float
    original_positions: Positive


RopeScaling = Annotated[LinearScaling | DynamicScaling | YarnScaling | Llama3Scaling, Field(discriminator="kind")]


class Rope(Frozen):
    """Rotary positions (Su et al. 2021, arXiv:2104.09864) in the half-split layout."""

    theta: float = Field(default=10_000.0, gt=0)
    fraction: float = Field(default=1.0, gt=0, le=1)
    """Share of the head dimension that is rotated (GPT-NeoX rotates a quarter)."""
    scaling: RopeScaling | None = None


class LayerSpec(Frozen):
    """What one type of layer does differently from another."""

    window: Positive | None = None
    """A query sees keys less than ``window`` positions away (causal: only backwards); None sees all."""
    rope: Rope | None = None
    value_embed: bool = False
    """Attention adds a second, token-wise embedding to its values (as in value-residual models, arXiv:2410.17897)."""
    norm_slots: tuple[NormSlot, ...] | None = None
    """Overrides the model's filled norm slots (ModernBERT's first layer has no ``attn_in``)."""


class ModelConfig(Frozen):
    """The whole architecture. Sizes are counts of elements; every field is checked, unknown ones raise."""

    family: str
    """Which rename table and `config.json` this model is written with."""
    d_model: Positive
    n_layers: Positive
    n_heads: Positive
    n_kv_heads: Positive
    """Equal to n_heads: multi-head; 1: multi-query; between: grouped queries."""
    d_head: Positive
    d_mlp: Positive
    vocab_size: Positive
    max_positions: Positive
    """Longest sequence, in tokens, that the model was made for."""
    causal: bool = True

    positions: PositionKind = "rotary"
    position_offset: int = Field(default=0, ge=0)
    """Rows at the head of a learned position table that no token uses (RoBERTa: padding id + 1)."""
    n_types: int = Field(default=0, ge=0)
    """Size of the segment-type embedding (BERT); 0 is none."""
    embed_scale: float = 1.0
    """Token embeddings are multiplied by this (sqrt(d_model) in the 2017 Transformer and Gemma)."""
    embed_norm: bool = False

    norm: NormKind = "rmsnorm"
    norm_eps: float = Field(default=1e-5, gt=0)
    norm_bias: bool = False
    norm_slots: tuple[NormSlot, ...] = ("attn_in", "mlp_in")
    final_norm: bool = True
    parallel_residual: bool = False
    """Attention and MLP read the same input and are added together (GPT-NeoX, GPT-J)."""

    activation: Activation = "silu"
    gated: bool = True
    """Gated MLP: down(act(gate(x)) * up(x)); otherwise down(act(up(x)))."""
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    """Normalise each head's query and key before the rotation (same kind of norm as the model's)."""
    attn_scale: float | None = None
    """Multiplies query-key products; None is 1/sqrt(d_head)."""
    attn_softcap: float | None = Field(default=None, gt=0)
    logit_softcap: float | None = Field(default=None, gt=0)

    tie_embeddings: bool = True
    head_bias: bool = False
    head_activation: Activation = "gelu"
    """Of the dense layer in a masked-LM head (and in an ``act_norm`` classifier)."""
    head_dense_bias: bool = True
    classifier: Literal["linear", "tanh", "act_norm"] = "linear"
    """What stands before a sequence classifier's last linear layer: nothing, dense + tanh, or dense + act + norm."""
    classifier_bias: bool = False
    layer_types: tuple[str, ...] = ()
    """The type of every layer; empty fills in ``full`` for all."""
    layer_specs: dict[str, LayerSpec] = Field(default_factory=lambda: {"full": LayerSpec(rope=Rope())})

    dropout: Rate = 0.0
    """On embeddings and on what attention and MLP add to the stream."""
    embed_dropout: Rate | None = None
    """On embeddings, where it differs from ``dropout``."""
    attn_dropout: Rate = 0.0
    """On the attention pattern."""
    mlp_dropout: Rate = 0.0
    """Inside the MLP, after the activation."""
    head_dropout: Rate | None = None
    """In front of a classifier's last layer, where it differs from ``dropout``."""
    init: Literal["normal", "tutorial"] = "normal"
    """``normal``: GPT-2's scheme; ``tutorial``: torch's layer defaults with uniform(-0.1, 0.1) embeddings and head."""
    init_std: float = Field(default=0.02, gt=0)
    zero_init: bool = False
    """Projections back into the stream and an untied head begin at zero, so that a fresh block is the identity."""
    bos_id: int | None = Field(default=None, ge=0)
    eos_ids: tuple[int, ...] = ()
    pad_id: int | None = Field(default=None, ge=0)
    n_labels: Positive | None = None
    """Outputs of a classifier head."""
    labels: tuple[str, ...] = ()
    """Their names, in order; none where they are only numbered."""
    problem: Problem | None = None
    """What a sequence classifier tells of a text: one label, several at once or none, or a number; None: not said."""
    pooling: Pooling | None = None
    """How a classifier or embedding head reduces a sequence; None is the family's habit."""

    @model_validator(mode="before")
    @classmethod
    def _fill_layer_types(cls, values: dict) -> dict:
        if isinstance(values, dict) and not values.get("layer_types") and isinstance(values.get("n_layers"), int):
            values = {**values, "layer_types": ("full",) * min(values["n_layers"], 10_000)}
        return values

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.n_heads % self.n_kv_heads:
            raise ValueError(f"n_kv_heads ({self.n_kv_heads}) must divide n_heads ({self.n_heads})")
        if len(self.layer_types) != self.n_layers:
            raise ValueError(f"layer_types names {len(self.layer_types)} layers, n_layers is {self.n_layers}")
        if missing := set(self.layer_types) - set(self.layer_specs):
            raise ValueError(f"layer_types names {sorted(missing)[0]!r}, which layer_specs does not describe")
        for name, spec in self.layer_specs.items():
            if (spec.rope is not None) != (self.positions == "rotary"):
                raise ValueError(f"layer_specs.{name}.rope must be given exactly when positions is 'rotary'")
            if spec.rope and int(self.d_head * spec.rope.fraction) % 2:
                raise ValueError(f"rotary positions need an even number of rotated dimensions (d_head {self.d_head})")
        if self.positions == "sinusoidal" and self.d_model % 2:
            raise ValueError(f"sinusoidal positions need an even d_model, not {self.d_model}")
        return self

    def slots(self, layer: int) -> tuple[NormSlot, ...]:
        """The norm slots that layer number ``layer`` fills."""
        own = self.layer_specs[self.layer_types[layer]].norm_slots
        return self.norm_slots if own is None else own
