"""What each ingredient of the recipe ``speedrun`` is worth: ``python -m bench.ablations --seconds 30 --seeds 3``.

Every variant changes one thing and trains for the same seconds of steps on characters of Shakespeare; then all of the
held-out text is scored. How many steps these are is found first: all variants do some in turn, several times over, and
the best pace counts, which what else the machine does disturbs least. Start-up and scoring are not counted.
"""

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from bench.machine import describe_machine, write_result
from bench.speedrun import characters, score, train
from langwright.core.runtime import keep_freed_memory, set_threads
from langwright.data.loader import PreparedData
from langwright.train.config import TrainConfig, load_recipe
from langwright.train.loop import TrainState
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
PACE_ROUNDS, PACE_STEPS = 6, 12
VARIANTS: dict[str, dict[str, Any]] = {
    "speedrun": {},
    "AdamW, 0.004": ADAMW | {"train.lr": 0.004},
    "AdamW, 0.008": ADAMW | {"train.lr": 0.008},
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


def run(variant: dict[str, Any], seed: int, steps: int, data: PreparedData) -> TrainState:
    """One training; ``row_beta`` is Muon's, the rest are settings."""
    overrides = {key: value for key, value in variant.items() if key != "row_beta"}
    config: TrainConfig = load_recipe("speedrun", overrides | {"seed": seed})

    def adjust(optimiser: Any) -> None:
        if "row_beta" in variant and isinstance(optimiser, Muon):
            for group in optimiser.param_groups:
                group["row_beta"] = variant["row_beta"]

    return train(config, data, steps, adjust)


def measure_paces(names: list[str], data: PreparedData) -> dict[str, float]:
    """Seconds a step of each variant."""
    paces: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(PACE_ROUNDS):
        for name, found in paces.items():
            steps = run(VARIANTS[name], 0, PACE_STEPS, data)
            found.append(steps.seconds / PACE_STEPS)
    return {name: min(found) for name, found in paces.items()}


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
                state = run(VARIANTS[name], seed, steps[name], data)
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
