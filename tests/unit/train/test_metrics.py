"""metrics.jsonl: strict rows, and none of work that was lost."""

import json
import math
import sys
from pathlib import Path

import pytest

from langwright.core.json_text import parse_json
from langwright.train.metrics import BOARD, METRICS, MetricsLog, read_metrics


def test_rows_are_strict_json_and_kept(tmp_path: Path):
    with MetricsLog(tmp_path) as log:
        log.write("step", 1, loss=2.5, lr=0.1)
        log.write("skip", 2, loss=math.nan, grad_norm=math.inf)
        log.write("sample", 2, text="ü\n")
    lines = (tmp_path / METRICS).read_text(encoding="utf-8").splitlines()
    assert [parse_json(line, "row") for line in lines] == log.rows
    assert log.rows == [
        {"event": "step", "step": 1, "loss": 2.5, "lr": 0.1},
        {"event": "skip", "step": 2, "loss": None, "grad_norm": None},
        {"event": "sample", "step": 2, "text": "ü\n"},
    ]


def test_a_new_run_starts_empty_and_a_continued_one_drops_what_came_after(tmp_path: Path):
    with MetricsLog(tmp_path) as log:
        for step in (1, 2, 3):
            log.write("step", step, loss=float(step))
    with MetricsLog(tmp_path, resumed_at=2) as log:
        log.write("step", 3, loss=30.0)
    assert [row["loss"] for row in log.rows] == [1.0, 2.0, 30.0]
    assert read_metrics(tmp_path / METRICS, 99) == log.rows
    with MetricsLog(tmp_path) as log:
        assert log.rows == []
    assert (tmp_path / METRICS).read_text() == ""


def test_a_line_cut_off_by_a_crash_is_left_out(tmp_path: Path):
    path = tmp_path / METRICS
    path.write_text(json.dumps({"event": "step", "step": 1}) + '\n{"event": "st')
    assert read_metrics(path, 9) == [{"event": "step", "step": 1}]
    assert read_metrics(tmp_path / "missing", 9) == []


def test_curves_go_to_tensorboard_where_it_is_installed(tmp_path: Path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with MetricsLog(tmp_path) as log:
        assert log.has_board
        log.write("step", 7, loss=2.5)
    events = EventAccumulator(str(tmp_path / BOARD)).Reload()
    assert [(item.step, item.value) for item in events.Scalars("step/loss")] == [(7, 2.5)]


def test_works_without_tensorboard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with MetricsLog(tmp_path) as log:
        assert not log.has_board
        log.write("step", 1, loss=1.0)
    assert not (tmp_path / BOARD).exists()
