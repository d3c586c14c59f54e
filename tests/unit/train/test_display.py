"""What is printed where there is no terminal, and where there is one."""

import io

from rich.console import Console

from langwright.train.display import Display, duration
from langwright.train.loop import StepResult


def steps(count: int) -> list[StepResult]:
    return [StepResult(n, 2.0, 1.0, 1e-3, tokens=100, seconds=0.5, taken=True) for n in range(1, count + 1)]


def test_plain_lines_without_a_terminal():
    out = io.StringIO()
    with Display(Console(file=out), start=0, max_steps=25, log_every=10) as display:
        for result in steps(25):
            display.step(result)
        display.say("[bold]as it is[/bold] " + "long " * 40)
    lines = out.getvalue().splitlines()
    assert lines[0] == "step 10/25 · loss 2.0000 · 200 tokens/s · 0:00:08 left · lr 1.00e-03"
    assert [line.split(" ·")[0] for line in lines[:3]] == ["step 10/25", "step 20/25", "step 25/25"]
    assert lines[3].startswith("[bold]as it is[/bold] long")
    assert len(lines) == 4


def test_bar_on_a_terminal():
    out = io.StringIO()
    with Display(Console(file=out, force_terminal=True, width=100), start=3, max_steps=5, log_every=1) as display:
        assert display.tokens_per_second == 0.0
        for result in steps(5)[3:]:
            display.step(result)
        assert display.tokens_per_second == 200.0
    text = out.getvalue()
    assert "loss 2.0000 · 200 tokens/s · 0:00:00 left" in text
    assert "5/5" in text
    assert "step 4/5" not in text


def test_duration():
    assert [duration(seconds) for seconds in (0.4, 61, 3600 * 30)] == ["0:00:00", "0:01:01", "1 day, 6:00:00"]
