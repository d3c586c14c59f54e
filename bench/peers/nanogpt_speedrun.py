"""nanoGPT's README recipe for a CPU, by its own ``train.py``: ``--source PATH``, a checkout with prepared characters.

Its model is then scored on the same blocks as ours. With ``--budget`` the recipe gets as many iterations as fit into so
many seconds, its schedule stretched to them; what finding that out takes is not counted. Other settings go after
``--``.
"""

import argparse
import contextlib
import io
import json
import math
import os
import re
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.speedrun import BLOCK, process_start

README = (
    "config/train_shakespeare_char.py --device=cpu --compile=False --eval_iters=20 --log_interval=1 --block_size=64 "
    "--batch_size=12 --n_layer=4 --n_head=4 --n_embd=128 --max_iters=2000 --lr_decay_iters=2000 --dropout=0.0"
).split()


class Tee(io.StringIO):
    """Keeps what is printed, and shows the validations."""

    def write(self, text: str) -> int:
        """As of a file."""
        if text.startswith("step "):
            print(text, file=sys.stderr)
        return super().write(text)


def run(seed: int, settings: list[str]) -> tuple[dict[str, Any], str]:
    """Run ``train.py`` in this process and its folder; the names it leaves, and what it printed."""
    plain, printed = torch.manual_seed, Tee()
    torch.manual_seed = lambda number: plain(number + seed)  # its seed is no setting
    names: dict[str, Any] = {"__name__": "__main__"}
    with tempfile.TemporaryDirectory() as out, contextlib.redirect_stdout(printed):
        sys.argv = ["train.py", *README, f"--out_dir={out}", *settings]
        exec(compile(Path("train.py").read_text(), "train.py", "exec"), names)
    torch.manual_seed = plain
    return names, printed.getvalue()


@torch.no_grad()
def score(model: Any, stream: np.ndarray, context: int) -> float:
    """Nats a character over all of ``stream`` in blocks of ``context``."""
    places, nll = len(stream) - 1, 0.0
    for start in range(0, places, context * 256):
        stop = min(start + context * 256, places - places % context)
        if stop <= start:
            break
        ids = torch.from_numpy(stream[start:stop].astype(np.int64)).view(-1, context)
        targets = torch.from_numpy(stream[start + 1 : stop + 1].astype(np.int64)).view(-1, context)
        nll += model(ids, targets)[1].item() * ids.numel()
    return nll / (places - places % context)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--budget", type=float)
    parser.add_argument("settings", nargs="*", help="of nanoGPT, as --key=value after --")
    args = parser.parse_args()
    start, settings = process_start(), args.settings
    os.chdir(args.source)
    sys.path.insert(0, ".")
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    if args.budget is not None:
        begun, (_, printed) = time.time(), run(args.seed, [*settings, "--max_iters=100", "--eval_interval=1000"])
        paces = [float(word) / 1000 for word in re.findall(r"time ([\d.]+)ms", printed)]
        validation, pace = paces[0], float(np.median(paces))
        left = args.budget - (begun - start)
        steps = int(left / (pace + validation / 250))
        settings = [*settings, f"--max_iters={steps}", f"--lr_decay_iters={steps}"]
        start += time.time() - begun
    names, printed = run(args.seed, settings)
    seconds = time.time() - start
    told = [float(word) for word in re.findall(r"val loss ([\d.]+)", printed)]
    stream = np.fromfile(Path("data/shakespeare_char/val.bin"), dtype=np.uint16)
    loss = score(names["model"].eval(), stream, BLOCK)
    assert math.isfinite(loss)
    figures = {
        "seconds": seconds,
        "val_loss": loss,
        "best_val_loss_told": min(told),
        "steps": names["iter_num"] - 1,
        "parameters": sum(parameter.numel() for parameter in names["model"].parameters()),
        "seed": args.seed,
        "threads": torch.get_num_threads(),
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
