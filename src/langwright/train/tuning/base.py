"""The model that tuning begins with."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from langwright.core.errors import UserError
from langwright.model.adapters import add_adapters, has_adapters, load_adapter, save_adapter
from langwright.model.adapters.attach import CLASSIFIERS
from langwright.model.checkpoint.hub import resolve
from langwright.model.checkpoint.load import load_model
from langwright.model.checkpoint.save import save_pooling
from langwright.model.config import ModelConfig
from langwright.model.families import FAMILIES
from langwright.model.heads import EmbeddingHead, HeadKind
from langwright.model.model import Model, count_parameters, with_head
from langwright.tokenizer.chat import ChatTemplate
from langwright.tokenizer.load import load_tokenizer
from langwright.tokenizer.sentinels import with_sentinels
from langwright.tokenizer.template_choice import read_template, with_template
from langwright.tokenizer.tokenizer import Tokenizer
from langwright.train.card import WHOLE, Described, Form, RunFacts
from langwright.train.loop import TrainState
from langwright.train.spread import Spread
from langwright.train.tuning.config import TuneConfig


@dataclass(frozen=True)
class Start:
    """A model, its tokenizer with the template to be used, and how checkpoints hold what is trained."""

    tokenizer: Tokenizer
    template: ChatTemplate | None
    load: Callable[[], Model]
    """The model as it is, in float32 on the CPU."""
    begin: Callable[[], Model]
    """The model as tuning begins: with adapters, where there are any."""
    form: Form

    @property
    def pad_id(self) -> int:
        """Fills rows up; it is read by nobody."""
        return self.tokenizer.pad_id if self.tokenizer.pad_id is not None else 0


def open_base(config: TuneConfig, change: Callable[[Model], Model] | None = None) -> Start:
    """What ``config.base`` names, ``change``d where that is given.

    Raises `UserError` for a template that is wrong, and unless it is changed for a model that does not write.
    """
    path = resolve(config.base)
    tokenizer, chosen = load_tokenizer(path), config.examples.chat_template
    if chosen is not None:
        tokenizer = with_template(tokenizer, read_template(chosen))
    if config.examples.sentinels:
        tokenizer = with_sentinels(tokenizer, config.examples.sentinels)
    template = ChatTemplate(tokenizer.chat_template, tokenizer) if tokenizer.chat_template else None
    adapter = config.adapter

    def load() -> Model:
        model = load_model(path, dtype=torch.float32)
        if change is not None:
            return change(model)
        if model.head_kind != "causal_lm":
            raise UserError(
                f"{config.base}: {config.method} needs a model that writes, and this one has a {model.head_kind} head"
            )
        if tokenizer.vocab_size > model.config.vocab_size:
            raise UserError(
                f"{config.base}: its tokenizer has {tokenizer.vocab_size:,} ids and the model knows "
                f"{model.config.vocab_size:,}; put the model's own tokenizer beside it"
            )
        return model

    def begin() -> Model:
        return load() if adapter is None else add_adapters(load(), adapter, config.seed)

    return Start(tokenizer, template, load, begin, WHOLE if adapter is None else adapter_form(config.base))


def gather_facts(
    config: TuneConfig,
    start: Start,
    model: ModelConfig,
    about: Described,
    files: Sequence[Path],
    card: Callable[[RunFacts, TrainState], str],
) -> RunFacts:
    """What does not change while the run of ``config`` goes on."""
    more = {"base": config.base, "method": config.method}
    return RunFacts(config, model, start.tokenizer, about, files[0].parent, card=card, form=start.form, more=more)


def check_positions(config: TuneConfig, model: ModelConfig, longest: int) -> None:
    """Raise `UserError` where the ``longest`` sequence has more tokens than the model has positions for."""
    if longest > model.max_positions:
        raise UserError(
            f"an example has {longest + 1:,} tokens and {config.base} has positions for {model.max_positions:,}; use "
            f"--train.context {model.max_positions} with --examples.too-long drop or cut"
        )


def open_headed(config: TuneConfig) -> Start:
    """What ``config.base`` names, whatever its head, which is to be another one (`headed`)."""
    path = resolve(config.base)
    form = WHOLE if config.adapter is None else adapter_form(config.base)

    def load() -> Model:
        return load_model(path, dtype=torch.float32)

    return Start(load_tokenizer(path), None, load, load, form)


def headed(
    start: Start, config: TuneConfig, head: HeadKind, labels: tuple[str, ...] = (), **fields: Any
) -> tuple[Start, Model]:
    """``start`` with a fresh ``head`` in place of the model's own, and a model that begins so.

    A classifier's head is trained beside adapters. Raises `UserError` where the family has no words for such a model,
    and where ``train.context`` is more than it reads.
    """
    adapter = config.adapter
    if adapter is not None and head in CLASSIFIERS:
        adapter = adapter.replace(train_head=True)

    def begin() -> Model:
        model = start.load()
        if head == "embedding":
            fields["pooling"] = config.embedding.pooling or model.config.pooling or "mean"
        model = with_head(model, head, labels, config.seed, **fields)
        return model if adapter is None else add_adapters(model, adapter, config.seed)

    model = begin()
    shape, context = model.config, config.train.context
    family = FAMILIES[shape.family]
    if head not in family.heads:
        raise UserError(f"{config.base}: a {family.name} checkpoint has no {head} head; use another model")
    family.config_to_hf(shape, head)
    if context > shape.max_positions:
        raise UserError(f"train.context is {context} and {config.base} has positions for {shape.max_positions}")
    return replace(start, begin=begin), model


def foretell(facts: RunFacts, model: Model, data: str, what: str, entries: int) -> list[str]:
    """What is about to happen, in three lines: the model, the ``data``, and how many batches of ``what`` there are."""
    config, settings = facts.config, facts.config.train
    trained = sum(each.numel() for each in model.parameters() if each.requires_grad)
    steps = settings.max_steps or 0
    return [
        f"model: {count_parameters(model):,} parameters ({facts.model.family}), {trained:,} of them trained, "
        f"{settings.dtype} on {config.device}, {config.threads} threads",
        f"data: {data}",
        f"plan: {steps:,} steps of {settings.batch_size} {what} ({steps * settings.batch_size / entries:.2f} epochs)",
    ]


def check_layout(config: TuneConfig, spread: Spread) -> None:
    """Raise `UserError` for ranks that cannot do this: fsdp cuts what an adapter's file and a comparison need whole."""
    if config.method == "embed" and not spread.ranks.alone:
        raise UserError(
            f"tune embed compares all texts of a batch, which {spread.ranks.size} processes do not share yet; start one"
        )
    if spread.kind != "fsdp" or (config.adapter is None and config.method in ("sft", "distil", "classify", "tag")):
        return
    what = "adapters" if config.adapter is not None else f"the answers that {config.method} compares"
    raise UserError(f"parallel.kind fsdp does not go with {what} yet; use ddp")


def adapter_form(base: str) -> Form:
    """Checkpoints that hold an adapter of ``base`` alone.

    A name or hub id is written as it was given, so that the adapter can be used elsewhere; a path is made absolute.
    """
    here = Path(base).expanduser()
    base = str(here.resolve()) if here.exists() else base

    def write(model: Model, folder: Path) -> None:
        save_adapter(model, folder, base=base)
        if isinstance(model.head, EmbeddingHead):
            save_pooling(model.head.pooling, model.config, folder)

    def read(folder: Path, model: Model) -> None:
        assert has_adapters(model)
        load_adapter(folder, model)

    return Form(write, read)
