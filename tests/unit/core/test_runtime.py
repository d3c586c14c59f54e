import platform
import subprocess
import sys

import pytest
import torch

from langwright.core.errors import UserError
from langwright.core.runtime import pick_device, pick_dtype, set_threads

FAULTS = """
import resource, torch
from langwright.core.runtime import keep_freed_memory

def step():
    a = torch.ones(10_000_000)  # 40 MB, more than glibc keeps by itself
    b = a + 1
    c = b * a
    return c.relu()

def faults():
    for _ in range(10):
        step()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        step()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

torch.set_num_threads(1)
plain = faults()
assert keep_freed_memory()
print(plain, faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_memory_is_kept_for_the_next_step():
    done = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True, timeout=60)
    plain, kept = done.stdout.split()
    assert int(plain) > 200  # pages of 4 kB, or huge ones
    assert int(kept) < int(plain) / 4


def test_devices_and_dtypes_that_are_not_there_are_named():
    with pytest.raises(UserError, match="nowhere"):
        pick_device("nowhere")
    with pytest.raises(UserError, match="int7"):
        pick_dtype("int7")
    assert pick_device("cpu") == torch.device("cpu")


def test_threads_are_set_and_told():
    before = torch.get_num_threads()
    assert set_threads(1) == 1
    assert set_threads(before) == before
