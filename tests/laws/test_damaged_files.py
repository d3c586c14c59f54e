"""Law: no damage of a checkpoint or of data goes unnoticed, and no disk that fails costs what was there before."""

import os
import random
import resource
import shutil
import subprocess
from pathlib import Path

import pytest

from langwright.core.errors import FormatError, UserError
from langwright.core.files import verify_folder
from langwright.train.checkpoint import list_checkpoints, newest_checkpoint
from langwright.train.run import train
from tests.unit.train.file_layer import in_child
from tests.unit.train.tiny import make_config, prepare_text, quiet

CONFIG = make_config(train={"save_every": 2, "keep": 9})
ROOT_ONLY = pytest.mark.skipif(os.geteuid() != 0, reason="mounts a disk")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare_text(tmp_path_factory.mktemp("text"))


def flip(path: Path, bit: int) -> None:
    with path.open("r+b") as file:
        file.seek(bit // 8)
        (byte,) = file.read(1)
        file.seek(bit // 8)
        file.write(bytes([byte ^ 1 << bit % 8]))


@pytest.mark.parametrize("flips", [300, pytest.param(10_000, marks=pytest.mark.slow)])
def test_every_flipped_bit_of_a_checkpoint_is_found(data: Path, tmp_path: Path, flips: int):
    """Half of them anywhere in its bytes, half in a file drawn first, so that the small ones get theirs."""
    train(CONFIG, data, tmp_path, console=quiet())
    folder = tmp_path / "step-00000006"
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    assert len(files) >= 9
    sizes = [path.stat().st_size for path in files]
    rng = random.Random(0)
    for number in range(flips):
        path = rng.choices(files, sizes if number % 2 else None)[0]
        bit = rng.randrange(path.stat().st_size * 8)
        flip(path, bit)
        with pytest.raises(FormatError):
            verify_folder(folder)
        flip(path, bit)
    verify_folder(folder)
    flip(folder / "optimizer.safetensors", 12345)
    assert newest_checkpoint(tmp_path, lambda _: None) == tmp_path / "step-00000004"


def test_damaged_data_are_refused_before_any_work(data: Path, tmp_path: Path):
    copy = Path(shutil.copytree(data, tmp_path / "data"))
    shard, rng = copy / "train" / "tokens-00000.bin", random.Random(1)
    for _ in range(20):
        bit = rng.randrange(shard.stat().st_size * 8)
        flip(shard, bit)
        with pytest.raises(FormatError, match=r"tokens-00000\.bin.* prepare the data again"):
            train(CONFIG, copy, tmp_path / "run", console=quiet())
        flip(shard, bit)
    shard.unlink()
    with pytest.raises(FormatError, match="prepare the data again"):
        train(CONFIG, copy, tmp_path / "run", console=quiet())
    assert not (tmp_path / "run").exists()


def mount(folder: Path, *options: str) -> None:
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", ",".join(options), "none", folder], check=False)
    if done.returncode:
        pytest.skip("mounting is not allowed here")


@ROOT_ONLY
@pytest.mark.parametrize("background", [False, True])
def test_a_full_disk_keeps_what_was_there(data: Path, tmp_path: Path, background: bool):
    """A real one, with room for three checkpoints or so; with more room the run goes on to the same end."""
    config = CONFIG.replace(train=CONFIG.train.replace(max_steps=20, save_in_background=background))
    whole = train(config, data, tmp_path / "whole", console=quiet())
    size = sum(path.stat().st_size for path in whole.checkpoint.rglob("*"))
    out = tmp_path / "disk"
    out.mkdir()
    mount(out, f"size={size * 4 // 1024}k")
    try:
        with pytest.raises(UserError, match="the disk is full"):
            train(config, data, out, console=quiet())
        there = list_checkpoints(out)
        assert there
        for folder in there:
            verify_folder(folder)
        assert not [path.name for path in out.iterdir() if path.name.startswith(".")]
        mount(out, "remount", "size=64m")
        part = train(config, data, out, resume=True, console=quiet())
        for name in ("model.safetensors", "optimizer.safetensors"):
            assert (part.checkpoint / name).read_bytes() == (whole.checkpoint / name).read_bytes()
    finally:
        subprocess.run(["umount", out], check=True)


@ROOT_ONLY
def test_a_disk_that_became_read_only(data: Path, tmp_path: Path):
    mount(tmp_path, "size=8m")
    try:
        train(CONFIG, data, tmp_path / "run", console=quiet())
        before = sorted(path.name for path in (tmp_path / "run").rglob("*"))
        mount(tmp_path, "remount", "ro")
        longer = CONFIG.replace(train=CONFIG.train.replace(max_steps=9))
        with pytest.raises(UserError, match="Read-only file system"):
            train(longer, data, tmp_path / "run", resume=True, console=quiet())
        assert sorted(path.name for path in (tmp_path / "run").rglob("*")) == before
    finally:
        subprocess.run(["umount", tmp_path], check=True)


def test_files_that_may_not_grow(data: Path, tmp_path: Path):
    """A limit on the size of files lets small ones through and stops the weights; no right to mount is needed."""

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (16_384, resource.RLIM_INFINITY))
        with pytest.raises(UserError, match="cannot be written: File too large"):
            train(CONFIG, data, tmp_path, resume=True, console=quiet())

    train(CONFIG.replace(train=CONFIG.train.replace(max_steps=2)), data, tmp_path, console=quiet())
    assert in_child(limited) == 0
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-00000002"]
    verify_folder(tmp_path / "last")
    assert not [path.name for path in tmp_path.iterdir() if path.name.startswith(".")]
    assert train(CONFIG, data, tmp_path, resume=True, console=quiet()).steps == 6
