"""Rewards that can be checked."""

import sys
import time
from decimal import Decimal
from pathlib import Path

import pytest

from langwright.core.errors import UserError
from langwright.data.examples import Problem
from langwright.train.tuning.config import GrpoSettings, load_tuning
from langwright.train.tuning.verifiers import (
    arithmetic,
    check_problem,
    check_settings,
    exit_code,
    last_number,
    python,
    rewards_of,
)

ASKED = ({"role": "user", "content": "6 x 3?"},)
RUN = f"{sys.executable} -I -"


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("6 x 3 = 18.", "18"),
        ("#### 1,234", "1234"),
        ("in all 1,234,567.50 dollars", "1234567.50"),
        ("1, 2, 3", "3"),
        ("答案是18。", "18"),
        ("x = -5", "-5"),
        ("\N{MINUS SIGN}5", "-5"),
        ("10-5", "5"),
        ("the answer is (-0.5)", "-0.5"),
        ("no number", None),
        ("", None),
    ],
)
def test_last_number(text: str, number: str | None):
    assert last_number(text) == (None if number is None else Decimal(number))


def test_arithmetic_compares_numbers_not_texts():
    settings, problem = GrpoSettings(), Problem(ASKED, "6 times 3 is 18\n#### 18")
    assert arithmetic(settings, problem, "So it is 18.0.") == 1
    assert arithmetic(settings, problem, "18 or 19") == 0
    assert arithmetic(settings, problem, "eighteen") == 0


def test_rewards_are_weighed():
    settings = GrpoSettings(rewards={"arithmetic": 2.0, "format": 0.5, "python": 0.0}, pattern=r"<think>.*</think>")
    problem = Problem(ASKED, "18")
    assert rewards_of(settings, problem, "<think>6\n3</think> 18") == {"arithmetic": 2.0, "format": 0.5}
    assert rewards_of(settings, problem, "18") == {"arithmetic": 2.0, "format": 0.0}


def test_python_runs_the_last_block_with_the_tests():
    settings = GrpoSettings(rewards={"python": 1.0}, command=RUN)
    problem = Problem(ASKED, "", "assert double(4) == 8")
    said = "First:\n```python\n1/0\n```\nbetter:\n```python\ndef double(x):\n    return {}\n```\nDone."
    assert python(settings, problem, said.format("2 * x")) == 1
    assert python(settings, problem, said.format("x")) == 0
    assert python(settings, problem, "def double(x): return x + x") == 1
    for early in ("import sys; sys.exit(0)", "import os; os._exit(0)", "'''", "raise SystemExit(130)"):
        assert python(settings, problem, early) == 0


def test_a_program_has_an_empty_folder_a_bare_environment_and_no_more_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("SECRET_OF_MINE", "x")
    look = "import os\nassert os.listdir('.') == [] and 'SECRET_OF_MINE' not in os.environ and 'HOME' not in os.environ"
    command = RUN.split()
    assert exit_code(command, look, 30) == 0
    mark = tmp_path / "late"
    child = f"import time; time.sleep(2); open({str(mark)!r}, 'w')"
    late = f"import subprocess, sys\nsubprocess.Popen([sys.executable, '-c', {child!r}])"
    assert exit_code(command, late + "\nimport time; time.sleep(60)", 1.0) is None
    assert exit_code(command, "while True: pass", 0.5) is None
    time.sleep(2.5)
    assert not mark.exists()  # what it had started was ended with it


def test_refusals():
    with pytest.raises(UserError, match="--grpo.command"):
        check_settings(GrpoSettings(rewards={"python": 1.0}))
    with pytest.raises(UserError, match="no program 'no-such-program'"):
        check_settings(GrpoSettings(rewards={"python": 1.0}, command="no-such-program -"))
    with pytest.raises(UserError, match="--grpo.pattern"):
        check_settings(GrpoSettings(rewards={"format": 1.0}))
    with pytest.raises(UserError, match="no regular expression"):
        check_settings(GrpoSettings(rewards={"format": 1.0}, pattern="("))
    with pytest.raises(UserError, match=r"row 3: an answer without a number"):
        check_problem(GrpoSettings(), Problem(ASKED, "eighteen", where="row 3"))
    with pytest.raises(UserError, match=r"row 3: no tests"):
        check_problem(GrpoSettings(rewards={"python": 1.0}), Problem(ASKED, "18", where="row 3"))
    for over, told in (
        ({"grpo.group": 1}, r"grpo.group: .* greater than or equal to 2"),
        ({"grpo.rewards": {"luck": 1.0}}, "no reward is called 'luck'"),
        ({"grpo.rewards": {"arithmetic": 0.0}}, "nothing is rewarded"),
    ):
        with pytest.raises(UserError, match=told):
            load_tuning("grpo", "x", over)
