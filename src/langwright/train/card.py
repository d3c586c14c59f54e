"""What a checkpoint says of itself: ``langwright.json`` for programs, a model card for people."""

import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal, Protocol

import torch

import langwright
from langwright.data.description import DataDescription
from langwright.model.checkpoint.load import load_model
from langwright.model.checkpoint.save import save_model
from langwright.model.config import ModelConfig
from langwright.model.model import Model, count_parameters
from langwright.tokenizer.tokenizer import Tokenizer
from langwright.train.config import RunConfig
from langwright.train.loop import TrainState

OWN_FAMILIES = ("vanilla", "langwright")
"""Families that only this program reads."""


class Described(Protocol):
    """What is known of the data of a run; equal data have equal fingerprints."""

    @property
    def fingerprint(self) -> str:
        """SHA-256 over all that is learnt from."""
        ...

    def model_dump(self, *, mode: Literal["json"]) -> dict[str, Any]:
        """As JSON."""
        ...


@dataclass(frozen=True)
class Form:
    """How a model lies in a checkpoint's folder: `write` it there, `read` it from there into a model of its kind."""

    write: Callable[[Model, Path], None]
    read: Callable[[Path, Model], None]


def _write_whole(model: Model, folder: Path) -> None:
    save_model(model, folder)


def _read_whole(folder: Path, model: Model) -> None:
    model.load_state_dict(load_model(folder, device=model.device).state_dict())


WHOLE = Form(_write_whole, _read_whole)
"""All weights."""


@dataclass(frozen=True)
class RunFacts:
    """What does not change while a run goes on."""

    config: RunConfig
    model: ModelConfig
    tokenizer: Tokenizer
    data: Described
    data_folder: Path
    """Where the data were; only to find them again."""
    card: "Callable[[RunFacts, TrainState], str]"
    """The model card of a checkpoint."""
    form: Form = WHOLE
    more: Mapping[str, Any] = field(default_factory=dict)
    """What else ``langwright.json`` says, by key."""


def describe_run(facts: RunFacts, state: TrainState) -> dict[str, Any]:
    """The content of ``langwright.json``."""
    return {
        "format": "langwright-checkpoint",
        "version": 1,
        "step": state.step,
        "metrics": None if state.latest is None else state.latest.model_dump(exclude_none=True),
        "config": facts.config.model_dump(mode="json"),
        "model": facts.model.model_dump(mode="json"),
        "parameters": count_parameters(state.model),
        "tokenizer": facts.tokenizer.fingerprint,
        "data": facts.data.model_dump(mode="json"),
        "plan": None if state.outlook is None else state.outlook.model_dump(mode="json"),
        "data_folder": str(facts.data_folder.resolve()),
        "software": {"langwright": langwright.__version__, "revision": package_revision(), "torch": torch.__version__},
    } | dict(facts.more)


@cache
def package_revision() -> str | None:
    """The git commit of this package where it runs from a checkout, with ``+`` when files differ from it."""
    root = Path(langwright.__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    try:
        command = ["git", "-C", str(root), "describe", "--always", "--abbrev=40", "--dirty=+", "--exclude=*"]
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip() or None
    except (OSError, subprocess.SubprocessError):
        return None


def pretraining_card(facts: RunFacts, state: TrainState, data: DataDescription) -> str:
    """``README.md`` of a checkpoint: what it is, what it was trained on, how well it does, how to load it."""
    settings, model = facts.config.train, facts.model
    own = model.family in OWN_FAMILIES
    aim = "continue text" if model.causal else "tell masked tokens from both sides"
    sources = ", ".join(Path(source.path).name for source in data.sources)
    lines = [
        "---",
        f"library_name: {'langwright' if own else 'transformers'}",
        f"pipeline_tag: {'text-generation' if model.causal else 'fill-mask'}",
        "---",
        f"# A {model.family} language model of {count_parameters(state.model):,} parameters",
        "",
        f"Trained from fresh weights with Langwright to {aim}. It is tuned neither to follow instructions nor",
        "to be safe, and repeats what its data say.",
        "",
        f"- Architecture: {model.n_layers} layers of width {model.d_model}, {model.n_heads} heads, vocabulary of "
        f"{model.vocab_size:,}, sequences of {model.max_positions} tokens",
        f"- Data: {sources} ({data.train.tokens:,} training tokens in {data.train.documents:,} documents); fingerprint "
        f"`{data.fingerprint[:16]}`",
        f"- Training: {state.step:,} steps of {settings.batch_size} x {settings.context} tokens ({state.tokens:,}, "
        f"{state.tokens / data.train.tokens:.2f} epochs), {settings.optimiser}, learning rate {settings.lr:g} "
        f"({settings.schedule}), {settings.dtype}, seed {facts.config.seed}",
    ]
    if state.latest is not None:
        lines.append(f"- Held-out text: {state.latest} (a token), after step {state.latest.step:,}")
    use = 'generate("Once")' if model.causal else 'embed(["Once", "Twice"])'
    lines += ["", "```python", "import langwright as lw", "", f'lw.load("PATH").{use}', "```"]
    if not own:
        name = "AutoModelForCausalLM" if model.causal else "AutoModelForMaskedLM"
        lines += ["", "or", "", "```python", f"from transformers import {name}, AutoTokenizer", ""]
        lines += [f'{name}.from_pretrained("PATH"), AutoTokenizer.from_pretrained("PATH")', "```"]
    return "\n".join(lines) + "\n"
