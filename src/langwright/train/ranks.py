"""The processes of one run: which of them this one is, and the few words that they exchange.

`torchrun` starts them and says in the environment who is who. Host-side words (numbers, lines of text) go through gloo
in a group of their own, whatever moves the tensors; they are never objects, so nothing is unpickled here.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from langwright.core.errors import UserError

LONGEST = 4000
"""Bytes of a line that ranks tell each other."""


class SharedError(UserError):
    """An error that every rank raises with the same words, so that the first alone has to tell it."""


@dataclass(frozen=True)
class Ranks:
    """This process among ``size``; the default is a process alone, for which every method does nothing."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    """Number on this machine, which is also the number of its GPU."""
    local_size: int = 1
    words: Any = None
    """The gloo group of the main thread."""
    saving: Any = None
    """The gloo group of the thread that writes checkpoints; two threads in one group would take each other's words."""

    @property
    def alone(self) -> bool:
        """Whether there is no other."""
        return self.size == 1

    @property
    def first(self) -> bool:
        """Whether this is the one that speaks and writes."""
        return self.rank == 0

    def total(self, *numbers: float) -> list[float]:
        """The sums over all ranks, in float64; all of them must ask."""
        if self.alone:
            return list(numbers)
        sums = torch.tensor(numbers, dtype=torch.float64)
        dist.all_reduce(sums, group=self.words)
        return sums.tolist()

    def texts(self, text: str, *, group: Any = None) -> list[str]:
        """What each rank says, in their order, cut off at `LONGEST` bytes; all of them must ask."""
        if self.alone:
            return [text]
        coded = text.encode("utf-8")[:LONGEST]
        mine = torch.zeros(LONGEST + 8, dtype=torch.uint8)
        mine[:8] = torch.tensor(list(len(coded).to_bytes(8, "little")), dtype=torch.uint8)
        mine[8 : 8 + len(coded)] = torch.tensor(list(coded), dtype=torch.uint8)
        every = [torch.empty_like(mine) for _ in range(self.size)]
        dist.all_gather(every, mine, group=group or self.words)
        heard = [bytes(each.tolist()) for each in every]
        return [each[8 : 8 + int.from_bytes(each[:8], "little")].decode("utf-8", "replace") for each in heard]

    def from_first(self, text: str | None, *, group: Any = None) -> str | None:
        """What the first rank says; the others' ``text`` is not looked at. None stays None."""
        said = self.texts("" if text is None else f"+{text}", group=group)[0]
        return said[1:] if said else None

    @contextmanager
    def agreeing(self, *, group: Any = None) -> Iterator[None]:
        """What goes wrong inside on any rank is raised on all of them, as one `SharedError`.

        What goes wrong is an `Exception` that is for users; any other is told by its name as well and goes on its way
        on the rank where it was raised. Inside, no rank may wait for another.
        """
        if self.alone:
            yield
            return
        error: Exception | None = None
        try:
            yield
        except Exception as found:
            error = found
        told = (
            "" if error is None else str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        )
        told = told or ("" if error is None else type(error).__name__)
        lines = self.texts(told, group=group)
        if error is not None and not isinstance(error, UserError):
            raise error
        if any(lines):
            each = {line: f"rank {rank}: {line}" for rank, line in reversed(list(enumerate(lines))) if line}
            same = len(each) == 1 and all(lines)
            raise SharedError(next(iter(each)) if same else "; ".join(reversed(each.values()))) from error

    def wait(self) -> None:
        """Until all ranks are here."""
        if not self.alone:
            dist.barrier(group=self.words)


ALONE = Ranks()


def speaks() -> bool:
    """Whether this process is the one of its run that tells the user anything."""
    return os.environ.get("WORLD_SIZE", "1") == "1" or os.environ.get("RANK", "0") == "0"


@contextmanager
def joined_ranks(device: str, environment: Mapping[str, str] | None = None) -> Iterator[Ranks]:
    """Join the other processes that `torchrun` started, if it did; ``device`` is the setting of that name.

    Tensors go through NCCL between GPUs and through gloo between CPUs. A process group that is there already (Ray Train
    makes one) is used and left in place. Raises `UserError` when the environment makes no sense or GPUs are too few.
    """
    read = _read_environment(os.environ if environment is None else environment)
    if read is None:
        yield ALONE
        return
    rank, size, local_rank, local_size = read
    kind = device.partition(":")[0]
    on_cuda = kind == "cuda" or (kind == "auto" and torch.cuda.is_available())
    if on_cuda:
        if local_rank >= torch.cuda.device_count():
            raise UserError(
                f"rank {rank} is number {local_rank} on its machine, which has {torch.cuda.device_count()} GPUs; start "
                "as many processes a machine as it has GPUs, or set device to cpu"
            )
        torch.cuda.set_device(local_rank)
    there = dist.is_initialized()
    if not there:
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if on_cuda else "gloo",
            rank=rank,
            world_size=size,
            device_id=torch.device("cuda", local_rank) if on_cuda else None,
        )
    words, saving = (dist.new_group(backend="gloo") for _ in range(2))
    try:
        yield Ranks(rank, size, local_rank, local_size, words, saving)
    except SharedError:
        if not there:
            dist.destroy_process_group()
        raise
    # After any other error some rank may be gone, and leaving in good order would wait for it; the process ends anyway.
    if not there:
        dist.destroy_process_group()


def _read_environment(environment: Mapping[str, str]) -> tuple[int, int, int, int] | None:
    """Rank, world size, local rank, local world size; None for a process alone."""
    if environment.get("WORLD_SIZE", "1") == "1":
        return None
    numbers = []
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        text = environment.get(name, "")
        if not text.isascii() or not text.isdigit():
            raise UserError(
                f"WORLD_SIZE is {environment['WORLD_SIZE']!r:.40} and {name} is {text!r:.40} in the environment; start "
                "several processes with torchrun, or unset WORLD_SIZE"
            )
        numbers.append(int(text))
    rank, size, local_rank, local_size = numbers
    if not (rank < size and local_rank < local_size <= size):
        raise UserError(f"rank {rank} of {size} (number {local_rank} of {local_size} here) cannot be; use torchrun")
    return rank, size, local_rank, local_size
