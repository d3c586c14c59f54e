"""Training speed on random tokens: ``python -m bench.train --config char10m|small30m|gpt2-124m [--peers] --json``.

Prints ``tokens_per_second`` (median of the steps after the first), ``peak_memory_bytes`` and ``first_step_seconds``.
With ``--peers`` transformers' GPT-2 of the same size trains the same number of tokens in the same run, each in its own
process and in turn, and the ratios are given; with ``--nanogpt PATH`` (a checkout) nanoGPT too. Both run as they do by
default on a CPU: in float32.
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
from langwright.model.model import build_model, count_parameters
from langwright.train.compute import pick_compute_dtype
from langwright.train.config import TrainConfig
from langwright.train.loop import TrainState, train_steps
from langwright.train.optimiser import build_optimiser

# layers, heads, width, context, vocabulary, sequences a step
CONFIGS = {
    "char10m": (6, 6, 384, 256, 65, 64),
    "small30m": (8, 8, 512, 512, 8192, 16),
    "gpt2-124m": (12, 12, 768, 512, 50304, 4),
}
GPT2 = {
    "family": "gpt2",
    "positions": "learned",
    "norm": "layernorm",
    "norm_bias": True,
    "activation": "gelu_tanh",
    "gated": False,
    "qkv_bias": True,
    "o_bias": True,
    "mlp_bias": True,
}


def configure(name: str, steps: int, dtype: str) -> TrainConfig:
    """A GPT-2 of the named size."""
    layers, heads, width, context, _, batch = CONFIGS[name]
    return TrainConfig.parse(
        {
            "model": GPT2 | {"d_model": width, "n_layers": layers, "n_heads": heads, "d_mlp": 4 * width},
            "train": {"max_steps": steps, "batch_size": batch, "context": context, "lr": 1e-3, "dtype": dtype},
        },
        "bench",
    )


def measure(name: str, steps: int, dtype: str, device: str) -> dict:
    """Train a GPT-2 of the named size for ``steps`` steps on one random batch."""
    _, _, _, context, vocab, batch = CONFIGS[name]
    config = configure(name, steps, dtype)
    keep_freed_memory()
    set_threads(None)
    model = build_model(config.model.build(vocab_size=vocab, context=context)).to(device)
    state = TrainState(model, build_optimiser(model, config.train))
    ids = np.random.default_rng(0).integers(0, vocab, (batch, context + 1))
    data = Batch(ids[:, :-1].astype(np.int64), ids[:, 1:].astype(np.int64))
    seconds = []
    for result in train_steps(state, config, lambda _: data, max_steps=steps, steps_per_epoch=steps):
        seconds.append(result.seconds)
        print(f"step {result.step}: loss {result.loss:.4f}, {result.seconds:.2f} s", file=sys.stderr)
    memory = torch.cuda.max_memory_allocated() if device.startswith("cuda") else None
    peak = memory or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {
        "tokens_per_second": batch * context / statistics.median(seconds[1:]),
        "peak_memory_bytes": peak,
        "first_step_seconds": seconds[0],
        "training_seconds": sum(seconds),
        "parameters": count_parameters(model),
        "dtype": str(pick_compute_dtype(config.train.dtype, model.device)).removeprefix("torch."),
    }


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", choices=CONFIGS, required=True)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--dtype", choices=("auto", "float32", "bfloat16"), default="auto")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--peers", action="store_true", help="measure transformers in the same run")
    parser.add_argument("--nanogpt", metavar="PATH", help="a checkout of nanoGPT, to be measured as well")
    parser.add_argument("--rounds", type=int, default=2, help="with --peers: how often each is run")
    parser.add_argument("--json", action="store_true", help="one JSON object (the default)")
    args = parser.parse_args()
    if not args.peers:
        print(json.dumps(measure(args.config, args.steps, args.dtype, args.device)))
        return
    size = ["--config", args.config, "--steps", str(args.steps)]
    ours, peers = [sys.executable, "-m", "bench.train", *size, "--device", args.device], [sys.executable, "-m"]
    commands = {"langwright": [*ours, "--dtype", args.dtype]}
    if args.dtype == "auto" and pick_compute_dtype("auto", torch.device(args.device)) != torch.float32:
        commands["langwright_float32"] = [*ours, "--dtype", "float32"]
    commands["transformers"] = [*peers, "bench.peers.transformers_train", *size]
    if args.nanogpt:
        commands["nanogpt"] = [*peers, "bench.peers.nanogpt_train", "--source", args.nanogpt, *size]
    found = side_by_side(commands, args.rounds)
    compared = {
        f"ratio_to_{peer}": ratios(found["langwright"], found[peer])
        for peer in ("transformers", "nanogpt")
        if peer in found
    }
    report = found | {"config": args.config} | compared | {"machine": describe_machine()}
    write_result(f"train_{args.config}", report)
    print(json.dumps(report))


if __name__ == "__main__":
    main()
