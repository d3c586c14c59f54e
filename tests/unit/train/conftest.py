"""What every test of training stands on."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from langwright.data.shards import TokenShards
from tests.unit.train.tiny import make_shards


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def shards(tmp_path: Path) -> TokenShards:
    """A thousand tokens."""
    return make_shards(tmp_path / "shards")
