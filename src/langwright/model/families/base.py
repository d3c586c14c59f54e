"""What a family is: a way to read and write its ``config.json``, and a rename table."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from langwright.core.config import explain
from langwright.core.errors import FormatError, UserError
from langwright.model.config import (
    Activation,
    LayerSpec,
    ModelConfig,
    Problem,
    Rope,
)
from langwright.model.heads import HeadKind
from langwright.model.rename import Rule

REQUIRED: Any = object()

# Keys that any config.json may carry and that do not change the arithmetic of a forward.
HARMLESS = frozenset(
    """_attn_implementation _commit_hash _name_or_path architectures attn_implementation auto_map bad_words_ids
    begin_suppress_tokens cache_implementation chunk_size_feed_forward cross_attention_hidden_size
    decoder_start_token_id diversity_penalty do_sample dtype early_stopping encoder_no_repeat_ngram_size
    exponential_decay_length_penalty finetuning_task forced_bos_token_id forced_eos_token_id gradient_checkpointing
    id2label is_composition is_llama_config label2id length_penalty max_length max_new_tokens min_length model_type
    no_repeat_ngram_size num_beam_groups num_beams num_return_sequences output_attentions output_hidden_states
    output_scores prefix problem_type remove_invalid_values repetition_penalty return_dict return_dict_in_generate
    sep_token_id suppress_tokens task_specific_params temperature tf_legacy_loss tie_encoder_decoder tokenizer_class
    top_k top_p torch_dtype torchscript transformers.js_config transformers_version typical_p unsloth_fixed
    unsloth_version use_bfloat16 use_cache""".split()
)

# `transformers` has several names for one function; the first of a kind is the one written.
ACTIVATION_NAMES: dict[str, Activation] = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_accurate": "gelu_tanh",
    "quick_gelu": "quick_gelu",
    "silu": "silu",
    "swish": "silu",
    "relu": "relu",
    "relu2": "relu2",
}
PROBLEM_NAMES: dict[str, Problem] = {
    "single_label_classification": "one",
    "multi_label_classification": "several",
    "regression": "number",
}
LAYER_TYPE_NAMES = {"full_attention": "full", "sliding_attention": "sliding"}

# Fields that only training or pooling reads. A config.json may have no word for them, and the forward is the same.
NOT_IN_FORWARD = frozenset(
    {
        "dropout",
        "embed_dropout",
        "attn_dropout",
        "mlp_dropout",
        "head_dropout",
        "init",
        "init_std",
        "zero_init",
        "pooling",
    }
)


class ConfigReader:
    """Takes values out of a ``config.json`` by name and type; what nobody took is an error.

    A key that is not understood may change what the model computes, so it is refused and named.
    """

    def __init__(self, values: Mapping[str, Any], source: str = "config.json"):
        self.values, self.source = dict(values), source

    def take(self, key: str, default: Any = REQUIRED, kind: type | tuple[type, ...] = int) -> Any:
        """The value of ``key``, checked to be of ``kind``; absent or null gives ``default`` or raises `FormatError`."""
        value = self.values.pop(key, None)
        if value is None:
            if default is REQUIRED:
                raise FormatError(f"{self.source}: {key!r} is missing")
            return default
        kinds = kind if isinstance(kind, tuple) else (kind,)
        fits = isinstance(value, kinds) or (float in kinds and isinstance(value, int))
        if not fits or (isinstance(value, bool) and bool not in kinds):
            raise FormatError(f"{self.source}: {key!r} should be {kinds[0].__name__}, is {value!r:.60}")
        if isinstance(value, int | float) and not -1e18 < value < 1e18:  # also what 1e999 is read as
            raise FormatError(f"{self.source}: {key!r} is out of range: {value!r:.60}")
        return value

    def size(self, key: str, default: Any = REQUIRED) -> int:
        """Like `take`, for a count of things: a positive integer."""
        value = self.take(key, default)
        if value < 1:
            raise FormatError(f"{self.source}: {key!r} should be positive, is {value}")
        return value

    def nullable(self, key: str, absent: Any, kind: type | tuple[type, ...] = int) -> Any:
        """Like `take`, for keys where null means "none" and only absence means the default ``absent``."""
        return self.take(key, None if key in self.values else absent, kind)

    def activation(self, key: str, default: str) -> Activation:
        """The activation that ``key`` names; raises `UserError` for one that is not supported."""
        name = self.take(key, default, str)
        if name not in ACTIVATION_NAMES:
            known = ", ".join(ACTIVATION_NAMES)
            raise UserError(f"{self.source}: {key} = {name!r:.60} is not supported (these are: {known})")
        return ACTIVATION_NAMES[name]

    def layer_types(self, n_layers: int, habit: Callable[[int], str]) -> tuple[str, ...]:
        """The type of every layer, ``full`` or ``sliding``; ``habit(layer)`` when the file does not list them."""
        given = self.take("layer_types", None, list)
        if given is None:
            return tuple(habit(layer) for layer in range(min(n_layers, 10_000)))  # a lying count must not fill memory
        for name in given:
            if not isinstance(name, str) or name not in LAYER_TYPE_NAMES:
                known = ", ".join(LAYER_TYPE_NAMES)
                raise UserError(f"{self.source}: layer type {name!r:.60} is not supported (these are: {known})")
        return tuple(LAYER_TYPE_NAMES[name] for name in given)

    def fixed(self, key: str, *allowed: Any) -> None:
        """``key`` may be absent, null or one of ``allowed``; anything else is a variant that is not supported."""
        value = self.values.pop(key, None)
        if value is not None and value not in allowed:
            raise UserError(f"{self.source}: {key} = {value!r:.60} is not supported (only {allowed[0]!r})")

    def ignore(self, *keys: str) -> None:
        """Drop keys that do not matter to a forward."""
        for key in keys:
            self.values.pop(key, None)

    def token_ids(self) -> dict[str, Any]:
        """bos_id, eos_ids and pad_id, as `ModelConfig` wants them; negative ids mean none."""
        bos, pad = self.take("bos_token_id", None, (int, list)), self.take("pad_token_id", None)
        eos = self.take("eos_token_id", None, (int, list))
        first = bos[0] if isinstance(bos, list) and bos else bos
        ends = eos if isinstance(eos, list) else [] if eos is None else [eos]
        if any(isinstance(end, bool) or not isinstance(end, int) for end in ends):
            raise FormatError(f"{self.source}: 'eos_token_id' should be a number or a list of numbers, is {eos!r:.60}")
        return {
            "bos_id": first if isinstance(first, int) and first >= 0 else None,
            "eos_ids": tuple(end for end in ends if end >= 0),
            "pad_id": pad if pad is not None and pad >= 0 else None,
        }

    def n_labels(self) -> int | None:
        """Number of classifier outputs: ``num_labels`` or the length of ``id2label``."""
        labels = self.values.get("id2label")
        return self.take("num_labels", len(labels) if isinstance(labels, dict) and labels else None)

    def labels(self) -> tuple[str, ...]:
        """The names in ``id2label``, in order; none where they are missing, as good as missing (LABEL_0) or odd."""
        given = self.values.get("id2label")
        names = [given.get(str(n)) for n in range(len(given))] if isinstance(given, dict) else []
        if any(not isinstance(name, str) for name in names) or names == [f"LABEL_{n}" for n in range(len(names))]:
            return ()
        return tuple(str(name) for name in names)

    def finish(self) -> None:
        """Raise `UserError` naming the first key that nobody understood."""
        left = sorted(set(self.values) - HARMLESS)
        if left:
            raise UserError(
                f"{self.source}: key {left[0]!r} (= {self.values[left[0]]!r:.60}) is unknown for this architecture; "
                "it may change what the model computes, so it is not ignored"
            )


@dataclass(frozen=True)
class Family:
    """A line of models that share one ``model_type`` (or a few) and one set of tensor names."""

    name: str
    model_types: tuple[str, ...]
    read: Callable[[ConfigReader], dict[str, Any]]
    """Takes what it knows from the reader; returns the fields of a `ModelConfig`."""
    write: Callable[[ModelConfig], dict[str, Any]]
    """The inverse: the architecture's keys of a ``config.json``."""
    rules: tuple[Rule, ...]
    """Names of the backbone's tensors, with the prefix they have under a head."""
    heads: Mapping[HeadKind, tuple[Rule, ...]]
    architectures: Mapping[HeadKind, str]
    """The name each head has in ``architectures``."""
    prefix: str = ""
    """What a bare backbone's tensor names lack (``transformer.`` for GPT-2)."""
    unused: tuple[str, ...] = field(default=())
    """Regular expressions of tensors that may stand in a file and have no use: stored masks, poolers."""
    older: Mapping[str, str] = field(default_factory=dict)
    """How names of tensors end, and how they end in older files (BERT's ``LayerNorm.gamma``)."""

    def config_from_hf(self, values: Mapping[str, Any], source: str = "config.json") -> ModelConfig:
        """Strictly read a ``config.json``; raises `UserError` or `FormatError` naming the key."""
        reader = ConfigReader(values, source)
        reader.take("architectures", None, list)
        reader.fixed("quantization_config", None)
        reader.fixed("is_encoder_decoder", False)
        reader.fixed("pruned_heads", {})
        try:  # before the token ids are taken, as it may put in those that the family assumes where none are given
            fields = self.read(reader)
        except ValidationError as error:  # a rotary scaling or a layer's window with an impossible number
            raise UserError(f"{source}: {explain(error)}") from error
        fields = {"family": self.name, "n_labels": reader.n_labels(), **reader.token_ids(), **fields}
        if (labels := reader.labels()) and len(labels) == fields["n_labels"]:
            fields["labels"] = labels
        if (problem := values.get("problem_type")) and isinstance(problem, str):
            fields["problem"] = PROBLEM_NAMES.get(problem)
        reader.finish()
        return ModelConfig.parse(fields, source)

    def config_to_hf(self, config: ModelConfig, head: HeadKind) -> dict[str, Any]:
        """A ``config.json`` that `transformers` reads; the inverse of `config_from_hf`.

        Raises `UserError` naming the field when this family's dialect cannot say what ``config`` says.
        """
        eos = list(config.eos_ids)
        common: dict[str, Any] = {
            "architectures": [self.architectures[head]] if head in self.architectures else [],
            "model_type": self.model_types[0],
            "bos_token_id": config.bos_id,
            "eos_token_id": eos[0] if len(eos) == 1 else eos or None,
            "pad_token_id": config.pad_id,
        }
        if config.n_labels is not None:
            names = config.labels or tuple(f"LABEL_{n}" for n in range(config.n_labels))
            common["id2label"] = {str(n): name for n, name in enumerate(names)}
            common["label2id"] = {name: n for n, name in enumerate(names)}
        if config.problem is not None:
            common["problem_type"] = next(name for name, ours in PROBLEM_NAMES.items() if ours == config.problem)
        values = common | self.write(config)
        self._check_written(config, values, head)
        return values

    def _check_written(self, config: ModelConfig, values: Mapping[str, Any], head: HeadKind) -> None:
        """Read ``values`` back: a field that this dialect has no word for must not be lost in silence."""
        again = self.config_from_hf(values)
        unread = NOT_IN_FORWARD - {"pooling"} if head == "sequence_classifier" else NOT_IN_FORWARD
        for name in ModelConfig.model_fields:
            if name not in unread and getattr(again, name) != getattr(config, name):
                raise UserError(
                    f"a {self.name} config.json cannot say {name} = {getattr(config, name)!r:.80}; "
                    "change it, or write the model with family 'langwright'"
                )

    def head_of(self, values: Mapping[str, Any]) -> HeadKind | None:
        """Which head a ``config.json`` was written with, by its ``architectures``; None if it does not say."""
        names = values.get("architectures")
        names = names if isinstance(names, list) else []
        return next((head for head, name in self.architectures.items() if name in names), None)


def layer_specs(
    types: Sequence[str], window: int | None, full: Rope, sliding: Rope, source: str
) -> dict[str, LayerSpec]:
    """What each of the ``types`` in use is; ``full`` and ``sliding`` are their rotary settings.

    Raises `UserError` when layers slide and no ``window`` is given.
    """
    if "sliding" in types and window is None:
        raise UserError(f"{source}: layer_types has sliding_attention, but sliding_window is not given (or not in use)")
    known = {"full": LayerSpec(rope=full), "sliding": LayerSpec(window=window, rope=sliding)}
    return {name: spec for name, spec in known.items() if name in types}


def write_layer_types(types: Sequence[str]) -> list[str]:
    """The inverse of `ConfigReader.layer_types`; raises `UserError` for a type without a name there."""
    names = {ours: theirs for theirs, ours in LAYER_TYPE_NAMES.items()}
    if unknown := [name for name in types if name not in names]:
        raise UserError(f"layer type {unknown[0]!r} has no name in a Hugging Face config.json (only full and sliding)")
    return [names[name] for name in types]


def write_activation(name: Activation) -> str:
    """The first of the names that `ConfigReader.activation` takes for it."""
    return next(theirs for theirs, ours in ACTIVATION_NAMES.items() if ours == name)
