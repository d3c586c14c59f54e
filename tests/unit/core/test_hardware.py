"""The machine's memory, from files that are laid out as the kernel's are."""

import os
from pathlib import Path

import pytest
import torch

from langwright.core import hardware
from langwright.core.hardware import available_memory, describe_hardware, peak_memory

CPU = torch.device("cpu")


def write_group(folder: Path, limit: str, used: int, spare: int, names: tuple[str, str, str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in zip(names, (limit, str(used), f"anon 5\n{names[2]} {spare}\n"), strict=True):
        (folder / (name if name != names[2] else "memory.stat")).write_text(value)


def test_this_machine_is_described() -> None:
    assert 1e8 < (available_memory(CPU) or 0) < 1e14
    assert 1e7 < (peak_memory(CPU) or 0) < 1e13
    told = describe_hardware()
    assert told["cores"] >= 1
    assert told["torch"] == torch.__version__
    assert told["processor"]


def test_the_peak_is_no_less_than_what_is_held() -> None:
    held = torch.ones(10_000_000)  # 40 MB, touched
    status = Path("/proc/self/statm")
    if not status.exists():
        pytest.skip("only Linux tells what a process holds")
    resident = int(status.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    assert 0.9 * resident < (peak_memory(CPU) or 0)  # the kernel counts in batches
    assert resident > held.nbytes


def test_a_container_leaves_what_its_groups_leave(tmp_path: Path) -> None:
    version2 = ("memory.max", "memory.current", "inactive_file")
    membership = tmp_path / "cgroup"
    membership.write_text("0::/slice/inner\n")
    write_group(tmp_path / "slice/inner", "max", 10, 0, version2)
    write_group(tmp_path / "slice", "1000", 400, 50, version2)
    assert hardware._cgroup_left(tmp_path, membership) == 650
    write_group(tmp_path / "slice/inner", "500", 400, 50, version2)
    assert hardware._cgroup_left(tmp_path, membership) == 150


def test_groups_of_version_1(tmp_path: Path) -> None:
    membership = tmp_path / "cgroup"
    membership.write_text("3:cpu:/x\n2:memory:/x\n")
    names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
    write_group(tmp_path / "memory/x", "1000", 900, 100, names)
    assert hardware._cgroup_left(tmp_path, membership) == 200


def test_nothing_is_known_where_nothing_is_told(tmp_path: Path) -> None:
    assert hardware._cgroup_left(tmp_path, tmp_path / "missing") is None
