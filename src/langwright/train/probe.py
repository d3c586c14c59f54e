"""How fast this machine trains a configuration, from a few steps whose result is thrown away."""

import statistics
from pathlib import Path

from langwright.data.loader import open_data
from langwright.model.model import build_model
from langwright.train.batches import Batches
from langwright.train.config import TrainConfig
from langwright.train.loop import TrainState, train_steps
from langwright.train.optimiser import build_optimiser
from langwright.train.pretraining import collect_facts, resolve


def seconds_per_step(config: TrainConfig, data_dir: Path, steps: int = 6) -> float:
    """Median time of a step on the prepared data, validation not counted; the first step, which warms up, neither.

    Raises `UserError` for whatever `langwright.train.run.train` would refuse.
    """
    data = open_data(data_dir)
    config, steps_per_epoch = resolve(config, data)
    settings = config.train
    model = build_model(collect_facts(config, data).model, seed=config.seed).to(config.device)
    results = train_steps(
        TrainState(model, build_optimiser(model, settings)),
        config,
        Batches.of(config, data),
        max_steps=steps + 1,
        steps_per_epoch=steps_per_epoch,
    )
    return statistics.median([result.seconds for result in results][1:])
