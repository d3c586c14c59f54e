"""What each ingredient of the recipe ``speedrun`` is worth: ``python -m bench.ablations --seconds 30 --seeds 3``.

Every variant changes one thing and trains for the same seconds of steps, as many as it does in them by its own pace, on
characters of Shakespeare; then all of the held-out text is scored. Start-up and scoring are not counted.
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
from langwright.train.muon import Muon

PLAIN_LAYERS = {"model.layer_types": [], "model.layer_specs": None}
ADAMW = {"train.optimiser": "adamw", "train.head_lr_ratio": 1.0, "train.embed_lr_ratio": 1.0}
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


def measure(variant: dict[str, Any], seed: int, seconds: float, data: PreparedData) -> dict[str, float]:
    """One training; ``row_beta`` is Muon's, the rest are settings."""
    overrides = {key: value for key, value in variant.items() if key != "row_beta"}
    config: TrainConfig = load_recipe("speedrun", overrides | {"seed": seed})

    def adjust(optimiser: Any) -> None:
        if "row_beta" in variant and isinstance(optimiser, Muon):
            for group in optimiser.param_groups:
                group["row_beta"] = variant["row_beta"]

    trial = train(config, data, 12, adjust)
    steps = max(1, round(seconds / (trial.seconds / 12)))
    state = train(config, data, steps, adjust)
    return {"val_loss": score(state, data), "steps": steps, "seconds": state.seconds, "tokens": state.tokens}


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", nargs="*", default=list(VARIANTS), metavar="NAME")
    args = parser.parse_args()
    keep_freed_memory()
    set_threads(None)
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in args.only}
    with tempfile.TemporaryDirectory() as folder:
        data = characters(Path(folder))
        for seed in range(args.seeds):  # variants in turn, so that a machine that drifts drifts for all
            for name, found in runs.items():
                found.append(measure(VARIANTS[name], seed, args.seconds, data))
                print(f"seed {seed}: {name}: {found[-1]['val_loss']:.4f}", file=sys.stderr)
    report = {
        name: {
            "val_loss": round(statistics.mean(run["val_loss"] for run in found), 4),
            "spread": round(max(run["val_loss"] for run in found) - min(run["val_loss"] for run in found), 4),
            "steps": statistics.median(run["steps"] for run in found),
            "tokens": statistics.median(run["tokens"] for run in found),
            "seconds": round(statistics.mean(run["seconds"] for run in found), 1),
        }
        for name, found in runs.items()
    }
    result = {"seconds": args.seconds, "seeds": args.seeds, "variants": report, "machine": describe_machine()}
    write_result("ablations", result)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
