"""``langwright inspect data`` from the command line."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from langwright.cli.inspect_data import InspectData
from langwright.cli.main import main
from tests.unit.data.talking import chatty, plain

REAL = Path(__file__).resolve().parents[3] / "../shared/data"
ROWS = [
    {"messages": [{"role": "user", "content": "Hello [b]"}, {"role": "assistant", "content": said}]}
    for said in ("Fox", "你好", "")
]


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    return str(path)


@pytest.fixture
def model(tmp_path: Path) -> str:
    """A folder with a tokenizer and no weights."""
    (tmp_path / "model").mkdir()
    chatty().save(tmp_path / "model")
    return str(tmp_path / "model")


def test_rows_are_told_without_a_model(file: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", "data", file, "--rows", "1"]) == 0
    out = capsys.readouterr().out
    assert "format       chat" in out
    assert "not usable   1 x an empty answer" in out
    assert "line 3: messages[1]: an empty answer" in out
    assert "user: Hello [b]" in out
    assert out.count("assistant:") == 1


def test_the_xray_with_a_model(file: str, model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "x.html"
    assert main(["inspect", "data", file, "--model", model, "--html", str(page), "--max-tokens", "500"]) == 0
    assert "⟦Fox<|im_end|>⟧" in capsys.readouterr().out
    assert "你好" in page.read_text(encoding="utf-8")
    assert main(["inspect", "data", file, "--model", model, "--json"]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (found["format"], found["rows"], found["dropped"]) == ("chat", 3, {"an empty answer": 1})
    assert found["lengths"]["unit"] == "tokens"
    ray = found["xrays"][0]
    assert "".join(text for text, kind, _ in ray["pieces"] if kind == "trained") == "Fox"
    assert sum(ray["counts"].values()) == sum(len(ids) for _, _, ids in ray["pieces"])


def test_a_base_model_is_given_a_template(file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plain().save(tmp_path)
    assert main(["inspect", "data", file, "--model", str(tmp_path / "tokenizer.json")]) == 2
    assert "--chat-template chatml" in capsys.readouterr().err
    words = ["--model", str(tmp_path / "tokenizer.json"), "--chat-template", "chatml"]
    assert main(["inspect", "data", file, *words]) == 0
    assert "⟦Fox<|im_end|>⟧" in capsys.readouterr().out


def test_columns_are_mapped() -> None:
    read = InspectData.read(["a.jsonl", "b.csv", "--fields", "prompt=q", "--fields", "completion=the answer"])
    assert read.fields == {"prompt": "q", "completion": "the answer"}
    assert [str(path) for path in read.files] == ["a.jsonl", "b.csv"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["dat"], "did you mean 'data'"),
        (["weights"], "give one of data"),
        (["data"], "FILES"),
        (["data", "none.jsonl"], "no such file"),
        (["data", "FILE", "--format", "chatty"], "is not a format"),
        (["data", "FILE", "--chat-template", "chatml", "--model", "no/such/place"], "no/such/place"),
        (["data", "FILE", "--rows", "-1"], "rows"),
        (["data", "FILE", "--fields", "promt=messages"], "is not a field"),
    ],
)
def test_mistakes_are_named_in_one_line(
    words: list[str], told: str, file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["inspect", *(file if word == "FILE" else word for word in words)]) == 2
    said = capsys.readouterr()
    assert told in said.err
    assert len(said.err.splitlines()) == 1


def test_help_lists_what_can_be_inspected(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect"]) == main(["inspect", "--help"]) == 0
    assert "data    examples for fine-tuning" in capsys.readouterr().out


def test_looking_needs_no_torch(file: str, model: str) -> None:
    code = (
        "import sys; from langwright.cli.main import main; "
        f"assert main(['inspect', 'data', {file!r}, '--model', {model!r}, '--json']) == 0; "
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_published_files(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if not REAL.is_dir():
        pytest.skip("needs ../shared/data")
    lines = (REAL / "chat/en/rasbt_preference.dev.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    (tmp_path / "few.jsonl").write_text("".join(lines[:60]), encoding="utf-8")
    assert main(["inspect", "data", str(tmp_path / "few.jsonl"), "--model", model, "--json", "--rows", "0"]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (found["format"], found["unused_columns"], found["rows"]) == ("preference", ["output"], 60)
    assert found["trained_tokens"] > 1000
    assert main(["inspect", "data", str(REAL / "chat/zh/kdconv_dev.jsonl.gz"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["dropped"] == {"no assistant turn at the end": 3}
