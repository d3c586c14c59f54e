"""The real commands on real text: prepare, train, resume, generate, and the result opened by transformers."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers

import langwright as lw
from langwright.data.corpus import corpus_path

pytestmark = pytest.mark.xdist_group("chain")  # one worker, so that the model is made once

SHORT = ["--train.max-steps", "30", "--train.eval-every", "0", "--train.eval-tokens", "4096", "--train.log-every", "10"]
SHORT += [
    "--threads",
    "1",
    "--train.save-every",
    "20",
    "--train.sample-every",
    "20",
    "--train.batch-size",
    "8",
    "--seed",
    "3",
]


def run(*words: str, check: int = 0, **options: object) -> subprocess.CompletedProcess[str]:
    """One command line in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "langwright.cli.main", *words],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        **options,  # type: ignore[arg-type]
    )
    assert done.returncode == check, done.stderr
    return done


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with text, prepared data and a trained model."""
    root = tmp_path_factory.mktemp("chain")
    text = corpus_path("shakespeare").read_text(encoding="utf-8")[:200_000]
    (root / "play.txt").write_text(text, encoding="utf-8")
    prepared = run("prepare", str(root / "play.txt"), "--out", str(root / "data"), "--vocab-size", "400", "--json")
    assert json.loads(prepared.stdout)["round_trip"] is True
    trained = run("train", "tiny", "--data", str(root / "data"), "--out", str(root / "run"), *SHORT, "--json")
    result = json.loads(trained.stdout.splitlines()[-1])
    assert result["steps"] == 30
    assert 0 < result["val_bpb"] < 5
    assert result["tokens_per_second"] > 0
    return root


def test_prepare_prints_a_report(made: Path) -> None:
    done = run("prepare", str(made / "play.txt"), "--out", str(made / "chars"), "--tokenizer", "char")
    assert "comes back exactly" in done.stdout
    assert "tokens" in done.stdout
    assert "next" in done.stdout


def test_transformers_opens_what_we_trained(made: Path) -> None:
    ours = lw.load(made / "run", dtype="float32")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(made / "run" / "last", dtype=torch.float32).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(made / "run" / "last")
    text = "First Citizen:\nBefore we proceed any further, hear me speak. 你好"
    ids = ours.tokenizer.encode(text)
    assert tokenizer(text, add_special_tokens=False).input_ids == ids
    assert tokenizer.decode(ids) == text == ours.tokenizer.decode(ids)
    with torch.no_grad():
        logits = theirs(torch.tensor([ids])).logits[0]
    assert (ours.logits(ids) - logits).abs().max() <= 1e-5 * logits.abs().max()


def test_what_transformers_saves_comes_back(made: Path, tmp_path: Path) -> None:
    theirs = transformers.AutoModelForCausalLM.from_pretrained(made / "run" / "last", dtype=torch.float32).eval()
    theirs.save_pretrained(tmp_path)
    transformers.AutoTokenizer.from_pretrained(made / "run" / "last").save_pretrained(tmp_path)
    again, ours = lw.load(tmp_path, dtype="float32"), lw.load(made / "run", dtype="float32")
    ids = ours.tokenizer.encode("Speak, speak.")
    assert again.tokenizer.encode("Speak, speak.") == ids
    assert torch.equal(again.logits(ids), ours.logits(ids))


def test_generate_is_greedy_at_zero_and_repeatable(made: Path) -> None:
    words = ["generate", str(made / "run"), "--prompt", "ROMEO:", "--max-new-tokens", "12"]
    words += ["--temperature", "0", "--json"]
    first, second = (json.loads(run(*words).stdout) for _ in range(2))
    assert first == second
    assert len(first["token_ids"]) == 12
    model = lw.load(made / "run")
    assert model.tokenizer.decode(first["token_ids"]) == first["text"]
    assert run(*words[:-1]).stdout.strip() == first["text"].strip()


def test_resumed_is_uninterrupted(made: Path, tmp_path: Path) -> None:
    """Stopped after 20 of 30 steps and continued by the command line: the same weights, bit for bit."""
    out = tmp_path / "run"
    words = ["train", "tiny", "--data", str(made / "data"), "--out", str(out), *SHORT]
    run(*words)
    last = out / "last"
    whole = (last / "model.safetensors").read_bytes()
    for path in sorted((out / "step-00000030").iterdir(), reverse=True):
        path.unlink()
    (out / "step-00000030").rmdir()
    done = run(*words, "--resume")
    assert "step 20" in done.stderr
    assert (last / "model.safetensors").read_bytes() == whole
    again = run(*words, check=2)
    assert "--resume" in again.stderr
    assert len(again.stderr.strip().splitlines()) == 1


def test_help_comes_without_torch() -> None:
    code = (
        "import sys\nfrom langwright.cli.main import main\nassert main(['--help']) == 0\n"
        "heavy = {'torch', 'numpy', 'pydantic', 'langwright.cli.train'} & set(sys.modules)\nassert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "quickstart" in done.stdout


@pytest.mark.parametrize("verb", ["prepare", "train", "generate", "chat", "models", "quickstart"])
def test_every_verb_explains_itself(verb: str) -> None:
    done = run(verb, "--help")
    assert f"langwright {verb}" in done.stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["trian"], "did you mean 'train'"),
        (["prepare", "nowhere.txt", "--out", "OUT"], "nowhere.txt"),
        (["prepare", "EMPTY", "--out", "OUT"], "EMPTY"),
        (["prepare", "LATIN1", "--out", "OUT"], "LATIN1"),
        (["train", "tiny", "--data", "nowhere", "--out", "OUT"], "nowhere"),
        (["train", "tinny", "--data", "DATA", "--out", "OUT"], "'tinny' is unknown"),
        (["train", "tiny", "--out", "OUT"], "give --data"),
        (["train", "tiny", "--data", "DATA", "--out", "OUT", "--train.lr", "fast"], "train.lr"),
        (["train", "tiny", "--data", "DATA", "--out", "OUT", "--train.lrr", "1"], "--train.lrr"),
        (["generate", "RUN", "--prompt", "x", "--temperature", "-1"], "temperature"),
        (["generate", "RUN", "--prompt", "LONG"], "context"),
        (["generate", "nowhere/at/all", "--prompt", "x"], "nowhere/at/all"),
        (["generate", "PICKLE", "--prompt", "x"], "PICKLE"),
        (["chat", "RUN"], "chat template"),
        (["models", "pull", "smollm"], "smollm"),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else None,
)
def test_mistakes_get_one_line_and_code_2(made: Path, tmp_path: Path, words: list[str], message: str) -> None:
    (tmp_path / "EMPTY").mkdir()
    (tmp_path / "LATIN1").write_bytes("caf\xe9 ".encode("latin-1") * 100)
    (tmp_path / "LATIN1").rename(tmp_path / "LATIN1.txt")
    (tmp_path / "PICKLE").mkdir()
    (tmp_path / "PICKLE" / "config.json").write_text((made / "run" / "last" / "config.json").read_text())
    (tmp_path / "PICKLE" / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    names = {"EMPTY": "EMPTY", "LATIN1": "LATIN1.txt", "PICKLE": "PICKLE", "OUT": "out"}
    places = {"DATA": str(made / "data"), "RUN": str(made / "run"), "LONG": "word " * 5000}
    given = [places.get(word) or (str(tmp_path / names[word]) if word in names else word) for word in words]
    done = run(*given, check=2, cwd=tmp_path)
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("langwright: ")]
    assert len(lines) == 1
    assert not (tmp_path / "out").exists()
    assert done.stdout == ""


def test_debug_shows_where_an_error_came_from() -> None:
    done = run("generate", "nowhere/at/all", "--prompt", "x", "--debug", check=1)
    assert "Traceback" in done.stderr


def test_unwritable_place_is_named(made: Path) -> None:
    done = run("prepare", str(made / "play.txt"), "--out", "/proc/langwright", check=2)
    assert "/proc/langwright" in done.stderr
    assert "Traceback" not in done.stderr
