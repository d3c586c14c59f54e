"""Which checkpoints stay."""

from collections.abc import Mapping

from langwright.train.config import LoopSettings


def to_delete(scores: Mapping[int, float | None], settings: LoopSettings) -> list[int]:
    """The steps of ``scores`` whose checkpoints may go once the one of the greatest step is committed.

    ``scores`` maps the step of every checkpoint to its validation in bits per byte, None where it was not validated at
    that very step. The newest ``keep`` stay; so does every step that ``keep_every`` divides, and with ``keep_best`` the
    best one.
    """
    steps = sorted(scores)
    kept = set(steps[-settings.keep :])
    if settings.keep_every:
        kept |= {step for step in steps if step % settings.keep_every == 0}
    if settings.keep_best and (best := best_step(scores)) is not None:
        kept.add(best)
    return [step for step in steps if step not in kept]


def best_step(scores: Mapping[int, float | None]) -> int | None:
    """The step with the fewest bits per byte, the first of equals; None where nothing was validated."""
    rated = [(bpb, step) for step, bpb in sorted(scores.items()) if bpb is not None]
    return min(rated)[1] if rated else None
