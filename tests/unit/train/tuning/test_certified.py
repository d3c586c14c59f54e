"""A run of tune leaves a parity certificate of what was trained, which is replayed on what is served."""

from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from langwright.apps.verify import verify
from langwright.core.safetensors_file import SafetensorsFile, write_tensors
from langwright.infer.certificate import PARITY, read_certificate
from langwright.model.adapters.peft_config import WEIGHTS
from langwright.train.run import run_task
from langwright.train.tuning.classify import classify
from langwright.train.tuning.sft import sft
from tests.unit.train.tuning.talk import chats, make_base, make_tuning, write_lines

QUIET = Console(quiet=True)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return make_base(tmp_path / "base")


def tune(config: Any, data: Path, out: Path, task: Any = sft) -> Path:
    run_task(config, lambda spread, say: task(config, [data], (), say, spread=spread), out, console=QUIET)
    return out / "last"


@pytest.mark.parametrize("over", [{}, {"adapter.dora": True, "adapter.dropout": 0.1}, {"adapter": None}])
def test_what_was_trained_is_what_is_served(over: dict[str, Any], base: Path, tmp_path: Path):
    data = write_lines(tmp_path / "chats.jsonl", chats())
    last = tune(make_tuning(base, **over), data, tmp_path / "out")
    certificate = read_certificate(last / PARITY)
    assert certificate.goldens[-1].messages  # a chat, in the template that was trained with
    report = verify(str(tmp_path / "out"))
    assert report.certificate is not None
    assert report.agrees, report.rows
    assert not any((path / PARITY).exists() for path in (tmp_path / "out").glob("step-*") if path != last.resolve())


def test_an_adapter_that_was_changed_afterwards_is_told(base: Path, tmp_path: Path):
    data = write_lines(tmp_path / "chats.jsonl", chats())
    last = tune(make_tuning(base), data, tmp_path / "out")
    with SafetensorsFile.open(last / WEIGHTS) as file:
        tensors = {name: file.tensor(name).clone() for name in file.names}
    name = next(name for name in tensors if "layers.1.mlp.up_proj.lora_B" in name)
    tensors[name] += torch.ones_like(tensors[name])
    write_tensors(last / WEIGHTS, tensors)
    rows = {row.engine: row for row in verify(str(tmp_path / "out")).rows}
    assert rows["files"].verdict == "FAILED"
    assert (rows["merged"].verdict, rows["merged"].place) == ("FAILED", "layer 1")


def test_a_classifier_is_certified_too(base: Path, tmp_path: Path):
    rows = [{"text": f"number {number}", "label": "even" if number % 2 == 0 else "odd"} for number in range(40)]
    data = write_lines(tmp_path / "labels.jsonl", rows)
    config = make_tuning(base, **{"train.lr": 1e-3}).replace(method="classify")
    last = tune(config, data, tmp_path / "out", classify)
    assert read_certificate(last / PARITY).head == "sequence_classifier"
    report = verify(str(tmp_path / "out"))
    assert report.agrees, report.rows
