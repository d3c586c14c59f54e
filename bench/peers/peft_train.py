"""transformers with peft: LoRA of rank 16 on every projection of SmolLM2-135M's architecture, one random batch."""

import argparse
import contextlib
import json
import os
import resource
import statistics
import time

import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from bench.tune import ALPHA, CONTEXT, RANK, ROWS, SHAPE


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--autocast", action="store_true", help="bfloat16 autocast")
    args = parser.parse_args()
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=SHAPE["d_model"],
        intermediate_size=SHAPE["d_mlp"],
        num_hidden_layers=SHAPE["n_layers"],
        num_attention_heads=SHAPE["n_heads"],
        num_key_value_heads=SHAPE["n_kv_heads"],
        vocab_size=SHAPE["vocab_size"],
        max_position_embeddings=2048,
        tie_word_embeddings=True,
    )
    projections = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    lora = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=projections, task_type="CAUSAL_LM")
    model = get_peft_model(LlamaForCausalLM(config), lora).train()
    optimizer = torch.optim.AdamW([each for each in model.parameters() if each.requires_grad], lr=2e-4)
    ids, seconds = torch.randint(0, SHAPE["vocab_size"], (ROWS, CONTEXT)), []
    for _ in range(args.steps):
        start = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16) if args.autocast else contextlib.nullcontext():
            loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.perf_counter() - start)
    figures = {
        "tokens_per_second": ROWS * CONTEXT / statistics.median(seconds[1:]),
        "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "first_step_seconds": seconds[0],
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
