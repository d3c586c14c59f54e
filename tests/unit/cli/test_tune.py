"""The verb `tune`."""

import json
from pathlib import Path

import pytest

from langwright.cli.tune import METHODS, TASKS, run
from langwright.train.tuning.config import load_tuning
from tests.unit.train.tuning.talk import make_base, write_lines


def test_every_method_has_settings_and_a_task():
    assert set(TASKS) == set(METHODS)
    for method in METHODS:
        assert load_tuning(method, "x").method == method


def test_rewards_by_their_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    base = make_base(tmp_path / "base")
    data = write_lines(tmp_path / "rows.jsonl", [{"question": f"Say {n}", "answer": f"{n}"} for n in range(6)])
    flags = {
        "data": data,
        "out": tmp_path / "out",
        "grpo.rewards": "format=0.5",
        "grpo.pattern": "[a-z]",
        "grpo.group": 2,
        "grpo.max-new-tokens": 2,
        "examples.val-share": 0.4,
        "train.max-steps": 1,
        "train.context": 64,
        "train.dtype": "float32",
        "device": "cpu",
        "threads": 1,
    }
    words = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
    assert run(["grpo", str(base), *words, "--json"]) == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert 0 <= told["val_reward_low"] <= told["val_reward"] <= told["val_reward_high"] <= 0.5
    about = json.loads((tmp_path / "out" / "last" / "langwright.json").read_text())
    assert about["config"]["grpo"]["rewards"] == {"format": 0.5}
