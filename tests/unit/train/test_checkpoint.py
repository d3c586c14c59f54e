"""Checkpoints: committed or absent, verified, kept, and refused where they do not belong."""

import errno
import os
from pathlib import Path

import pytest
import torch

from langwright.core.errors import FormatError, UserError
from langwright.core.files import verify_folder
from langwright.train import card
from langwright.train.checkpoint import LAST, clear_leftovers, list_checkpoints, newest_checkpoint, point
from langwright.train.config import TrainConfig
from langwright.train.run import train
from langwright.train.session import TrainResult
from tests.unit.train.tiny import make_config, prepare_text, quiet, told, write_text

SAVING = {"max_steps": 4, "save_every": 1, "keep": 9}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare_text(tmp_path_factory.mktemp("text"))


def go(config: TrainConfig, data: Path, out: Path, *, resume: bool = False) -> tuple[TrainResult, str]:
    console = quiet()
    result = train(config, data, out, resume=resume, console=console)
    return result, told(console)


def names(out: Path) -> list[str]:
    return [path.name for path in list_checkpoints(out)]


def steps(*numbers: int) -> list[str]:
    return [f"step-{number:08d}" for number in numbers]


def damage(path: Path) -> None:
    """Flip one bit in the middle."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_only_the_newest_are_kept_and_last_follows(data: Path, tmp_path: Path):
    go(make_config(train=SAVING | {"keep": 2}), data, tmp_path)
    assert names(tmp_path) == steps(3, 4)
    assert os.readlink(tmp_path / "last") == steps(4)[0]
    for folder in list_checkpoints(tmp_path):
        verify_folder(folder)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_last_is_a_file_where_links_cannot_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EPERM, "no links here")

    point(tmp_path, LAST, tmp_path / "step-00000001")
    monkeypatch.setattr(os, "symlink", refuse)
    point(tmp_path, LAST, tmp_path / "step-00000002")
    assert not (tmp_path / "last").is_symlink()
    assert (tmp_path / "last").read_text() == "step-00000002\n"


@pytest.mark.parametrize("file", ["model.safetensors", "optimizer.safetensors", "trainer.json", "tokenizer.json"])
def test_damaged_newest_is_passed_over_with_a_message(data: Path, tmp_path: Path, file: str):
    go(make_config(train=SAVING), data, tmp_path)
    damage(tmp_path / steps(4)[0] / file)
    _, text = go(make_config(train=SAVING | {"max_steps": 5}), data, tmp_path, resume=True)
    assert f"{file}: does not match its manifest" in text
    assert "going back to the checkpoint before it" in text
    assert "continuing after step 3" in text
    assert names(tmp_path) == steps(1, 2, 3, 4, 5)
    verify_folder(tmp_path / steps(4)[0])


def test_half_written_folder_is_no_checkpoint(data: Path, tmp_path: Path):
    """A folder without its manifest, as a copy that was broken off leaves it (Lightning 19970)."""
    go(make_config(train=SAVING), data, tmp_path)
    (tmp_path / steps(4)[0] / "manifest.json").unlink()
    said: list[str] = []
    assert newest_checkpoint(tmp_path, said.append) == tmp_path / steps(3)[0]
    assert "manifest.json is missing" in said[0]


def test_no_whole_checkpoint_is_an_error(tmp_path: Path):
    (tmp_path / "step-00000001").mkdir()
    with pytest.raises(FormatError, match="none of its 1 checkpoints is whole"):
        newest_checkpoint(tmp_path, lambda _: None)


def test_resume_without_checkpoints_begins(data: Path, tmp_path: Path):
    result, text = go(make_config(), data, tmp_path / "run", resume=True)
    assert "holds no checkpoint; starting from the beginning" in text
    assert result.steps == 6


def test_resume_of_a_finished_run_changes_nothing(data: Path, tmp_path: Path):
    first, _ = go(make_config(), data, tmp_path)
    before = (first.checkpoint / "manifest.json").read_bytes()
    second, _ = go(make_config(), data, tmp_path, resume=True)
    assert (second.steps, second.val_bpb, second.checkpoint) == (6, first.val_bpb, first.checkpoint)
    assert (first.checkpoint / "manifest.json").read_bytes() == before
    assert second.history == first.history


def test_other_folders_and_files_are_left_alone(data: Path, tmp_path: Path):
    others = ["step-12", "step-best", "steps", "notes.txt", ".step-00000001.old"]
    for name in others:
        (tmp_path / name).mkdir()
    (tmp_path / ".step-00000007.0123456789ab.tmp").mkdir()
    clear_leftovers(tmp_path)
    go(make_config(train=SAVING | {"keep": 1}), data, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} >= set(others)
    assert not (tmp_path / ".step-00000007.0123456789ab.tmp").exists()


def test_full_disk_leaves_the_last_good_checkpoint(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    save, calls = card.save_model, []

    def fill(model: torch.nn.Module, folder: Path) -> None:
        calls.append(folder)
        if len(calls) == 3:
            (folder / "model.safetensors").write_bytes(b"half of it")
            raise OSError(errno.ENOSPC, "No space left on device")
        save(model, folder)  # type: ignore[arg-type]

    monkeypatch.setattr(card, "save_model", fill)
    with pytest.raises(UserError, match="step-00000003: the disk is full"):
        go(make_config(train=SAVING | {"keep": 1}), data, tmp_path)
    assert names(tmp_path) == steps(2)
    assert (tmp_path / "last").resolve() == (tmp_path / steps(2)[0]).resolve()
    verify_folder(tmp_path / "last")
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]
    monkeypatch.undo()
    result, _ = go(make_config(train=SAVING), data, tmp_path, resume=True)
    assert result.steps == 4


def test_another_architecture_is_refused(data: Path, tmp_path: Path):
    go(make_config(), data, tmp_path)
    with pytest.raises(
        UserError, match=r"another architecture \(d_mlp was 64, is now 32\); continue with what it was made"
    ):
        go(make_config(model={"d_mlp": 32}), data, tmp_path, resume=True)


def test_other_data_are_refused(data: Path, tmp_path: Path):
    go(make_config(), data, tmp_path / "run")
    from langwright.data.prepare import prepare

    prepare([write_text(tmp_path, seed=1)], tmp_path / "other", tokenizer=str(data))
    with pytest.raises(UserError, match=r"langwright\.json: the model was trained on other data"):
        go(make_config(), tmp_path / "other", tmp_path / "run", resume=True)


def test_another_tokenizer_is_refused(data: Path, tmp_path: Path):
    from langwright.data.prepare import prepare

    go(make_config(), data, tmp_path / "run")
    prepare([write_text(tmp_path)], tmp_path / "other", tokenizer="train", vocab_size=300)
    with pytest.raises(UserError, match="the model has another tokenizer than these data"):
        go(make_config(), tmp_path / "other", tmp_path / "run", resume=True)


def test_changed_settings_are_told(data: Path, tmp_path: Path):
    go(make_config(), data, tmp_path)
    config = make_config(model={"dropout": 0.1}, train={"max_steps": 8, "lr": 0.002})
    result, text = go(config, data, tmp_path, resume=True)
    assert result.steps == 8
    assert "continuing with another setting: train.max_steps was 6, is now 8" in text
    assert "continuing with another setting: train.lr was 0.01, is now 0.002" in text


def test_optimiser_of_another_model_is_refused(data: Path, tmp_path: Path):
    """A manifest proves that nothing changed, not that the parts belong together."""
    from langwright.core.files import committed_folder

    go(make_config(), data, tmp_path / "a")
    go(make_config(model={"d_mlp": 32}), data, tmp_path / "b")
    mine, theirs = (tmp_path / run / steps(6)[0] for run in "ab")
    content = {path.name: path.read_bytes() for path in mine.iterdir() if path.name != "manifest.json"}
    content["optimizer.safetensors"] = (theirs / "optimizer.safetensors").read_bytes()
    with committed_folder(mine) as folder:
        for name, value in content.items():
            (folder / name).write_bytes(value)
    with pytest.raises(FormatError, match=r"exp_avg.*does not belong to this model"):
        go(make_config(train={"max_steps": 7}), data, tmp_path / "a", resume=True)
