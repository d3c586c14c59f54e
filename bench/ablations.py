"""What each ingredient of the recipe ``speedrun`` is worth: ``python -m bench.ablations --seconds 30 --seeds 3``.

Every variant changes one thing and trains for the same seconds of steps on characters of Shakespeare; then all of the
held-out text is scored. How many steps these are is found first: all variants do a step in turn, many times over, and
the median of each counts, so that a machine whose speed drifts is as fast for all. Start-up and scoring do not count.
"""

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from bench.machine import describe_machine, write_result
from bench.speedrun import begin, characters, score, steps_of, train
from langwright.core.runtime import keep_freed_memory, set_threads
from langwright.data.loader import PreparedData
from langwright.train.config import TrainConfig, load_recipe
from langwright.train.loop import StepResult
from langwright.train.muon import Muon

PLAIN_LAYERS = {"model.layer_types": [], "model.layer_specs": None}
ADAMW = {
    "train.optimiser": "adamw",
    "train.head_lr_ratio": 1.0,
    "train.embed_lr_ratio": 1.0,
    "train.vector_lr_ratio": 1.0,
    "train.warmup_steps": 10,
    "train.grad_clip": 1.0,
}
PACE_ROUNDS = 60
VARIANTS: dict[str, dict[str, Any]] = {
    "speedrun": {},
    "AdamW": ADAMW | {"train.lr": 0.008},
    "Muon without NorMuon": {"row_beta": 0.0},
    "usual init": {"model.zero_init": False},
    "tied head": {"model.tie_embeddings": True},
    "GELU": {"model.activation": "gelu"},
    "SwiGLU of the same size": {"model.activation": "silu", "model.gated": True, "model.d_mlp": 176},
    "no QK-norm": {"model.qk_norm": False},
    "no value embeddings": PLAIN_LAYERS,
    "no soft-cap": {"model.logit_softcap": None},
    "cosine": {"train.schedule": "cosine"},
    "batch of 16": {"train.batch_size": 16},
    "4 layers": {"model.n_layers": 4, "model.layer_types": ["embeds"] * 4},
}


def configure(variant: dict[str, Any], seed: int) -> tuple[TrainConfig, Callable[[Any], None]]:
    """The settings of a variant, and what is changed in its optimiser; ``row_beta`` is Muon's."""
    overrides = {key: value for key, value in variant.items() if key != "row_beta"}

    def adjust(optimiser: Any) -> None:
        if "row_beta" in variant and isinstance(optimiser, Muon):
            for group in optimiser.param_groups:
                group["row_beta"] = variant["row_beta"]

    return load_recipe("speedrun", overrides | {"seed": seed}), adjust


def pace_run(variant: dict[str, Any], data: PreparedData) -> Iterator[StepResult]:
    """A training to be timed, step by step."""
    config, adjust = configure(variant, 0)
    return steps_of(begin(config, data, adjust), config, data, PACE_ROUNDS + 1)


def measure_paces(names: list[str], data: PreparedData) -> dict[str, float]:
    """Seconds a step of each variant."""
    runs = {name: pace_run(VARIANTS[name], data) for name in names}
    found: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(PACE_ROUNDS + 1):
        for name, steps in runs.items():
            found[name].append(next(steps).seconds)
    return {name: statistics.median(each[1:]) for name, each in found.items()}


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", nargs="*", default=list(VARIANTS), metavar="NAME")
    args = parser.parse_args()
    keep_freed_memory()
    set_threads(None)
    losses: dict[str, list[float]] = {name: [] for name in args.only}
    with tempfile.TemporaryDirectory() as folder:
        data = characters(Path(folder))
        paces = measure_paces(args.only, data)
        steps = {name: max(1, round(args.seconds / pace)) for name, pace in paces.items()}
        tokens = {}
        for seed in range(args.seeds):
            for name, found in losses.items():
                config, adjust = configure(VARIANTS[name], seed)
                state = train(config, data, steps[name], adjust)
                found.append(score(state, data))
                tokens[name] = state.tokens
                print(f"seed {seed}: {name}: {steps[name]} steps, {found[-1]:.4f}", file=sys.stderr)
    report = {
        name: {
            "val_loss": round(statistics.mean(found), 4),
            "spread": round(max(found) - min(found), 4),
            "steps": steps[name],
            "tokens": tokens[name],
            "milliseconds_a_step": round(1000 * paces[name], 1),
        }
        for name, found in losses.items()
    }
    result = {"seconds": args.seconds, "seeds": args.seeds, "variants": report, "machine": describe_machine()}
    write_result("ablations", result)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
