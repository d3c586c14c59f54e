"""Classifiers from labelled texts."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

import langwright as lw
from langwright.core.errors import UserError
from langwright.core.json_text import read_json_object
from langwright.model.checkpoint.load import load_model
from langwright.train.loop import micro_batches
from langwright.train.run import run_task
from langwright.train.session import TrainResult
from langwright.train.tuning.classify import CLASSES, classify
from langwright.train.tuning.config import TuneConfig, load_tuning
from langwright.train.tuning.labels import LabelledTexts
from langwright.train.tuning.parts import ShuffledBatches
from tests.unit.train.tuning.encoder import make_encoder
from tests.unit.train.tuning.talk import make_base, write_lines

WORDS = {"fruit": ("apple", "pear", "plum"), "colour": ("red", "blue", "green"), "number": ("one", "two", "six")}


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return make_base(tmp_path / "base")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    rows = [
        {"text": f"{word} {number}", "label": label}
        for label, words in WORDS.items()
        for word in words
        for number in range(8)
    ]
    return write_lines(tmp_path / "texts.jsonl", rows)


def make(base: Path, **over: Any) -> TuneConfig:
    settings: dict[str, Any] = {
        "train.max_steps": 60,
        "train.batch_size": 12,
        "train.context": 24,
        "train.lr": 1e-2,
        "train.warmup_steps": 0,
        "train.eval_every": 30,
        "train.dtype": "float32",
        "device": "cpu",
        "threads": 1,
    }
    return load_tuning("classify", str(base), settings | over)


def tune(config: TuneConfig, data: Path, out: Path, *, resume: bool = False) -> TrainResult:
    return run_task(
        config,
        lambda spread, say: classify(config, [data], (), say, spread=spread),
        out,
        resume=resume,
        console=Console(quiet=True),
    )


def test_learns_to_tell_labels(base: Path, data: Path, tmp_path: Path):
    result = tune(make(base), data, tmp_path / "out")
    assert result.score.accuracy is not None
    assert result.score.accuracy > 0.8
    model = lw.load(tmp_path / "out" / "last")
    assert model.config.labels == ("colour", "fruit", "number")
    (found,) = model.classify(["red 3"])
    assert next(iter(found)) == "colour"
    assert sum(found.values()) == pytest.approx(1.0)
    assert model.temperature == pytest.approx(result.score.temperature)
    about = read_json_object(tmp_path / "out" / CLASSES)
    assert about["accuracy"] == pytest.approx(result.score.accuracy)
    assert sum(map(sum, about["confusion"])) == about["n"]


def test_a_decoder_reads_the_last_real_token(base: Path, data: Path):
    """Padding after a text does not change what it is told to be."""
    task = classify(make(base), [data])
    model, batch = task.build().eval(), task.batches(None)(0)
    assert batch.mask is not None
    with torch.no_grad():
        together = model(torch.from_numpy(batch.ids), attention_mask=torch.from_numpy(batch.mask))
        for row, (ids, mask) in enumerate(zip(batch.ids, batch.mask, strict=True)):
            alone = model(torch.from_numpy(ids[mask][None]))
            torch.testing.assert_close(together[row : row + 1], alone, rtol=1e-5, atol=1e-5)


def test_held_out_texts_are_not_learnt_and_have_all_labels(base: Path, tmp_path: Path):
    rows = [
        {"text": f"{word} {n % 5}", "label": label}
        for label, words in WORDS.items()
        for word in words
        for n in range(20)
    ]
    task = classify(make(base), [write_lines(tmp_path / "twice.jsonl", rows)])
    learnt = {tuple(text) for text in task.batches(None).part.texts}  # pyright: ignore[reportAttributeAccessIssue]
    assert len(learnt) < 45
    about = task.facts.data
    assert about.train + about.val == len(rows)  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize("lengths", [None, [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8]])
def test_the_batches_of_an_epoch_are_all_texts(lengths: list[int] | None):
    data = LabelledTexts([[n, n] for n in range(12)], np.arange(12), 0)
    batches = ShuffledBatches(data, 0, 4, lengths=lengths)
    seen = [int(label) for step in range(6) for label in batches(step).targets]
    assert sorted(seen[:12]) == sorted(seen[12:]) == list(range(12))
    part = ShuffledBatches(data, 0, 4, range(1, 4, 2), lengths)(2)
    assert part.targets.tolist() == batches(2).targets[1::2].tolist()


def test_short_texts_come_first_and_are_padded_little():
    lengths = np.random.default_rng(0).integers(1, 100, 640).tolist()
    data = LabelledTexts([[1] * length for length in lengths], np.arange(640), 0)
    held = {}
    for name, given in (("plain", None), ("sorted", lengths)):
        batches = ShuffledBatches(data, 0, 32, lengths=given)
        pieces = [piece for step in range(20) for piece in micro_batches(batches(step), 8, torch.device("cpu"))]
        # The step is the same, and no column is padding alone.
        assert {*torch.cat([piece.targets for piece in pieces[:4]]).tolist()} == {
            *ShuffledBatches(data, 0, 32)(0).targets
        }
        assert all(piece.mask is not None and piece.mask.any(0).all() for piece in pieces)
        held[name] = sum(piece.ids.numel() for piece in pieces)
        assert sum(batches(step).n_tokens for step in range(20)) == sum(lengths)  # padding is no token
    assert held["plain"] > 1.6 * sum(lengths)
    assert held["sorted"] < 1.4 * sum(lengths)


def test_refusals_come_before_any_work(base: Path, data: Path, tmp_path: Path):
    one = write_lines(tmp_path / "one.jsonl", [{"text": "a", "label": "x"}, {"text": "b", "label": "x"}])
    with pytest.raises(UserError, match="another one"):
        classify(make(base), [one])
    with pytest.raises(UserError, match="does not occur"):
        classify(make(base), [data], [write_lines(tmp_path / "val.jsonl", [{"text": "a", "label": "odd"}])])
    with pytest.raises(UserError, match="train.context"):
        classify(make(base, **{"train.context": 4}), [data])
    with pytest.raises(UserError, match="positions"):
        classify(make(base, **{"train.context": 4000}), [data])
    chats = write_lines(tmp_path / "chat.jsonl", [{"prompt": "a", "completion": "b"}])
    with pytest.raises(UserError, match="classify learns texts with labels"):
        classify(make(base), [chats])


def test_an_adapter_with_the_head(base: Path, data: Path, tmp_path: Path):
    config = make(base, **{"adapter.rank": 4, "train.lr": 2e-2})
    result = tune(config, data, tmp_path / "out")
    assert result.score.accuracy is not None
    assert result.score.accuracy > 0.6
    assert (tmp_path / "out" / "last" / "adapter_model.safetensors").exists()
    model = lw.load(tmp_path / "out" / "last")
    assert model.config.labels == ("colour", "fruit", "number")
    assert model.temperature == result.score.temperature
    again = tune(config, data, tmp_path / "out", resume=True)
    assert again.score == result.score


@pytest.mark.parametrize("too_long", ["cut", "drop"])
def test_long_texts(too_long: str, base: Path, tmp_path: Path):
    rows = [{"text": f"{'very ' * (9 * (n == 5))}{label} {n}", "label": label} for label in WORDS for n in range(9)]
    path = write_lines(tmp_path / "long.jsonl", rows)
    task = classify(make(base, **{"examples.too_long": too_long}), [path])
    batches = task.batches(None)
    assert max(map(len, batches.part.texts)) <= 24  # pyright: ignore[reportAttributeAccessIssue]
    assert task.facts.data.dropped  # pyright: ignore[reportAttributeAccessIssue]


def test_what_is_served_is_what_was_trained(data: Path, tmp_path: Path):
    """A sentence encoder pools the mean, a BERT classifier reads its first token: also while it learns."""
    task = classify(make(make_encoder(tmp_path / "encoder"), **{"train.max_steps": 1}), [data])
    model, batch = task.build().eval(), task.batches(None)(0)
    task.facts.form.write(model, tmp_path / "saved")
    assert batch.mask is not None
    ids, mask = torch.from_numpy(batch.ids), torch.from_numpy(batch.mask)
    with torch.no_grad():
        again = load_model(tmp_path / "saved")(ids, attention_mask=mask)
        torch.testing.assert_close(again, model(ids, attention_mask=mask), rtol=0, atol=0)
