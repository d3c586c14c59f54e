"""Running a function on several gloo ranks: ``python -m tests.unit.train.on_ranks MODULE:FUNCTION ARGUMENT ...``.

Every rank is a process of its own, as under torchrun but without its agent, which takes seconds to start.
"""

import importlib
import os
import socket
import subprocess
import sys
import warnings
from pathlib import Path

ROOT = Path(__file__).parents[3]
LONGEST = 600
"""Seconds until ranks that wait for each other are killed."""

Ranks = list[subprocess.Popen[str]]


def start_ranks(size: int, *command: object) -> Ranks:
    """``python COMMAND`` on ``size`` ranks."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size}
    return [
        subprocess.Popen(
            [sys.executable, *map(str, command)],
            cwd=ROOT,
            env=os.environ
            | {name: str(value) for name, value in (shared | {"RANK": rank, "LOCAL_RANK": rank}).items()},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(size)
    ]


def ended(ranks: Ranks) -> list[tuple[int, str]]:
    """Wait for all of them: their exit codes, and what they said."""
    try:
        told = [process.communicate(timeout=LONGEST)[0] for process in ranks]
    finally:
        for process in ranks:
            process.kill()
    return [(process.returncode, text) for process, text in zip(ranks, told, strict=True)]


def on_ranks(size: int, function: str, *arguments: object) -> None:
    """Call ``function`` (``module:name``) with ``arguments`` (as text) on ``size`` ranks; fails when one does."""
    results = ended(start_ranks(size, "-m", "tests.unit.train.on_ranks", function, *arguments))
    assert not any(code for code, _ in results), "\n".join(
        f"rank {rank}: {code}\n{text}" for rank, (code, text) in enumerate(results)
    )


if __name__ == "__main__":
    import torch

    torch.set_num_threads(1)
    warnings.simplefilter("error")
    module, _, name = sys.argv[1].partition(":")
    getattr(importlib.import_module(module), name)(*sys.argv[2:])
