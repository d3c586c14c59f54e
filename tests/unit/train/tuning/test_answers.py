"""Held-out answers, example by example."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from langwright.core.json_text import read_json_object
from langwright.data.loader import IGNORED
from langwright.model.checkpoint.load import load_model
from langwright.train.objective import MASKED_LM, to_device
from langwright.train.run import run_task
from langwright.train.tuning.answers import ANSWERS, nats_by_document
from langwright.train.tuning.rows import Rows, as_sequence, lay_out
from langwright.train.tuning.sft import sft
from tests.unit.train.tuning.talk import chats, make_base, make_tuning, write_lines


def test_documents_of_a_row_cost_what_they_cost_alone(tmp_path: Path):
    model = load_model(make_base(tmp_path / "base"), dtype=torch.float32).eval()
    rng = np.random.default_rng(0)
    sizes = [5, 9, 3, 7, 12]
    examples = [as_sequence(rng.integers(0, 200, size + 1).tolist(), rng.random(size + 1) < 0.7) for size in sizes]
    rows = Rows(examples, lay_out(sizes, 16, pack=True), 0)
    piece = to_device(rows.batch(range(len(rows))), torch.device("cpu"))
    with torch.no_grad():
        found = nats_by_document(model, piece)
        assert found.sum().item() == pytest.approx(MASKED_LM.loss(model, piece).item(), rel=1e-5)
        for row, numbers in enumerate(rows.layout):
            for document, number in enumerate(numbers):
                ids, targets = (torch.from_numpy(each) for each in examples[number])
                kept = targets != IGNORED
                alone = torch.log_softmax(model(ids[None])[0].double(), -1)[kept].gather(1, targets[kept][:, None])
                assert found[row, document].item() == pytest.approx(-alone.sum().item(), rel=1e-4, abs=1e-6)


def test_tells_how_sure_the_change_is(tmp_path: Path):
    base = make_base(tmp_path / "base")
    data = write_lines(tmp_path / "chats.jsonl", chats())
    config = make_tuning(base, **{"train.max_steps": 40, "train.lr": 3e-2})
    result = run_task(
        config,
        lambda spread, say: sft(config, [data], (), say, spread=spread),
        tmp_path / "out",
        console=Console(quiet=True),
    )
    found = read_json_object(tmp_path / "out" / ANSWERS)["bits_per_byte"]
    first, *_, last = [row["val_bpb"] for row in result.history if row["event"] == "eval"]
    assert found["before"]["value"] == pytest.approx(first, rel=1e-5)
    assert found["after"]["value"] == pytest.approx(last, rel=1e-5)
    assert found["change"]["value"] == pytest.approx(last - first, rel=1e-3)
    low, high = found["change"]["ci95"]
    assert low <= found["change"]["value"] <= high
    assert found["change"]["value"] < 0
    assert math.isfinite(low + high)
