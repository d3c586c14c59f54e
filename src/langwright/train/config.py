"""What a training run is, as data: the architecture and the settings of the loop, filled from recipes in TOML."""

from collections.abc import Mapping
from importlib.resources import as_file, files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator

from langwright.core.config import Frozen, merge, nest, read_toml
from langwright.core.errors import UserError
from langwright.model.config import Activation, LayerSpec, ModelConfig, NormKind, NormSlot, PositionKind, Rope

Positive = Annotated[int, Field(gt=0)]
Count = Annotated[int, Field(ge=0)]
Rate = Annotated[float, Field(ge=0, lt=1)]
Share = Annotated[float, Field(ge=0, le=1)]


class Architecture(Frozen):
    """A `ModelConfig` but for what the data decides: the size of the vocabulary and the special tokens."""

    family: str = "llama"
    """Whose `config.json` the model is saved with: llama, qwen3, gpt2, vanilla, ..., or langwright for any mixture."""
    d_model: Positive
    """Width of the residual stream."""
    n_layers: Positive
    """Number of blocks."""
    n_heads: Positive
    """Attention heads in a block."""
    n_kv_heads: Positive | None = None
    """Key and value heads; default: as many as n_heads."""
    d_head: Positive | None = None
    """Width of a head; default: d_model / n_heads."""
    d_mlp: Positive | None = None
    """Inner width of the MLP; default: 4 d_model, or 8/3 d_model rounded up to a multiple of 64 when gated."""
    max_positions: Positive | None = None
    """Longest sequence the model is made for; default: the context it is trained with."""
    vocab_multiple: Positive = 1
    """The vocabulary is padded up to a multiple of this (64 suits matrix kernels)."""
    causal: bool = True
    """Predict the next token; if not, the model sees both sides and learns to tell tokens that are masked."""
    positions: PositionKind = "rotary"
    """How the model knows the order of tokens."""
    rope_theta: float = Field(default=10_000.0, gt=0)
    """Base of the rotary frequencies."""
    position_offset: Count = 0
    """Rows of a learned position table before the first one in use (RoBERTa: id of [PAD] + 1)."""
    n_types: Count = 0
    """Size of the segment embedding (BERT: 2)."""
    embed_scale: float = 1.0
    """Token embeddings are multiplied by this."""
    embed_norm: bool = False
    """A norm after the embeddings."""
    norm: NormKind = "rmsnorm"
    """Kind of normalisation."""
    norm_eps: float = Field(default=1e-5, gt=0)
    """Added to the variance inside the norms."""
    norm_bias: bool = False
    """Whether LayerNorm has a bias."""
    norm_slots: tuple[NormSlot, ...] = ("attn_in", "mlp_in")
    """Where norms stand: before (in), after (out), or after the addition to the stream (res)."""
    final_norm: bool = True
    """A norm between the last block and the head."""
    parallel_residual: bool = False
    """Attention and MLP read the same input."""
    activation: Activation = "silu"
    """Non-linearity of the MLP."""
    gated: bool = True
    """Gated MLP (SwiGLU with silu)."""
    qkv_bias: bool = False
    """Biases of the query, key and value projections."""
    o_bias: bool = False
    """Bias of attention's output projection."""
    mlp_bias: bool = False
    """Biases of the MLP."""
    qk_norm: bool = False
    """Normalise queries and keys."""
    logit_softcap: float | None = Field(default=None, gt=0)
    """Cap logits at +- this, softly."""
    tie_embeddings: bool = True
    """The head shares the token embedding."""
    head_bias: bool = False
    """Bias of the head."""
    head_activation: Activation = "gelu"
    """Non-linearity of the dense layer in a masked model's head."""
    head_dense_bias: bool = True
    """Its bias."""
    classifier: Literal["linear", "tanh", "act_norm"] = "linear"
    """What a classifier made of this model will have before its last layer."""
    classifier_bias: bool = False
    """Bias of that last layer."""
    layer_types: tuple[str, ...] = ()
    """Type of every layer, for mixtures; empty: all alike."""
    layer_specs: dict[str, LayerSpec] | None = None
    """What each type of layer does (window, rope); default: full attention."""
    dropout: Rate = 0.0
    """Dropout on embeddings and on what attention and MLP add to the stream."""
    attn_dropout: Rate = 0.0
    """Dropout on the attention pattern."""
    mlp_dropout: Rate = 0.0
    """Dropout inside the MLP."""
    init: Literal["normal", "tutorial"] = "normal"
    """How weights begin: GPT-2's scheme, or that of PyTorch's tutorial."""
    init_std: float = Field(default=0.02, gt=0)
    """Standard deviation of fresh weights."""
    zero_init: bool = False
    """Projections back into the stream, and an untied head, begin at zero."""

    def build(
        self,
        *,
        vocab_size: int,
        context: int,
        bos_id: int | None = None,
        eos_ids: tuple[int, ...] = (),
        pad_id: int | None = None,
    ) -> ModelConfig:
        """The `ModelConfig` for that vocabulary and sequences of ``context``; raises `UserError` naming the field."""
        if self.d_head is None and self.d_model % self.n_heads:
            raise UserError(
                f"model.n_heads ({self.n_heads}) must divide model.d_model ({self.d_model}), or set model.d_head"
            )
        max_positions = self.max_positions or context
        if max_positions < context:
            raise UserError(
                f"model.max_positions ({max_positions}) is less than train.context ({context}); raise the first"
            )
        rope = Rope(theta=self.rope_theta) if self.positions == "rotary" else None
        values = self.model_dump(exclude={"vocab_multiple", "rope_theta", "layer_specs"}) | {
            "n_kv_heads": self.n_kv_heads or self.n_heads,
            "d_head": self.d_head or self.d_model // self.n_heads,
            "d_mlp": self.d_mlp or (round_up(self.d_model * 8 // 3, 64) if self.gated else 4 * self.d_model),
            "max_positions": max_positions,
            "vocab_size": round_up(vocab_size, self.vocab_multiple),
            "layer_specs": self.layer_specs or {"full": LayerSpec(rope=rope)},
            "bos_id": bos_id,
            "eos_ids": eos_ids,
            "pad_id": pad_id,
        }
        return ModelConfig.parse(values, "model")


class LoopSettings(Frozen):
    """How the model is trained. A step is one update of the weights."""

    max_steps: Positive | None = None
    """Steps in all; default: as many as `epochs` takes."""
    epochs: float | None = Field(default=None, gt=0)
    """Passes over the training tokens, where max_steps is not given."""
    batch_size: Positive
    """Sequences a step."""
    micro_batch_size: Positive | None = None
    """Sequences that go through the model at once; smaller ones save memory and give the same result. Default: all."""
    context: Positive
    """Tokens in a sequence."""
    packing: Literal["stream", "documents"] = "stream"
    """A sequence is a piece of the stream as it comes, or its documents neither see nor count each other."""
    fim_rate: Share = 0.0
    """Share of documents that are rearranged so that the model learns to fill in the middle."""
    fim_spm: Share = 0.5
    """Share of these in the order suffix, prefix, middle; the others: prefix, suffix, middle."""
    fim_lines: bool = False
    """Cut only where a line, or what is indented in it, begins: for code."""
    mask_rate: float = Field(default=0.15, gt=0, lt=1)
    """Share of tokens that are hidden from a masked model (model.causal = false); ModernBERT has 0.3."""
    mask_random: Share = 0.1
    """Share of the hidden tokens that become any other token."""
    mask_keep: Share = 0.1
    """Share of the hidden tokens that stay; the rest become [MASK]."""
    mask_words: bool = False
    """Hide whole words."""

    lr: float = Field(gt=0)
    """Learning rate at its highest."""
    schedule: Literal["cosine", "wsd", "constant", "step"] = "cosine"
    """What follows the warm-up: a cosine, stable and then a straight decay (wsd), nothing, or a factor every epoch."""
    warmup_steps: Count = 0
    """The rate rises in a straight line over this many steps, but never over more than half of the run."""
    min_lr_ratio: Share = 0.1
    """The last step's rate over the highest (cosine and wsd)."""
    decay_fraction: Share = 0.2
    """Share of all steps in which wsd decays."""
    gamma: float = Field(default=0.95, gt=0, le=1)
    """The step schedule multiplies the rate by this after every epoch."""

    optimiser: Literal["adamw", "muon", "sgd"] = "adamw"
    """AdamW (Loshchilov & Hutter 2019), Muon for the layers' matrices and AdamW for the rest, or gradient descent."""
    embed_lr_ratio: float = Field(default=1.0, gt=0)
    """The rate of embeddings that are not also the head, over lr."""
    head_lr_ratio: float = Field(default=1.0, gt=0)
    """The rate of the head, over lr."""
    lora_b_lr_ratio: float = Field(default=1.0, gt=0)
    """The rate of adapters' B, over lr, which is that of A (LoRA+: 16; Hayou et al. 2024, arXiv:2402.12354)."""
    vector_lr_ratio: float = Field(default=1.0, gt=0)
    """The rate of norms and biases, over lr."""
    betas: tuple[Rate, Rate] = (0.9, 0.95)
    """AdamW's averaging of gradients and of their squares."""
    eps: float = Field(default=1e-8, gt=0)
    """AdamW's addition to the denominator."""
    momentum: Rate = 0.0
    """Of gradient descent; Muon's is 0.95."""
    weight_decay: float = Field(default=0.1, ge=0)
    """Shrinks matrices; never biases, norms, or tables that are not also the head."""
    grad_clip: float = Field(default=1.0, ge=0)
    """Gradients longer than this are scaled down to it; 0 leaves them."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of the arithmetic (weights are kept in float32); auto: bfloat16 where the hardware multiplies it."""

    eval_every: Count = 100
    """Steps between validations; 0: only before and after training."""
    eval_tokens: Positive | None = 65_536
    """Validate on about this many tokens from all over the validation text; None: on all."""
    sample_every: Count = 0
    """Steps between samples of text; 0: none."""
    sample_prompt: str = ""
    """What samples continue."""
    save_every: Count = 500
    """Steps between checkpoints; 0: only at the end and when interrupted."""
    keep: Positive = 3
    """Checkpoints that stay; older ones are deleted after a new one is committed."""
    keep_every: Count = 0
    """Checkpoints of every so many steps stay as well; 0: none do."""
    keep_best: bool = False
    """The checkpoint with the best validation of its own step stays as well, under OUT/best."""
    save_in_background: bool = True
    """Write checkpoints while training goes on, from a copy in memory (as large as weights and optimiser)."""
    grace_seconds: float = Field(default=10.0, ge=0)
    """After Ctrl-C or SIGTERM: if the pass at hand takes longer, the state before it is saved meanwhile."""
    verify_data: bool = True
    """Check every file of the data against its SHA-256 before training."""
    loader_workers: Count = 0
    """Threads that make batches ahead of time; 0: made when needed. The batches are the same."""

    on_bad_step: Literal["skip", "rewind", "stop"] = "skip"
    """A loss or gradient that is not finite, or leaps: leave that step out, go back to a checkpoint, or stop."""
    pass_over: Positive = 1
    """When going back: the batches of so many steps, up to the bad one, are passed over."""
    spike_norm: float | None = Field(default=None, gt=1)
    """A gradient norm over this many times the median of the last steps is a leap; None: never."""
    spike_loss: float | None = Field(default=None, gt=0)
    """A loss this many nats over the median of the last steps is a leap; None: never."""
    spike_window: Positive = 100
    """Steps of that median; nothing is a leap before so many were taken."""
    log_every: Positive = 10
    """Steps between lines of the log."""

    @field_validator("micro_batch_size")
    @classmethod
    def _micro_batch_fits(cls, size: int | None, info: ValidationInfo) -> int | None:
        batch = info.data.get("batch_size")
        if size is not None and batch is not None and size > batch:
            raise ValueError(f"is more than batch_size ({batch})")
        return size

    @field_validator("mask_keep")
    @classmethod
    def _shares_fit(cls, keep: float, info: ValidationInfo) -> float:
        if keep + info.data.get("mask_random", 0.0) > 1:
            raise ValueError("and mask_random are more than 1 together")
        return keep

    @field_validator("epochs")
    @classmethod
    def _has_an_end(cls, epochs: float | None, info: ValidationInfo) -> float | None:
        if epochs is None and "max_steps" in info.data and info.data["max_steps"] is None:
            raise ValueError("give max_steps or epochs, or training has no end")
        return epochs


class ParallelSettings(Frozen):
    """How a run is spread over the processes that torchrun started. For a process alone only the last two matter."""

    kind: Literal["auto", "none", "ddp", "fsdp"] = "auto"
    """Weights and optimiser whole on every process (ddp) or in shares (fsdp); auto: ddp, or fsdp with tensor."""
    tensor: Positive = 1
    """Processes among which the matrices of a block are divided; needs fsdp."""
    whole_checkpoints: bool = True
    """With fsdp: every checkpoint has the whole model beside the shares, not only the last; OUT/last needs it."""
    checkpoint_activations: bool = False
    """Compute blocks again in the backward instead of keeping what they computed: less memory, a third more work."""
    compile: bool = False
    """Compile every block with torch.compile; pays on GPUs."""

    @field_validator("tensor")
    @classmethod
    def _tensor_needs_shares(cls, ways: int, info: ValidationInfo) -> int:
        if ways > 1 and info.data.get("kind") in ("none", "ddp"):
            raise ValueError(f"needs kind fsdp, not {info.data['kind']}")
        return ways


class RunConfig(Frozen):
    """What every run says, whatever it learns."""

    train: LoopSettings
    """The loop."""
    parallel: ParallelSettings = ParallelSettings()
    """Several processes."""
    seed: Count = 0
    """Decides the first weights, the order of the data and dropout."""
    device: str = "auto"
    """cpu, cuda, cuda:1, mps, or auto."""
    threads: Positive | None = None
    """CPU threads; default: every core."""
    track: Literal["wandb", "mlflow"] | None = None
    """Send figures to Weights & Biases or MLflow as well, as their own settings say."""


class TrainConfig(RunConfig):
    """A pretraining run."""

    model: Architecture
    """The architecture."""


def list_recipes() -> list[str]:
    """The names of the recipes that come with the package."""
    return sorted(entry.name.removesuffix(".toml") for entry in _recipes().iterdir() if entry.name.endswith(".toml"))


def load_recipe(name_or_path: str, overrides: Mapping[str, Any] | None = None) -> TrainConfig:
    """A recipe by name, or a TOML file by path, with ``overrides`` laid on it.

    Overrides are nested (``{"train": {"lr": 1e-3}}``), dotted (``{"train.max-steps": 10}``) or both. Raises `UserError`
    naming every wrong key.
    """
    path = Path(name_or_path)
    if name_or_path in list_recipes():
        with as_file(_recipes() / f"{name_or_path}.toml") as file:
            values = read_toml(file)
    elif path.suffix == ".toml" or path.exists():
        values = read_toml(path)
    else:
        raise UserError(
            f"recipe {name_or_path!r} is unknown; use {', '.join(list_recipes())} or the path of a .toml file"
        )
    for key, value in (overrides or {}).items():
        values = merge(values, nest(key, value))
    return TrainConfig.parse(values, f"recipe {name_or_path}")


def round_up(number: int, multiple: int) -> int:
    """The least multiple of ``multiple`` that is not below ``number``."""
    return -(-number // multiple) * multiple


def _recipes() -> Traversable:
    return files("langwright.train") / "recipes"
