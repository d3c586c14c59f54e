"""Keeps a run's outlook while it runs."""

from collections.abc import Iterator

from langwright.train.loop import StepResult, TrainState

SAMPLE = 3
"""Steps whose time tells that of the whole run, as a measurement before it would."""


def followed(steps: Iterator[StepResult], state: TrainState, max_steps: int) -> Iterator[StepResult]:
    """``steps``, keeping ``state.outlook`` up to date before each is handed on."""
    seconds: list[float] = []
    for result in steps:
        if state.outlook is not None:
            if result.tokens and len(seconds) < SAMPLE:
                seconds.append(result.seconds)
            if len(seconds) == SAMPLE and state.outlook.predicted.training_seconds is None:
                state.outlook = state.outlook.timed(seconds, max_steps)
            state.outlook = state.outlook.came(
                steps=state.step, tokens=state.tokens, seconds=state.seconds, device=state.model.device
            )
        yield result
