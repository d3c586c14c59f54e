"""Start one torchrun on every machine of a Ray cluster, and end when all of them have ended.

    python deploy/ray_nodes.py --nodes 2 --gpus 8 -- gpt2-124m --data DATA --out OUT

Ray finds the machines and says when one of them is lost; torchrun and Langwright do the rest, as on any other cluster.
The exit code is that of the first torchrun that failed.
"""

import argparse
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import ray
from ray.util.placement_group import placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

SCRIPT = Path(__file__).with_name("torchrun.sh")


@ray.remote(max_restarts=0)
class Node:
    """A machine of the run."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._told = threading.Event()

    def address(self) -> tuple[str, int]:
        """Where the others meet this one."""
        with socket.socket() as probe:
            probe.bind(("", 0))
            return ray.util.get_node_ip_address(), probe.getsockname()[1]

    def run(self, arguments: list[str], settings: dict[str, str]) -> int:
        """Run torchrun to its end; its exit code."""
        if self._told.is_set():
            return 1
        self._process = subprocess.Popen(["bash", str(SCRIPT), *arguments], env=os.environ | settings)
        return self._process.wait()

    def stop(self) -> None:
        """Have it save and end."""
        self._told.set()
        if self._process is not None:
            self._process.send_signal(signal.SIGTERM)


def main() -> int:
    """Parse, start, wait."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, required=True, help="machines")
    parser.add_argument("--gpus", type=int, default=0, help="GPUs of a machine; 0: run on CPUs")
    parser.add_argument("--cpus", type=int, default=1, help="CPUs of a machine that the run takes")
    parser.add_argument("--processes", type=int, help="processes a machine; default: one a GPU")
    parser.add_argument("arguments", nargs="+", help="what follows `langwright train`")
    given = parser.parse_args()

    ray.init()
    needs = {"CPU": given.cpus} | ({"GPU": given.gpus} if given.gpus else {})
    group = placement_group([needs] * given.nodes, strategy="STRICT_SPREAD")
    ray.get(group.ready())
    nodes = [
        Node.options(
            num_cpus=given.cpus,
            num_gpus=given.gpus,
            max_concurrency=2,  # so that `stop` is heard while `run` goes on
            scheduling_strategy=PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=number),
        ).remote()
        for number in range(given.nodes)
    ]
    host, port = ray.get(nodes[0].address.remote())
    settings = {"NODES": str(given.nodes), "HEAD": host, "PORT": str(port)}
    settings["PROCESSES"] = str(given.processes or given.gpus or 1)

    def stop(*_: object) -> None:
        for node in nodes:
            node.stop.remote()

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    waiting = [node.run.remote(given.arguments, settings) for node in nodes]
    code = 0
    while waiting:
        ended, waiting = ray.wait(waiting)
        for each in ended:
            try:
                one = ray.get(each)
            except ray.exceptions.RayError as error:
                print(f"a machine was lost: {error}", file=sys.stderr)
                one = 1
            if one and not code:
                code = one
                stop()
    return code


if __name__ == "__main__":
    sys.exit(main())
