"""Inference speed: ``python -m bench.infer --model REF [--peers] --json``.

Tokens a second, greedy, random token ids: ``prefill_512`` (one prompt of 512), ``decode_1``, ``decode_16`` and
``decode_64`` (that many sequences), and ``load_seconds``; for quantised weights the same names but ``decode_16`` and
``decode_64`` with ``_int8`` or ``_int4`` at the end, and ``kernels`` names the native core's (null: torch instead).
With ``--peers`` transformers runs the same weights in the same run, in turn.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

import torch

from bench.machine import describe_machine, ratios, side_by_side, write_result
from langwright.core.runtime import set_threads
from langwright.infer.lm import LM, load
from langwright.infer.native.library import library, set_kernels
from langwright.train.compute import pick_compute_dtype

NEW_TOKENS = {1: 128, 16: 64, 64: 32}


def measure(ref: str, dtype: str) -> dict:
    """One process's figures for one dtype, and for quantised weights."""
    set_threads(None)
    torch.manual_seed(0)
    found: dict = {"dtype": dtype, "kernels": set_kernels(None) if library() else None}
    for kind in (None, "int8", "int4"):
        mark = f"_{kind}" if kind else ""
        start = time.perf_counter()
        model = load(ref, dtype=None if kind else dtype, device="cpu", quantise=kind)
        found[f"load_seconds{mark}"] = time.perf_counter() - start
        seconds(model, 1, 16, 8)
        seconds(model, 1, 512, 1)
        found[f"prefill_512{mark}"] = 512 / min(seconds(model, 1, 512, 1) for _ in range(3))
        for batch, new in NEW_TOKENS.items():
            if kind is None or batch == 1:
                found[f"decode_{batch}{mark}"] = batch * new / seconds(model, batch, 16, new)
    return found


def seconds(model: LM, batch: int, prompt: int, new: int) -> float:
    """For ``batch`` answers of ``new`` tokens to prompts of ``prompt`` random ones."""
    ids = torch.randint(100, min(40_000, model.config.vocab_size), (batch, prompt)).tolist()
    start = time.perf_counter()
    model.generate(ids, temperature=0, max_new_tokens=new, ignore_eos=True, batch_size=batch)
    return time.perf_counter() - start


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument(
        "--dtype", default="auto", choices=("auto", "float32", "bfloat16"), help="auto: bfloat16 where the CPU has it"
    )
    parser.add_argument("--peers", action="store_true", help="measure transformers in the same run")
    parser.add_argument("--rounds", type=int, default=3, help="with --peers: how often each is run")
    parser.add_argument("--json", action="store_true", help="one JSON object (the default)")
    args = parser.parse_args()
    fastest = str(pick_compute_dtype("auto", torch.device("cpu"))).removeprefix("torch.")
    if not args.peers:
        print(json.dumps(measure(args.model, fastest if args.dtype == "auto" else args.dtype)))
        return
    from langwright.model.checkpoint.save import save_model

    with tempfile.TemporaryDirectory() as folder:
        model = load(args.model, device="cpu", dtype="float32")
        save_model(model.model, Path(folder))
        model.tokenizer.save(Path(folder))
        del model
        dtypes, commands = dict.fromkeys(("float32", fastest)), {}
        for dtype in dtypes:
            ours = [sys.executable, "-m", "bench.infer", "--model", args.model, "--dtype", dtype]
            commands[f"langwright_{dtype}"] = ours
            commands[f"transformers_{dtype}"] = [sys.executable, "-m", "bench.peers.transformers_infer", folder, dtype]
        found = side_by_side(commands, args.rounds)
    compared = {f"ratio_{d}": ratios(found[f"langwright_{d}"], found[f"transformers_{d}"]) for d in dtypes}
    report = found | {"model": args.model} | compared | {"machine": describe_machine()}
    write_result(f"infer_{Path(args.model).name}", report)
    print(json.dumps(report))


if __name__ == "__main__":
    main()
