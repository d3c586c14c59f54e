"""Learning-rate schedules: pure functions from the number of a step to what the highest rate is multiplied by.

Steps count from 0. After the warm-up the first step has the full rate, and the last step exactly the lowest.
"""

import math

from langwright.train.config import LoopSettings


def lr_multiplier(settings: LoopSettings, step: int, max_steps: int, steps_per_epoch: int) -> float:
    """What the rate of ``step`` is, over ``settings.lr``."""
    warmup_steps = min(settings.warmup_steps, max_steps // 2)
    if step < warmup_steps:
        return warmup(step, warmup_steps)
    if settings.schedule == "cosine":
        return cosine(step - warmup_steps, max_steps - warmup_steps, settings.min_lr_ratio)
    if settings.schedule == "wsd":
        return stable_decay(step, max_steps, settings.decay_fraction, settings.min_lr_ratio)
    if settings.schedule == "step":
        return settings.gamma ** (step // steps_per_epoch)
    return 1.0


def warmup(step: int, steps: int) -> float:
    """1/steps, 2/steps, ..., 1."""
    return (step + 1) / steps


def cosine(step: int, steps: int, lowest: float) -> float:
    """Half a cosine from 1 to ``lowest`` over ``steps`` (Loshchilov & Hutter 2017, arXiv:1608.03983)."""
    share = step / max(1, steps - 1)
    return lowest + (1 - lowest) * (1 + math.cos(math.pi * share)) / 2


def stable_decay(step: int, steps: int, fraction: float, lowest: float) -> float:
    """1, then a straight line to ``lowest`` over the last ``fraction`` (Hägele et al. 2024, arXiv:2405.18392)."""
    decay = round(fraction * steps)
    left = steps - 1 - step
    return 1.0 if left >= decay else lowest + (1 - lowest) * left / decay
