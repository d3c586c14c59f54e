"""What the figures were measured on, and how peers are run: each in a process of its own, in turn."""

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results"


def describe_machine() -> dict[str, Any]:
    """Processor, cores in use, memory, versions and the day."""
    cpu = platform.processor()
    info = Path("/proc/cpuinfo")
    flags: set[str] = set()
    if info.exists():
        for line in info.read_text().splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                cpu = value.strip()
            if name.strip() == "flags":
                flags = set(value.split())
    wanted = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile")
    return {
        "cpu": cpu,
        "cpu_features": [flag for flag in wanted if flag in flags],
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "date": date.today().isoformat(),
    }


def run_json(command: list[str], cores: set[int] | None = None) -> dict[str, Any]:
    """The last line of a process's output, as JSON; the process keeps to ``cores``, by default to all of ours."""
    pin = None if cores is None else partial(os.sched_setaffinity, 0, cores)
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, preexec_fn=pin)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def run_rounds(
    commands: dict[str, list[str]], rounds: int, *, at_once: bool = False
) -> dict[str, list[dict[str, Any]]]:
    """What the commands print, run ``rounds`` times over: in turn, so that a machine that drifts drifts for all.

    Or all ``at_once``, each on as many cores of its own. ``{turn}`` in a command becomes the round's number, from 0: a
    seed.
    """
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in commands}
    cores = sorted(os.sched_getaffinity(0))
    share = len(cores) // len(commands)
    parts = [set(cores[number * share : (number + 1) * share]) if at_once else None for number in range(len(commands))]
    for turn in range(rounds):
        words = [[word.replace("{turn}", str(turn)) for word in command] for command in commands.values()]
        start = time.perf_counter()
        with ThreadPoolExecutor(len(commands) if at_once else 1) as pool:
            for name, result in zip(commands, pool.map(run_json, words, parts), strict=True):
                runs[name].append(result)
                print(f"round {turn + 1}: {name}: {time.perf_counter() - start:.0f} s", file=sys.stderr)
    return runs


def side_by_side(commands: dict[str, list[str]], rounds: int) -> dict[str, dict[str, Any]]:
    """Run the commands in turn, as `run_rounds` does; medians."""
    return {name: medians(values) for name, values in run_rounds(commands, rounds).items()}


def medians(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """The median of every number; what is no number is taken from the first run."""
    out = {}
    for key, value in runs[0].items():
        number = isinstance(value, int | float) and not isinstance(value, bool)
        out[key] = statistics.median(run[key] for run in runs) if number else value
    return out


def ratios(ours: dict[str, Any], peer: dict[str, Any]) -> dict[str, float]:
    """Ours over the peer's for every figure that both have."""
    shared = [key for key in ours if all(type(side.get(key)) in (int, float) for side in (ours, peer))]
    return {key: round(ours[key] / peer[key], 3) for key in shared if peer[key]}


def machine_kind(machine: dict[str, Any]) -> str:
    """What decides speed, as a folder's name: the accelerator, or the widest instructions and the number of cores."""
    widest = (machine["cpu_features"] or ["plain"])[-1]
    return (machine["gpu"] or f"{widest}-{machine['cores']}cores").replace(" ", "-")


def write_result(name: str, value: dict[str, Any]) -> Path:
    """Keep a result, which holds its ``machine``, under ``bench/results/KIND-OF-MACHINE``."""
    folder = RESULTS / machine_kind(value["machine"])
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    path.write_text(json.dumps(value, indent=2) + "\n")
    return path
