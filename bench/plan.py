"""A plan beside what comes of it: ``python -m bench.plan [--config NAME ...] --json``.

For each configuration of `bench.train`, one process plans a training run as `langwright plan` does, from a measurement
of a few steps; then another process does the run, and both do so again in every round. Prints predicted and actual
seconds and peak memory, and the difference in percent of the actual: the median of the rounds, and each.
"""

import argparse
import json
import statistics
import sys

import torch

from bench.machine import describe_machine, run_json, write_result
from bench.train import CONFIGS, configure
from langwright.core.hardware import available_memory
from langwright.core.runtime import set_threads
from langwright.train.compute import pick_compute_dtype
from langwright.train.planning.pace import measure_pace
from langwright.train.planning.plan import Machine, plan_run

KEYS = ("training_seconds", "peak_memory_bytes")


def predict(name: str, steps: int, device: str) -> dict:
    """Seconds in steps, and the peak of memory."""
    _, _, _, context, vocab, _ = CONFIGS[name]
    here = torch.device(device)
    dtype = str(pick_compute_dtype("auto", here)).removeprefix("torch.")
    config = configure(name, steps, dtype).replace(device=device, threads=set_threads(None))
    shape = config.model.build(vocab_size=vocab, context=context)
    machine = Machine(device, here.type, available_memory(here))
    plan = plan_run(config, shape, machine, pace=measure_pace(config, shape))
    assert plan.time is not None
    assert plan.memory is not None
    return {"training_seconds": plan.time.training, "peak_memory_bytes": plan.memory.peak, "terms": plan.memory.terms}


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", choices=CONFIGS, nargs="+", default=list(CONFIGS))
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--predict", action="store_true", help="only plan the --config, in this process")
    parser.add_argument("--json", action="store_true", help="one JSON object (the default)")
    args = parser.parse_args()
    if args.predict:
        print(json.dumps(predict(args.config[0], args.steps, args.device)))
        return
    rounds: dict[str, list[dict]] = {name: [] for name in args.config}
    for name in [each for _ in range(args.rounds) for each in args.config]:
        size = ["--config", name, "--steps", str(args.steps), "--device", args.device]
        predicted = run_json([sys.executable, "-m", "bench.plan", "--predict", *size])
        actual = run_json([sys.executable, "-m", "bench.train", *size])
        off = {key: round(100 * (predicted[key] / actual[key] - 1), 1) for key in predicted if key != "terms"}
        rounds[name].append({"predicted": predicted, "actual": actual, "off_percent": off})
        print(name, off, file=sys.stderr)
    report: dict = {
        name: {
            "off_percent": {key: statistics.median(each["off_percent"][key] for each in found) for key in KEYS},
            "rounds": found,
        }
        for name, found in rounds.items()
    }
    report |= {"steps": args.steps, "machine": describe_machine()}
    if len(args.config) == len(CONFIGS):
        write_result("plan", report)
    print(json.dumps(report))


if __name__ == "__main__":
    main()
