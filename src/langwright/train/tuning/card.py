"""Model cards of tuned models: ``README.md`` of a checkpoint."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import langwright
from langwright.train.card import RunFacts
from langwright.train.loop import TrainState
from langwright.train.tuning.config import TuneConfig

if TYPE_CHECKING:
    from langwright.train.tuning.data import ExampleDescription
    from langwright.train.tuning.feedback import FeedbackDescription
    from langwright.train.tuning.framing import TextDescription
    from langwright.train.tuning.pairs import PairDescription
    from langwright.train.tuning.problems import ProblemDescription


def sft_card(facts: RunFacts, state: TrainState, about: "ExampleDescription") -> str:
    """Of a model that learnt to answer."""
    data = (
        f"{_names(about.files)} ({about.format}): {about.train.examples:,} examples, {about.train.trained:,} of "
        f"{about.train.tokens:,} tokens learnt; fingerprint `{about.fingerprint[:16]}`"
    )
    config = _config(facts)
    aim = f" and as {Path(config.distil.teacher).name} would, its teacher" if config.method == "distil" else ""
    return _card(facts, state, f"to answer as its examples do{aim}", data, f"Held-out answers ({about.val.examples:,})")


def preference_card(facts: RunFacts, state: TrainState, about: "PairDescription") -> str:
    """Of a model that learnt which answers are preferred."""
    config = _config(facts)
    data = f"{_names(about.files)}: {about.train:,} pairs of answers; fingerprint `{about.fingerprint[:16]}`"
    aim = f"to prefer the chosen answers of its data ({config.method}, beta {config.preference.beta:g})"
    return _card(facts, state, aim, data, f"Held-out pairs ({about.val:,})")


def feedback_card(facts: RunFacts, state: TrainState, about: "FeedbackDescription") -> str:
    """Of a model that learnt from answers found good or bad."""
    config = _config(facts)
    data = (
        f"{_names(about.files)}: {about.good:,} good answers and {about.bad:,} bad ones; fingerprint "
        f"`{about.fingerprint[:16]}`"
    )
    aim = f"to give answers like those found good in its data ({config.method}, beta {config.preference.beta:g})"
    return _card(facts, state, aim, data, f"Held-out answers ({about.val:,})")


def reward_card(facts: RunFacts, state: TrainState, about: "PairDescription") -> str:
    """Of a model that tells how good an answer is."""
    data = f"{_names(about.files)}: {about.train:,} pairs of answers; fingerprint `{about.fingerprint[:16]}`"
    aim = "to score answers so that those chosen in its data stand above those rejected; only differences between "
    aim += "answers to one prompt mean something"
    use = 'reward([{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}])'
    return _card(facts, state, aim, data, f"Held-out pairs ({about.val:,})", use=use)


def problem_card(facts: RunFacts, state: TrainState, about: "ProblemDescription") -> str:
    """Of a model that learnt from answers that were checked."""
    settings = _config(facts).grpo
    data = f"{_names(about.files)}: {about.train:,} problems; fingerprint `{about.fingerprint[:16]}`"
    named = ", ".join(f"{name} x {weight:g}" for name, weight in settings.rewards.items())
    aim = (
        f"to give answers that are rewarded ({named}; GRPO, {settings.group} answers a problem, beta {settings.beta:g})"
    )
    return _card(facts, state, aim, data, f"Held-out problems ({about.val:,})")


def classifier_card(facts: RunFacts, state: TrainState, about: "TextDescription") -> str:
    """Of a model that learnt labels."""
    shown = ", ".join(about.labels[:12]) + (", ..." if len(about.labels) > 12 else "")
    aim = {
        "several": f"to tell which of {len(about.labels)} labels ({shown}) a text has, several or none",
        "number": "to tell a number of a text",
    }.get(
        facts.model.problem or "",
        f"to tell {len(about.labels)} labels ({shown}); it answers with one of them whatever it is given",
    )
    use = "rate" if facts.model.problem == "number" else "classify"
    data = f"{_names(about.files)}: {about.train:,} texts; fingerprint `{about.fingerprint[:16]}`"
    return _card(facts, state, aim, data, f"Held-out texts ({about.val:,})", use=f'{use}(["a text"])')


def tagger_card(facts: RunFacts, state: TrainState, about: "TextDescription") -> str:
    """Of a model that learnt to label words."""
    shown = ", ".join(about.labels[:12]) + (", ..." if len(about.labels) > 12 else "")
    data = f"{_names(about.files)}: {about.train:,} texts; fingerprint `{about.fingerprint[:16]}`"
    aim = f"to give every word of a text one of {len(about.labels)} tags ({shown})"
    return _card(facts, state, aim, data, f"Held-out texts ({about.val:,})", use='tag(["a text"])')


def embedding_card(facts: RunFacts, state: TrainState, about: "TextDescription") -> str:
    """Of a model that learnt which texts are alike."""
    data = f"{_names(about.files)}: {about.train:,} pairs of texts; fingerprint `{about.fingerprint[:16]}`"
    aim = "to give texts that belong together like vectors, and others unlike ones"
    return _card(facts, state, aim, data, f"Held-out pairs ({about.val:,})", use='embed(["a text", "another"])')


PIPELINES = {
    "classify": "text-classification",
    "tag": "token-classification",
    "embed": "sentence-similarity",
    "reward": "text-classification",
}
"""What the hub calls what a model does; all others generate text."""


def _card(
    facts: RunFacts, state: TrainState, aim: str, data: str, held_out: str, use: str = 'generate("Hello")'
) -> str:
    config, settings = _config(facts), facts.config.train
    name, adapter = Path(config.base).name, config.adapter
    whole = "sentence-transformers" if config.method == "embed" else "transformers"
    front = [f"library_name: {whole if adapter is None else 'peft'}"]
    front.append(f"pipeline_tag: {PIPELINES.get(config.method, 'text-generation')}")
    if "/" in config.base and not Path(config.base).exists():
        front.append(f"base_model: {config.base}")
    lines = [
        *("---", *front, "---"),
        f"# {name}, tuned",
        "",
        f"{'All weights of' if adapter is None else 'An adapter (LoRA) for'} {name}, tuned with Langwright "
        f"{langwright.__version__} {aim}.",
        "It was not tested for safety, and repeats what its data say.",
        "",
        f"- Data: {data}",
        f"- Training: {state.step:,} steps of {settings.batch_size} rows of up to {settings.context} tokens, "
        f"{settings.optimiser}, learning rate {settings.lr:g} ({settings.schedule}), {settings.dtype}, "
        f"seed {config.seed}",
    ]
    if adapter is not None:
        lines.append(
            f"- Adapter: rank {adapter.rank}, alpha {adapter.alpha:g}, on {', '.join(adapter.targets) or 'all'}"
        )
    if state.latest is not None:
        lines.append(f"- {held_out}: {state.latest}, after step {state.latest.step:,}")
    lines += ["", "```python", "import langwright as lw", "", f'lw.load("PATH").{use}', "```"]
    return "\n".join(lines) + "\n"


def _config(facts: RunFacts) -> TuneConfig:
    assert isinstance(facts.config, TuneConfig)
    return facts.config


def _names(files: Sequence[str]) -> str:
    return ", ".join(Path(name).name for name in files)
