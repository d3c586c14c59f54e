"""Supervised fine-tuning: what the assistant says, and nothing else, becomes likelier."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

import langwright
from langwright.core.errors import UserError
from langwright.data.rendering import Renderer
from langwright.model.adapters import add_adapters, has_adapters, load_adapter, save_adapter
from langwright.model.checkpoint.hub import resolve
from langwright.model.checkpoint.load import load_model
from langwright.model.model import Model, count_parameters
from langwright.tokenizer.chat import ChatTemplate
from langwright.tokenizer.load import load_tokenizer
from langwright.tokenizer.templates import with_template
from langwright.train.card import WHOLE, Form, RunFacts
from langwright.train.loop import TrainState
from langwright.train.objective import MASKED_LM, to_device
from langwright.train.planning.advice import check_memory
from langwright.train.pretraining import decide
from langwright.train.spread import AS_ONE, Spread
from langwright.train.task import Task
from langwright.train.tuning.config import TuneConfig
from langwright.train.tuning.data import ExampleDescription, TuningData, prepare_examples
from langwright.train.tuning.rows import RowBatches
from langwright.train.validate import Validation, ValidationStopped


def sft(
    config: TuneConfig,
    files: Sequence[Path],
    val_files: Sequence[Path] = (),
    say: Callable[[str], None] = lambda _: None,
    *,
    force: bool = False,
    spread: Spread = AS_ONE,
) -> Task:
    """The task of ``config`` on examples, checked before any work; raises `UserError` for what cannot work."""
    path = resolve(config.base)
    tokenizer = load_tokenizer(path)
    tokenizer = with_template(tokenizer, config.examples.chat_template)
    template = ChatTemplate(tokenizer.chat_template, tokenizer) if tokenizer.chat_template else None
    settings = config.train
    data = prepare_examples(
        files,
        val_files,
        Renderer(tokenizer, template),
        tokenizer,
        config.examples,
        say,
        context=settings.context,
        seed=config.seed,
    )
    if len(data.train.layout) < settings.batch_size:
        raise UserError(
            f"{files[0]}: {len(data.train.examples)} examples fill {len(data.train.layout)} rows of {settings.context} "
            f"tokens, fewer than train.batch_size ({settings.batch_size}); lower it or give more examples"
        )
    config = decide(config, len(data.train.layout), spread.ranks)
    settings = config.train

    def begin() -> Model:
        model = load_model(path, dtype=torch.float32)
        if model.head_kind != "causal_lm":
            raise UserError(f"{config.base}: sft needs a model that writes, and this one has a {model.head_kind} head")
        return model if config.adapter is None else add_adapters(model, config.adapter, config.seed)

    first = [begin()]
    shape = first[0].config
    if data.longest - 1 > shape.max_positions:
        raise UserError(
            f"an example has {data.longest:,} tokens and {config.base} has positions for {shape.max_positions:,}; use "
            f"--train.context {shape.max_positions} with --examples.too-long drop or cut"
        )
    spread.check(settings, shape)
    fit = check_memory(config, shape, say, force=force, spread=spread) if config.adapter is None else None
    description = data.description
    facts = RunFacts(
        config,
        shape,
        tokenizer,
        description,
        files[0].parent,
        card=lambda facts, state: tuning_card(facts, state, description),
        form=WHOLE if config.adapter is None else adapter_form(str(path)),
        more={"base": config.base, "method": config.method},
    )
    return Task(
        facts,
        max(1, len(data.train.layout) // settings.batch_size),
        build=lambda: first.pop() if first else begin(),
        batches=lambda rows: RowBatches(data.train, config.seed, settings.batch_size, rows),
        validate=lambda model, stopping, spread: score(model, data, settings.batch_size, stopping, spread),
        headline=lambda model: headline(facts, data, model),
        objective=MASKED_LM,  # only what is learnt goes through the head
        fit=fit,
    )


def adapter_form(base: str) -> Form:
    """Checkpoints that hold an adapter of ``base`` alone."""

    def write(model: Model, folder: Path) -> None:
        save_adapter(model, folder, base=base)

    def read(folder: Path, model: Model) -> None:
        assert has_adapters(model)
        load_adapter(folder, model)

    return Form(write, read)


@torch.no_grad()
def score(model: Model, data: TuningData, batch_size: int, stopping: Callable[[], bool], spread: Spread) -> Validation:
    """Summed loss of what is learnt in the held-out examples; their bytes are those of that text."""
    model.eval()
    numbers = range(len(data.val.layout))
    starts = range(0, len(numbers), batch_size)
    nll = 0.0
    for batch, counts in spread.deal(data.val.batch(numbers[start : start + batch_size]) for start in starts):
        if stopping():
            raise ValidationStopped
        piece = to_device(batch, model.device)
        loss = spread.run(model, lambda each, piece=piece: MASKED_LM.loss(each, piece))
        nll += loss.item() if counts else 0.0
    [nll] = spread.ranks.total(nll)
    return Validation(nll, data.description.val.trained, data.description.val.bytes)


def headline(facts: RunFacts, data: TuningData, model: Model) -> list[str]:
    """What is about to happen, in three lines."""
    config, settings, about = facts.config, facts.config.train, data.description
    trained = sum(each.numel() for each in model.parameters() if each.requires_grad)
    steps, rows = settings.max_steps or 0, len(data.train.layout)
    return [
        f"model: {count_parameters(model):,} parameters ({facts.model.family}), {trained:,} of them trained, "
        f"{settings.dtype} on {config.device}, {config.threads} threads",
        f"data: {about.train.examples:,} {about.format} examples of {about.train.tokens:,} tokens, "
        f"{about.train.trained:,} of them learnt; {about.val.examples:,} held out",
        f"plan: {steps:,} steps of {settings.batch_size} rows of up to {settings.context} tokens "
        f"({math.ceil(about.train.tokens / rows):,} on average; {steps * settings.batch_size / rows:.2f} epochs)",
    ]


def tuning_card(facts: RunFacts, state: TrainState, data: ExampleDescription) -> str:
    """``README.md`` of a checkpoint: what it is, from what and on what it was tuned, how well it does."""
    config, settings = facts.config, facts.config.train
    assert isinstance(config, TuneConfig)
    adapted = config.adapter is not None
    lines = [
        "---",
        f"base_model: {config.base}" if "/" in config.base and not Path(config.base).exists() else "",
        f"library_name: {'peft' if adapted else 'transformers'}",
        "pipeline_tag: text-generation",
        "---",
        f"# {Path(config.base).name}, fine-tuned",
        "",
        f"{'An adapter (LoRA) for' if adapted else 'All weights of'} {Path(config.base).name}, tuned with Langwright "
        f"{langwright.__version__} to answer as its examples do. It was not tested for safety, and repeats what its "
        "data say.",
        "",
        f"- Data: {', '.join(Path(name).name for name in data.files)} ({data.format}): {data.train.examples:,} "
        f"examples, {data.train.trained:,} of {data.train.tokens:,} tokens learnt; fingerprint "
        f"`{data.fingerprint[:16]}`",
        f"- Training: {state.step:,} steps of {settings.batch_size} x {settings.context} tokens, {settings.optimiser}, "
        f"learning rate {settings.lr:g} ({settings.schedule}), {settings.dtype}, seed {config.seed}",
    ]
    if config.adapter is not None:
        lines.append(f"- Adapter: rank {config.adapter.rank}, alpha {config.adapter.alpha:g}")
    if state.latest is not None:
        lines.append(f"- Held-out answers ({data.val.examples:,}): {state.latest}, after step {state.latest.step:,}")
    lines += ["", "```python", "import langwright as lw", "", 'lw.load("PATH").generate("Hello")', "```"]
    return "\n".join(line for line in lines if line or line == "") + "\n"
