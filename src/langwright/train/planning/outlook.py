"""A run's plan beside what became of it: in every checkpoint's ``langwright.json``, and in the report."""

import statistics
from pathlib import Path

import torch

from langwright.core.config import Frozen
from langwright.core.errors import UserError
from langwright.core.hardware import peak_memory
from langwright.core.json_text import read_json_object
from langwright.model.config import ModelConfig
from langwright.model.flops import training_flops
from langwright.train.config import RunConfig
from langwright.train.planning.advice import Fit


class Predicted(Frozen):
    """For the whole run. Seconds are those spent in steps; None until the first steps are done."""

    parameters: int
    flops: float
    tokens: int
    peak_memory_bytes: int
    memory: dict[str, int]
    """Bytes by name at the fullest moment."""
    training_seconds: float | None = None


class Actual(Frozen):
    """So far."""

    steps: int = 0
    tokens: int = 0
    training_seconds: float = 0.0
    peak_memory_bytes: int | None = None
    """The most of any of the run's processes."""


class Outlook(Frozen):
    """Both."""

    predicted: Predicted
    actual: Actual = Actual()

    def timed(self, seconds: list[float], max_steps: int) -> "Outlook":
        """With the time of a run whose first steps took ``seconds``; the very first warms up and counts for itself."""
        first, *others = seconds
        whole = first + (max_steps - 1) * (statistics.median(others) if others else first)
        return self.replace(predicted=self.predicted.replace(training_seconds=whole))

    def came(self, *, steps: int, tokens: int, seconds: float, device: torch.device) -> "Outlook":
        """With what was used until now."""
        peaks = [peak for peak in (self.actual.peak_memory_bytes, peak_memory(device)) if peak is not None]
        actual = Actual(
            steps=steps, tokens=tokens, training_seconds=seconds, peak_memory_bytes=max(peaks, default=None)
        )
        return self.replace(actual=actual)


def look_ahead(config: RunConfig, shape: ModelConfig, fit: Fit, parameters: int) -> Outlook:
    """What is known before the first step of a decided ``config``."""
    settings = config.train
    tokens = (settings.max_steps or 0) * settings.batch_size * settings.context
    peak = fit.use.peak
    predicted = Predicted(
        parameters=parameters,
        flops=tokens * training_flops(shape, settings.context),
        tokens=tokens,
        peak_memory_bytes=peak.bytes,
        memory=peak.terms,
    )
    return Outlook(predicted=predicted)


def recall(checkpoint: Path | None) -> Outlook | None:
    """The outlook in a checkpoint that is continued; None where an older program wrote none that can be read."""
    try:
        stored = read_json_object(checkpoint / "langwright.json").get("plan") if checkpoint else None
        return Outlook.parse(stored, "plan") if isinstance(stored, dict) else None
    except UserError:
        return None
