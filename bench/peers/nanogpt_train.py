"""nanoGPT's model and step as its ``train.py`` runs them on a CPU (float32), from a copy of it: ``--source PATH``."""

import argparse
import json
import os
import resource
import statistics
import sys
import time

import torch

from bench.train import CONFIGS


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--source", required=True, help="folder of a nanoGPT checkout")
    parser.add_argument("--config", choices=CONFIGS, required=True)
    parser.add_argument("--steps", type=int, default=4)
    args = parser.parse_args()
    sys.path.insert(0, args.source)
    from model import GPT, GPTConfig  # pyright: ignore[reportMissingImports]

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    torch.manual_seed(0)
    layers, heads, width, context, vocab, batch = CONFIGS[args.config]
    shape = {"block_size": context, "vocab_size": vocab, "n_layer": layers, "n_head": heads, "n_embd": width}
    model = GPT(GPTConfig(**shape, dropout=0.0, bias=False))
    optimizer = model.configure_optimizers(0.1, 1e-3, (0.9, 0.99), "cpu")
    ids, seconds = torch.randint(0, vocab, (batch, context)), []
    for _ in range(args.steps):
        start = time.perf_counter()
        _, loss = model(ids, ids)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        seconds.append(time.perf_counter() - start)
    figures = {
        "tokens_per_second": batch * context / statistics.median(seconds[1:]),
        "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "first_step_seconds": seconds[0],
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
