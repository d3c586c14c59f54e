"""The quickstart finishes with the model that it made, network or not."""

from pathlib import Path

import pytest
from rich.console import Console

from langwright.apps import quickstart as module
from langwright.train.config import load_recipe


@pytest.mark.parametrize("language", ["en", pytest.param("zh", marks=pytest.mark.slow)])
def test_without_a_network_it_says_so_and_finishes(
    language: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LANGWRIGHT_CACHE", str(tmp_path / "empty"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    short = {"train.max_steps": 4, "train.warmup_steps": 1, "train.batch_size": 2, "threads": 1}
    monkeypatch.setattr(module, "load_recipe", lambda name: load_recipe(name, short))
    written: list[str] = []
    report = module.quickstart(tmp_path / "out", language, Console(), written.append)
    shown = capsys.readouterr().out
    assert "could not be fetched" in shown
    assert "works without it" in shown
    assert report.answer is None
    assert report.perplexity is None
    assert 0 < report.val_bpb < report.untrained_bpb + 1
    assert report.sample.startswith(module.CORPORA[language].prompt)
    assert (report.checkpoint / "model.safetensors").is_file()
    again = module.quickstart(tmp_path / "out", language, Console(quiet=True), written.append)
    assert again.checkpoint.parent.name == "model-2"


@pytest.mark.parametrize(("pace", "steps"), [(0.01, 600), (0.5, 300), (60.0, module.FEWEST_STEPS)])
def test_a_slow_machine_takes_fewer_steps(pace: float, steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "seconds_per_step", lambda *_: pace)
    config = module.fit_to_time(load_recipe("quickstart"), Path("unused"), Console(quiet=True))
    assert config.train.max_steps == steps
