"""A run's page: complete, escaped, in need of nothing; and folders that hold nonsense."""

import json
import os
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from langwright.cli.main import main
from langwright.core.errors import UserError
from langwright.train.report.page import REPORT, differences, render_comparison, render_run, write_report
from langwright.train.report.runs import find_runs, read_run
from langwright.train.run import train
from langwright.train.sessions import SESSIONS
from tests.unit.train.tiny import make_config, prepare_text, quiet

EVIL = "</pre><script>alert(1)</script><img src=x onerror=alert(2)>'\"&"


class Tags(HTMLParser):
    """Every tag and attribute that a browser would see."""

    def __init__(self, page: str):
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def assert_harmless(page: str) -> Tags:
    seen = Tags(page)
    assert not {"script", "img", "iframe", "link", "object", "embed", "form"} & set(seen.tags)
    assert not [name for name, _ in seen.attributes if name.startswith("on") or name in ("src", "href", "srcset")]
    assert "http" not in "".join(value or "" for name, value in seen.attributes if name == "style")
    assert "default-src 'none'" in page
    return seen


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs that differ in the rate, with samples that would like to be markup."""
    folder = tmp_path_factory.mktemp("runs")
    data = prepare_text(folder)
    for name, lr in (("one", 1e-2), ("two <b>", 3e-3)):
        settings = {
            "max_steps": 24,
            "eval_every": 8,
            "log_every": 1,
            "sample_every": 12,
            "sample_prompt": EVIL,
            "lr": lr,
        }
        train(make_config(train=settings), data, folder / name, sampler=lambda *_: EVIL, console=quiet())
    return folder


def test_a_run_leaves_its_report(runs: Path):
    page = (runs / "one" / REPORT).read_text(encoding="utf-8")
    seen = assert_harmless(page)
    text = " ".join(seen.text)
    run = read_run(runs / "one")
    assert run.state == "finished"
    assert run.step == run.max_steps == 24
    assert f"{run.latest:.4f}" in text
    assert seen.tags.count("svg") == 5
    assert EVIL in text  # as text
    for wanted in (
        "peak memory",
        "time in steps",
        str(run.facts["data"]["fingerprint"]),
        "train.grad_clip",
    ):
        assert wanted in text
    assert "Incidents" not in text
    assert render_run(run) == page


def test_runs_are_compared(runs: Path):
    found = [read_run(path) for path in find_runs(runs)]
    assert [run.name for run in found] == ["one", "two <b>"]
    assert differences(found) == [("train.lr", "0.01", "0.003")]
    seen = assert_harmless(render_comparison(found))
    assert "two <b>" in " ".join(seen.text)
    assert seen.tags.count("svg") == 4
    assert "the settings and the data are the same" in render_comparison([found[0], found[0]])


def test_the_verb_lists_reports_and_compares(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["runs", str(runs), "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)["runs"]
    assert [row["state"] for row in listed] == ["finished", "finished"]
    assert listed[0]["steps"] == 24
    assert listed[0]["recipe"] == "own"
    assert listed[0]["parameters"] > 1000
    assert main(["runs", "list", str(runs)]) == 0
    assert "two <b>" in capsys.readouterr().out
    assert main(["runs", "report", str(runs / "one"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"report": str(runs / "one" / REPORT)}
    out = tmp_path / "both.html"
    assert main(["runs", "compare", str(runs / "one"), str(runs / "two <b>"), "--out", str(out)]) == 0
    assert "curves and differences are in" in capsys.readouterr().out
    assert_harmless(out.read_text(encoding="utf-8"))
    assert main(["runs", str(tmp_path)]) == 0
    assert "no runs here" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere"], "nowhere: no such folder"),
        (["report"], "give the folder of one run"),
        (["report", "."], "not the folder of a training run"),
        (["compare", "x"], "two runs or more"),
        (["compare", "x", "y"], "not the folder of a training run"),
        (["list", "--out", "x"], "--out belongs to compare"),
        (["--sort", "x"], "--sort"),
    ],
)
def test_mistakes_are_named_in_one_line(
    words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    assert main(["runs", *words]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert len(said.splitlines()) == 1


def write_run(folder: Path, rows: list[dict[str, Any]], sessions: list[dict[str, Any]]) -> Path:
    folder.mkdir(exist_ok=True)
    for name, lines in (("metrics.jsonl", rows), (SESSIONS, sessions)):
        (folder / name).write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return folder


def test_how_a_run_ended_is_told(tmp_path: Path):
    begin = {"event": "begin", "step": 0, "time": "2026-01-01T10:00:00+00:00", "machine": {}, "process": 2**22 + 1}
    end = {"event": "end", "step": 5, "reason": "finished"}
    states = {
        "unknown": [],
        "killed": [begin],
        "running": [begin | {"process": os.getpid()}],
        "finished": [begin, end],
        "stopped": [begin, end | {"reason": "SIGTERM"}],
        "failed": [begin, end | {"reason": "UserError: no room"}],
    }
    for state, sessions in states.items():
        run = read_run(write_run(tmp_path / state, [], sessions))
        assert run.state == state
        assert_harmless(render_run(run))
    text = " ".join(Tags(render_run(read_run(tmp_path / "failed"))).text)
    assert "no room" in text
    assert "Incidents" in text


def test_incidents_are_told(tmp_path: Path):
    begin = {"event": "begin", "step": 0, "time": "T", "machine": {"processor": EVIL, "gpus": [EVIL]}, "process": 1}
    rows = [{"event": "skip", "step": 3, "loss": None, "grad_norm": 7.5}]
    folder = write_run(tmp_path / "run", rows, [begin, begin | {"step": 2}])
    (folder / "incidents").mkdir()
    (folder / "incidents" / "a.json").write_text(json.dumps({"step": 9, "fault": EVIL, "policy": "rewind"}))
    (folder / "incidents" / "b.json").write_text("{")
    text = " ".join(assert_harmless(render_run(read_run(folder))).text)
    assert "not taken: loss None, gradient norm 7.5" in text
    assert "a process was killed" in text
    assert "rewind" in text


def test_nonsense_in_a_folder_is_no_fault_of_ours(tmp_path: Path):
    rows = [
        {"event": "step", "step": 1, "loss": "much", "tokens": True, "elapsed": [1], "lr": 1e308},
        {"event": "eval", "step": 2, "val_bpb": EVIL, "val_ppl": None},
        {"event": "sample", "step": 2},
        {"event": 7, "step": 3},
        {"step": 4},
        {"event": "step", "step": 5, "loss": -1e299, "grad_norm": 1e299},
    ]
    sessions = [
        {"event": "begin", "step": 0, "machine": 5, "config": {"model": 3}, "process": "x", "time": 8},
        {"event": "end", "step": 0, "reason": EVIL},
    ]
    folder = write_run(tmp_path / "run", rows, sessions)
    checkpoint = folder / "step-00000002"
    checkpoint.mkdir()
    facts = {
        "config": [],
        "plan": {"predicted": 1},
        "data": {"train": 3, "sources": [4, {"bytes": "x"}]},
        "software": 1,
    }
    (checkpoint / "langwright.json").write_text(json.dumps(facts))
    run = read_run(folder)
    assert_harmless(render_run(run))
    assert_harmless(render_comparison([run, run]))
    assert run.summary()["state"] == "failed"
    (folder / "metrics.jsonl").write_bytes(b"\xff\xfe\x00 not text")
    assert read_run(folder).rows == []


def test_a_report_that_cannot_be_written_is_only_told(runs: Path, tmp_path: Path):
    (tmp_path / "out" / REPORT).mkdir(parents=True)
    console = quiet()
    result = train(make_config(), runs / "data", tmp_path / "out", console=console)
    assert result.steps == 6
    with pytest.raises(UserError):
        write_report(tmp_path / "out")
