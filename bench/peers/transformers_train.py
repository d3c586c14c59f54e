"""transformers' GPT-2 in its default form on a CPU (fp32, eager loop, AdamW), one random batch."""

import argparse
import json
import os
import resource
import statistics
import time

import torch
from transformers import GPT2Config, GPT2LMHeadModel

from bench.train import CONFIGS


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", choices=CONFIGS, required=True)
    parser.add_argument("--steps", type=int, default=4)
    args = parser.parse_args()
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    torch.manual_seed(0)
    layers, heads, width, context, vocab, batch = CONFIGS[args.config]
    config = GPT2Config(
        vocab_size=vocab,
        n_positions=context,
        n_embd=width,
        n_layer=layers,
        n_head=heads,
        resid_pdrop=0,
        embd_pdrop=0,
        attn_pdrop=0,
    )
    model = GPT2LMHeadModel(config).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    ids, seconds = torch.randint(0, vocab, (batch, context)), []
    for _ in range(args.steps):
        start = time.perf_counter()
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.perf_counter() - start)
    print(
        json.dumps(
            {
                "tokens_per_second": batch * context / statistics.median(seconds[1:]),
                "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
                "first_step_seconds": seconds[0],
            }
        )
    )


if __name__ == "__main__":
    main()
