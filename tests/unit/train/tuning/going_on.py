"""A run that is cut short and continued is the run that was never stopped."""

import shutil
from collections.abc import Callable
from pathlib import Path

from langwright.train.checkpoint import list_checkpoints
from langwright.train.session import TrainResult


def assert_goes_on(resume: Callable[[Path], TrainResult], out: Path, result: TrainResult) -> None:
    """Continue a copy of the finished run in ``out`` from its first checkpoint: the same figures and the same bytes."""
    cut = out.with_name("cut")
    shutil.copytree(out, cut, symlinks=True)
    for path in list_checkpoints(cut)[1:]:
        shutil.rmtree(path)
    assert resume(cut).score == result.score
    for one in (out / "last").glob("*.safetensors"):
        assert one.read_bytes() == (cut / "last" / one.name).read_bytes()
