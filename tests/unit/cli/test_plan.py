"""``langwright plan`` from the command line."""

import json

import pytest

from langwright.cli.main import main


def test_answers_in_words_and_in_json(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["plan", "laptop", "--device", "a100", "--price-per-hour", "1.5", "--train.max-steps", "100"]
    assert main(words) == 0
    text = capsys.readouterr().out
    assert [line.split()[0] for line in text.splitlines() if line[0] != " "][:4] == [
        "model",
        "work",
        "tokens",
        "memory",
    ]
    assert "at the price given" in text
    assert main([*words, "--json"]) == 0
    plan = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert plan["data"]["steps"] == 100
    assert plan["memory"]["fits"]
    assert plan["cost"]["money"] > 0


def test_measures_here_when_no_device_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    small = ["--train.batch-size", "2", "--train.context", "16", "--train.max-steps", "10", "--threads", "1"]
    assert main(["plan", "tiny", "--vocab-size", "50", *small, "--json"]) == 0
    plan = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert plan["time"]["measured"]
    assert plan["time"]["training"] > 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "give a recipe"),
        (["--tokens", "1e9"], "give a recipe"),
        (["--params", "much"], "params"),
        (["--params", "-1"], "params"),
        (["--params", "nan"], "params"),
        (["tiny", "--count", "0"], "count"),
        (["tiny", "--watts", "0"], "watts"),
        (["tiny", "--mfu", "2", "--device", "h100"], "mfu"),
        (["tiny", "--wats", "1"], "--wats"),
        (["tiny", "--train.max-steps", "-1"], "train.max_steps"),
    ],
)
def test_mistakes_are_named_in_one_line(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", *words]) == 2
    said = capsys.readouterr()
    assert message in said.err
    assert len(said.err.splitlines()) == 1
    assert not said.out
