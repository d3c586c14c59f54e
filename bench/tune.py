"""Tokens a second of LoRA on SmolLM2-135M's architecture: ``python -m bench.tune [--peers] --json``.

Rank 16 on all projections, 4 rows of 512 random tokens, all of them learnt, fresh weights (speed does not depend on
them). With ``--peers`` transformers with peft is measured in the same run, in float32 and, where the
processor has it, under bfloat16 autocast.
"""

import argparse
import json
import resource
import statistics
import sys

import numpy as np
import torch

from bench.machine import describe_machine, ratios, side_by_side, write_result
from langwright.core.runtime import keep_freed_memory, set_threads
from langwright.data.loader import Batch
from langwright.model.adapters import AdapterConfig, add_adapters
from langwright.model.config import LayerSpec, ModelConfig, Rope
from langwright.model.model import build_model
from langwright.train.compute import pick_compute_dtype
from langwright.train.config import LoopSettings, RunConfig
from langwright.train.loop import TrainState, train_steps
from langwright.train.optimiser import build_optimiser

ROWS, CONTEXT, RANK, ALPHA = 4, 512, 16, 32
SHAPE = {"d_model": 576, "d_mlp": 1536, "n_layers": 30, "n_heads": 9, "n_kv_heads": 3, "vocab_size": 49152}


def measure(steps: int, dtype: str) -> dict:
    """Ours."""
    keep_freed_memory()
    set_threads(None)
    config = ModelConfig.parse(
        SHAPE
        | {
            "family": "llama",
            "d_head": 64,
            "max_positions": 2048,
            "layer_specs": {"full": LayerSpec(rope=Rope(theta=100_000.0))},
            "tie_embeddings": True,
        },
        "SmolLM2-135M",
    )
    model = add_adapters(build_model(config), AdapterConfig(rank=RANK, alpha=ALPHA))
    settings = LoopSettings.parse(
        {"max_steps": steps, "batch_size": ROWS, "context": CONTEXT, "lr": 2e-4, "weight_decay": 0.0, "dtype": dtype},
        "bench",
    )
    state = TrainState(model, build_optimiser(model, settings))
    windows = np.random.default_rng(0).integers(0, config.vocab_size, (ROWS, CONTEXT + 1))
    batch = Batch(np.ascontiguousarray(windows[:, :-1]), np.ascontiguousarray(windows[:, 1:]))
    run, seconds = RunConfig(train=settings), []
    for result in train_steps(state, run, lambda _: batch, max_steps=steps, steps_per_epoch=steps):
        seconds.append(result.seconds)
        print(f"step {result.step}: loss {result.loss:.4f}, {result.seconds:.2f} s", file=sys.stderr)
    return {
        "tokens_per_second": ROWS * CONTEXT / statistics.median(seconds[1:]),
        "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "first_step_seconds": seconds[0],
    }


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--dtype", choices=("auto", "float32", "bfloat16"), default="auto")
    parser.add_argument("--peers", action="store_true", help="measure transformers with peft in the same run")
    parser.add_argument("--rounds", type=int, default=2, help="with --peers: how often each is run")
    parser.add_argument("--json", action="store_true", help="one JSON object (the default)")
    args = parser.parse_args()
    if not args.peers:
        print(json.dumps(measure(args.steps, args.dtype)))
        return
    size = ["--steps", str(args.steps)]
    python = [sys.executable, "-m"]
    commands = {
        "langwright": [*python, "bench.tune", *size, "--dtype", args.dtype],
        "peft_float32": [*python, "bench.peers.peft_train", *size],
    }
    if pick_compute_dtype("auto", torch.device("cpu")) == torch.bfloat16:  # elsewhere it is emulated, and takes minutes
        commands["peft_autocast"] = [*python, "bench.peers.peft_train", *size, "--autocast"]
    found = side_by_side(commands, args.rounds)
    compared = {
        f"ratio_to_{peer}": ratios(found["langwright"], found[peer]) for peer in commands if peer != "langwright"
    }
    report = found | compared | {"machine": describe_machine()}
    write_result("tune_lora", report)
    print(json.dumps(report))


if __name__ == "__main__":
    main()
