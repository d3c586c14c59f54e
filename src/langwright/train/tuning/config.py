"""What a tuning run is, as data: the model it begins with, the method, the examples and the settings of the loop."""

from collections.abc import Mapping
from importlib.resources import as_file, files
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from langwright.core.config import Frozen, merge, nest, read_toml
from langwright.model.adapters import AdapterConfig
from langwright.model.config import Pooling
from langwright.train.config import LoopSettings, Positive, Rate, RunConfig, Share

Method = Literal["sft", "distil", "classify", "tag", "embed", "dpo", "ipo", "orpo", "simpo", "kto", "reward", "grpo"]
"""sft: what the assistant says, or completions; distil: the same, from a teacher; classify: labels of texts; tag: of
words; embed: which texts are alike; kto: answers found good or bad; reward: a model that tells which answer is
preferred; grpo: answers that can be checked; the others: answers that are preferred."""
REWARDS = ("arithmetic", "format", "python")


class ExampleSettings(Frozen):
    """How examples are read and laid out."""

    format: str | None = None
    """Of the file: chat, sharegpt, alpaca, completion, text, ...; default: found out from its first row."""
    fields: dict[str, str] = Field(default_factory=dict)
    """The file's column for a field, where it has another name: {"prompt": "question"}."""
    chat_template: str | None = None
    """chatml, chatml-tools, or a .jinja file; default: the model's own."""
    too_long: Literal["error", "drop", "cut", "split"] = "error"
    """What is done about an example of more than train.context tokens; split makes passages of plain texts."""
    sentinels: tuple[str, ...] = ()
    """With train.fim_rate: three control tokens that the model has no use for, as prefix, suffix and middle."""
    pack: bool = True
    """Several examples to a row, none of which sees another; if not, a row is one example, padded."""
    val_share: Rate = 0.1
    """Share of the examples that is held out, where no file of them is given."""


class AnswerSettings(Frozen):
    """Of sft."""

    noise: float = Field(default=0.0, ge=0)
    """Embeddings get uniform noise of so much / sqrt(tokens x width) in training (NEFTune: 5); 0: none."""


class PreferenceSettings(Frozen):
    """Of the methods that learn from answers that were compared or judged."""

    beta: float = Field(default=0.1, gt=0)
    """How much it weighs: against staying as it was (dpo, ipo, kto), as a reward (simpo), beside sft (orpo)."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=0.5)
    """With dpo: the share of pairs that are taken to be swapped."""
    target_margin: float = Field(default=0.0, ge=0)
    """With simpo: by how much the chosen answer is to be ahead."""
    desirable_weight: float = Field(default=1.0, gt=0)
    """With kto: what the loss of a good answer is multiplied by."""
    undesirable_weight: float = Field(default=1.0, gt=0)
    """With kto: what the loss of a bad answer is multiplied by."""


class DistilSettings(Frozen):
    """Of distil."""

    teacher: str = ""
    """The model to learn from: a folder, a GGUF file, a catalogue name or a hub id, with the same tokenizer."""
    temperature: float = Field(default=2.0, gt=0)
    """Both models' logits are divided by it where they are compared."""
    share: Share = 0.5
    """Of the loss: how much of it is the teacher's; the rest is that of sft."""


class GrpoSettings(Frozen):
    """Of grpo."""

    group: int = Field(default=8, ge=2)
    """Answers that are drawn to a prompt and compared with each other."""
    max_new_tokens: Positive = 256
    """Of an answer; with its prompt it fits in train.context."""
    beta: float = Field(default=0.04, ge=0)
    """Weight of the divergence from the model as it was; 0: none."""
    rewards: dict[str, Annotated[float, Field(ge=0)]] = Field(default_factory=lambda: {"arithmetic": 1.0})
    """What is rewarded, by its weight: arithmetic=1 format=0.2 python=1; 0 leaves one out."""
    pattern: str = ""
    """Of format: the regular expression that is to be found in an answer."""
    command: str = ""
    """Of python: runs the program that it gets as its standard input, such as "python3 -I -". There is no sandbox."""
    seconds: float = Field(default=10.0, gt=0)
    """Of python: the time that a program has."""

    @field_validator("rewards")
    @classmethod
    def _known(cls, rewards: dict[str, float]) -> dict[str, float]:
        if unknown := [name for name in rewards if name not in REWARDS]:
            raise ValueError(f"no reward is called {unknown[0]!r}; there are {', '.join(REWARDS)}")
        if not any(rewards.values()):
            raise ValueError("nothing is rewarded; give one of them a weight")
        return {name: weight for name, weight in rewards.items() if weight}


class LabelSettings(Frozen):
    """Of the method that labels texts."""

    kind: Literal["auto", "one", "several", "number"] = "auto"
    """What is told of a text: one label, several at once or none, or a number; auto: as the labels are written."""
    threshold: float = Field(default=0.5, gt=0, lt=1)
    """With several: how probable a label has to be to be told."""
    out_of_scope: str | None = None
    """The label of texts that none of the others fits; it is judged apart."""


class EmbeddingSettings(Frozen):
    """Of the method that learns which texts are alike."""

    temperature: float = Field(default=0.05, gt=0)
    """Similarities are divided by this: the smaller, the more the nearest texts count."""
    pooling: Pooling | None = None
    """What becomes of a text's tokens: their mean, the first (cls) or the last; default: as the model does, or mean."""


class TuneConfig(RunConfig):
    """A tuning run."""

    base: str
    """The model it begins with: a folder, a GGUF file, a catalogue name or a hub id."""
    method: Method = "sft"
    """What is minimised."""
    adapter: AdapterConfig | None = None
    """Train adapters and leave the model as it is; None: train all of it."""
    sft: AnswerSettings = AnswerSettings()
    """Answers."""
    preference: PreferenceSettings = PreferenceSettings()
    """Preferences."""
    distil: DistilSettings = DistilSettings()
    """A teacher."""
    grpo: GrpoSettings = GrpoSettings()
    """Answers that are checked."""
    labels: LabelSettings = LabelSettings()
    """Labels."""
    embedding: EmbeddingSettings = EmbeddingSettings()
    """Embeddings."""
    examples: ExampleSettings = ExampleSettings()
    """The data."""

    @field_validator("train")
    @classmethod
    def _is_no_pretraining(cls, settings: LoopSettings) -> LoopSettings:
        if settings.packing != LoopSettings.model_fields["packing"].default:
            raise ValueError("packing is for pretraining; leave it out (examples.pack lays examples side by side)")
        return settings


def load_tuning(
    method: str, base: str, overrides: Mapping[str, Any] | None = None, *, recipe: Path | None = None
) -> TuneConfig:
    """The settings of ``method`` as they come with the package, or those of a TOML file, with ``overrides`` laid on.

    Overrides are nested or dotted, as in `langwright.train.config.load_recipe`. ``adapter`` None trains the whole
    model, at a tenth of the rate unless one is given. Raises `UserError` naming every wrong key.
    """
    with as_file(files("langwright.train.tuning") / "recipes" / f"{method}.toml") as file:
        values = read_toml(recipe or file)
    given: dict[str, Any] = {}
    for key, value in (overrides or {}).items():
        given = merge(given, nest(key, value))
    values = merge(values, given)
    if "adapter" in given and given["adapter"] is None:
        values["adapter"] = None
        if recipe is None and "lr" not in given.get("train", {}):
            values["train"]["lr"] /= 10
    return TuneConfig.parse(values | {"base": base, "method": method}, f"settings of {method}")
