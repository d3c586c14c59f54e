"""Loss on characters of Shakespeare, for the time it takes: ``python -m bench.speedrun --json``.

The text is nanoGPT's: the first 90 % train, the last 10 % are scored whole, in blocks of 64 characters. Without options
the recipe ``speedrun`` trains until it is below nanoGPT's README result, 1.88 nats a character; ``seconds`` count from
the start of the process to that score. With ``--budget 600`` it is the larger model of the recipe ``speedrun-long``
and as many steps as fit into so many seconds. With ``--nanogpt PATH`` (a checkout) nanoGPT's README recipe for a CPU
runs in turn with ours, stretched to the same budget where there is one; ``--at-once`` runs the two at the same time,
each on half of the cores.
"""

import argparse
import json
import math
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch.optim import Optimizer

from bench.machine import describe_machine, medians, run_rounds, write_result
from langwright.core.runtime import keep_freed_memory, set_threads
from langwright.data.corpus import corpus_path
from langwright.data.loader import PreparedData, open_data
from langwright.data.prepare import prepare
from langwright.model.model import build_model, count_parameters
from langwright.train.batches import Batches
from langwright.train.config import TrainConfig, load_recipe
from langwright.train.loop import StepResult, TrainState, train_steps
from langwright.train.optimiser import build_optimiser
from langwright.train.validate import validate

TARGET = 1.88
"""Validation loss of nanoGPT's README recipe for a CPU, nats a character."""
BLOCK = 64
"""Characters of a scored block."""


def process_start() -> float:
    """When this process was started, in seconds since 1970; where the system does not tell, now."""
    try:
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        up = float(Path("/proc/uptime").read_text().split()[0])
    except (OSError, ValueError, IndexError):
        return time.time()
    return time.time() - up + ticks / os.sysconf("SC_CLK_TCK")


def characters(folder: Path) -> PreparedData:
    """The shipped text, a token a character, with nanoGPT's split."""
    prepare([corpus_path("shakespeare")], folder, tokenizer="char", split="tail", val_fraction=0.1)
    return open_data(folder)


def begin(config: TrainConfig, data: PreparedData, adjust: Callable[[Optimizer], None] = lambda _: None) -> TrainState:
    """A run before its first step; ``adjust`` may change the optimiser."""
    settings = config.train
    model = build_model(
        config.model.build(vocab_size=data.train.vocab_size, context=settings.context), seed=config.seed
    )
    state = TrainState(model, build_optimiser(model, settings))
    adjust(state.optimiser)
    return state


def steps_of(state: TrainState, config: TrainConfig, data: PreparedData, steps: int) -> Iterator[StepResult]:
    """The ``steps`` of a run, one by one."""
    config = config.replace(train=config.train.replace(max_steps=steps))
    return train_steps(state, config, Batches.of(config, data), max_steps=steps, steps_per_epoch=steps)


def train(
    config: TrainConfig, data: PreparedData, steps: int, adjust: Callable[[Optimizer], None] = lambda _: None
) -> TrainState:
    """The state after ``steps`` steps."""
    state = begin(config, data, adjust)
    for result in steps_of(state, config, data, steps):
        if result.step % 50 == 0 or result.step == steps:
            print(f"step {result.step}/{steps}: loss {result.loss:.3f}, {state.seconds:.1f} s", file=sys.stderr)
    return state


def score(state: TrainState, data: PreparedData) -> float:
    """Nats a character over all of the held-out text."""
    return math.log(validate(state.model, data.val, context=BLOCK, batch_size=64).ppl)


def run(recipe: str, overrides: dict[str, Any], budget: float | None) -> dict[str, Any]:
    """Train and score; with a ``budget`` of seconds from the start of the process, as many steps as fit."""
    started = process_start()
    keep_freed_memory()
    set_threads(None)
    config = load_recipe(recipe, overrides)
    with tempfile.TemporaryDirectory() as folder:
        data = characters(Path(folder))
        steps = config.train.max_steps
        assert steps is not None
        if budget is not None:
            steps = steps_that_fit(config, data, budget - (time.time() - started))
        state = train(config, data, steps)
        loss = score(state, data)
    return {
        "seconds": time.time() - started,
        "val_loss": loss,
        "steps": steps,
        "tokens": state.tokens,
        "tokens_per_second": state.tokens / state.seconds,
        "parameters": count_parameters(state.model),
        "seed": config.seed,
        "threads": torch.get_num_threads(),
    }


def steps_that_fit(config: TrainConfig, data: PreparedData, seconds: float) -> int:
    """Steps that take ``seconds``, the scoring included, by the time that eight of them took."""
    start = time.perf_counter()
    trial = train(config, data, 8)
    pace = trial.seconds / 8
    score_start = time.perf_counter()
    score(trial, data)
    left = seconds - (time.perf_counter() - start) - (time.perf_counter() - score_start)
    return max(1, int(0.97 * left / pace))


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--budget", type=float, help="seconds to train for, instead of the race to 1.88")
    parser.add_argument("--nanogpt", metavar="PATH", help="a checkout of nanoGPT, to be run in turn")
    parser.add_argument("--rounds", type=int, default=3, help="with --nanogpt: how often each is run, by seed")
    parser.add_argument(
        "--at-once", action="store_true", help="with --nanogpt: both at a time, on half of the cores each"
    )
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="settings over the recipe's")
    parser.add_argument("--json", action="store_true", help="one JSON object (the default)")
    args = parser.parse_args()
    if args.nanogpt is None:
        overrides = {key: value for key, _, value in (word.partition("=") for word in args.set)}
        recipe = "speedrun" if args.budget is None else "speedrun-long"
        print(json.dumps(run(recipe, {"seed": args.seed} | overrides, args.budget) | {"target": TARGET}))
        return
    budget = [] if args.budget is None else ["--budget", str(args.budget)]
    python = [sys.executable, "-m"]
    commands = {
        "langwright": [*python, "bench.speedrun", "--seed", "{turn}", *budget],
        "nanogpt": [*python, "bench.peers.nanogpt_speedrun", "--source", args.nanogpt, "--seed", "{turn}", *budget],
    }
    runs = run_rounds(commands, args.rounds, at_once=args.at_once)
    found = {name: medians(values) for name, values in runs.items()}
    for name, values in runs.items():
        found[name]["val_losses"] = [round(value["val_loss"], 4) for value in values]
    report = found | {"target": TARGET, "budget": args.budget, "at_once": args.at_once, "machine": describe_machine()}
    report["ratio_of_seconds"] = round(found["langwright"]["seconds"] / found["nanogpt"]["seconds"], 3)
    write_result("speedrun" if args.budget is None else f"speedrun_{args.budget:.0f}s", report)
    print(json.dumps(report))


if __name__ == "__main__":
    main()
