"""transformers' own generate on a Hugging Face folder: ``FOLDER DTYPE``, greedy, random token ids."""

import json
import os
import sys
import time

import torch
from transformers import AutoModelForCausalLM

from bench.infer import NEW_TOKENS


def main() -> None:
    """The command."""
    folder, dtype = sys.argv[1:]
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    start = time.perf_counter()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()
    found = {"load_seconds": time.perf_counter() - start, "dtype": dtype}
    torch.manual_seed(0)

    @torch.no_grad()
    def seconds(batch: int, prompt: int, new: int) -> float:
        ids = torch.randint(100, 40_000, (batch, prompt))
        start = time.perf_counter()
        model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=new, min_new_tokens=new
        )
        return time.perf_counter() - start

    seconds(1, 16, 8)
    seconds(1, 512, 1)
    found["prefill_512"] = 512 / min(seconds(1, 512, 1) for _ in range(3))
    for batch, new in NEW_TOKENS.items():
        found[f"decode_{batch}"] = batch * new / seconds(batch, 16, new)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
