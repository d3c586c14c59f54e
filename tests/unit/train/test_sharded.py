"""Shares on disk: read by any number of ranks, and never half."""

import json
import shutil
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from langwright.core.errors import FormatError
from langwright.train.ranks import joined_ranks
from langwright.train.sharded import OFFSETS, PARTS, check_shards, inspect_shards, read_shards, stage, write_shards
from tests.unit.train.on_ranks import on_ranks

pytestmark = pytest.mark.xdist_group("sharded")  # what the ranks leave is made once


def originals() -> dict[str, Tensor]:
    """Whole tensors: divisible or not by 2 and 4, fewer rows than ranks, numbers."""
    generator = torch.Generator().manual_seed(0)
    shapes = {"even": (8, 3), "odd": (7, 5), "few": (1, 4), "vector": (9,)}
    found = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    return found | {"step:x": torch.tensor(12.0), "rounded": torch.randn(6, 2, generator=generator).bfloat16()}


def on_mesh(size: int, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    mesh = init_device_mesh("cpu", (size,))
    return {name: distribute_tensor(each, mesh, [Shard(0)]) if each.ndim else each for name, each in tensors.items()}


def write(out: str) -> None:
    """What every rank does to write; a copy is written, and the originals change meanwhile."""
    with joined_ranks("cpu") as ranks:
        tensors = on_mesh(ranks.size, originals())
        staged = stage(tensors)
        for tensor in tensors.values():
            tensor.zero_()
        write_shards(Path(out), staged, ranks.saving)


def read(out: str) -> None:
    """What every rank does to read."""
    with joined_ranks("cpu") as ranks:
        wanted = originals()
        tensors = on_mesh(ranks.size, {name: torch.zeros_like(tensor) for name, tensor in wanted.items()})
        read_shards(Path(out), tensors, ranks.words)
        for name, tensor in tensors.items():
            whole = tensor.full_tensor() if tensor.ndim else tensor  # type: ignore[attr-defined]
            assert torch.equal(whole, wanted[name]), name


def read_alone(folder: Path) -> dict[str, Tensor]:
    tensors = {name: torch.zeros_like(tensor) for name, tensor in originals().items()}
    read_shards(folder, tensors)
    return tensors


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    on_ranks(2, "tests.unit.train.test_sharded:write", folder)
    return folder


def test_one_process_reads_what_two_wrote(written: Path):
    assert not [path for path in written.iterdir() if path.suffix != ".safetensors"]  # no pickled index
    found, expected = read_alone(written), originals()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert {name: info.shape for name, info in inspect_shards(written).items()} == {
        name: tuple(tensor.shape) for name, tensor in expected.items()
    }


@pytest.mark.slow
def test_four_ranks_read_what_two_wrote(written: Path):
    on_ranks(4, "tests.unit.train.test_sharded:read", written)


def test_whole_files_are_read_as_well(tmp_path: Path):
    save_file(originals(), tmp_path / "optimizer.safetensors")
    assert all(torch.equal(value, originals()[name]) for name, value in read_alone(tmp_path).items())


def test_wrong_shapes_and_missing_names_are_told(written: Path):
    with pytest.raises(FormatError, match=r"'odd' has the shape \(7, 5\), and the model needs \(7, 6\)"):
        check_shards(written, {"odd": torch.zeros(7, 6)})
    with pytest.raises(FormatError, match="'other' is missing"):
        check_shards(written, {"other": torch.zeros(1)})
    with pytest.raises(FormatError, match="holds no tensors"):
        check_shards(written / "nowhere", {})


def test_a_missing_file_leaves_holes_and_is_refused(written: Path, tmp_path: Path):
    first, *_ = sorted(written.iterdir())
    shutil.copy(first, tmp_path)
    shutil.copy(first, tmp_path / "again.safetensors")
    with pytest.raises(FormatError, match="do not fit together; a file is missing or damaged"):
        inspect_shards(tmp_path)
    (tmp_path / "again.safetensors").unlink()
    last = sorted(written.iterdir())[-1]
    shutil.copy(last, tmp_path)
    first_only = tmp_path / first.name
    first_only.unlink()
    with pytest.raises(FormatError, match="do not fit together"):
        inspect_shards(tmp_path)


@pytest.mark.parametrize("lie", [None, "x", [0], [0, -1], [0, True], [0, 1 << 60], [0, 0.5], {"a": 1}])
def test_headers_that_lie_are_refused(tmp_path: Path, lie: Any):
    told = json.dumps({"w": {OFFSETS: lie}})
    save_file({"w": torch.zeros(2, 2)}, tmp_path / "a.safetensors", {PARTS: told})
    with pytest.raises(FormatError, match="does not say where its part of 'w' belongs"):
        inspect_shards(tmp_path)


@pytest.mark.parametrize("told", ["", "[]", "{", '{"w": 1}'])
def test_broken_words_in_headers_are_refused(tmp_path: Path, told: str):
    save_file({"w": torch.zeros(2, 2)}, tmp_path / "a.safetensors", {PARTS: told})
    with pytest.raises(FormatError):
        inspect_shards(tmp_path)


def test_parts_of_several_kinds_are_refused(tmp_path: Path):
    for number, tensor in enumerate((torch.zeros(2, 2), torch.zeros(2, 2).bfloat16())):
        told = json.dumps({"w": {OFFSETS: [2 * number, 0]}})
        save_file({"w": tensor}, tmp_path / f"{number}.safetensors", {PARTS: told})
    with pytest.raises(FormatError, match="several dtypes or dimensions"):
        inspect_shards(tmp_path)


def test_overlapping_parts_are_refused(tmp_path: Path):
    """As many numbers as the whole has, but one row twice and one not at all."""
    for number, start in enumerate((0, 1, 3)):
        told = json.dumps({"w": {OFFSETS: [start, 0]}})
        rows = 2 if number < 1 else 1
        save_file({"w": torch.zeros(rows, 2)}, tmp_path / f"{number}.safetensors", {PARTS: told})
    with pytest.raises(FormatError, match="do not fit together"):
        inspect_shards(tmp_path)


def test_a_file_in_the_form_of_ours_is_strictly_read(written: Path, tmp_path: Path):
    """The reader of safetensors would accept two tensors of one name."""
    path = shutil.copy(next(written.iterdir()), tmp_path)
    content = Path(path).read_bytes()
    size = struct.unpack("<Q", content[:8])[0]
    header = content[8 : 8 + size].decode().rstrip()
    doubled = (header[:-1] + ', "even": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}}').encode()
    Path(path).write_bytes(struct.pack("<Q", len(doubled)) + doubled + content[8 + size :])
    with pytest.raises(FormatError):
        inspect_shards(tmp_path)


def test_shares_are_ordinary_safetensors(written: Path):
    rows = [load_file(path)["even"].shape[0] for path in sorted(written.iterdir())]
    assert rows == [4, 4]
