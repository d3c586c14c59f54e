"""Batches are functions of seed and step, whatever is done with the text."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from langwright.data.loader import batch_at, eval_windows, open_data
from langwright.data.packing import number_documents
from langwright.data.prefetch import Prefetch
from langwright.train.batches import Batches
from langwright.train.config import TrainConfig
from langwright.train.run import train
from tests.unit.train.tiny import make_config, prepare_text, quiet

END = 1
"""Of a character vocabulary; 0 is the unknown character."""
MASKED = {"family": "langwright", "causal": False}
CHANGED = {
    "fim": ("fim", {}, {"fim_rate": 0.7, "packing": "documents"}),
    "masked": ("bert", MASKED, {}),
    "masked documents": ("bert", MASKED, {"packing": "documents", "mask_words": True}),
}


def test_a_document_begins_at_its_separator():
    ids = np.array([[7, 1, 5, 6, 1, 1], [1, 5, 6, 7, 8, 9]])
    assert number_documents(ids, END).tolist() == [[0, 1, 1, 1, 2, 3], [0, 0, 0, 0, 0, 0]]


def test_stream_batches_are_those_of_the_loader(tmp_path: Path):
    config, data = make_config(), open_data(prepare_text(tmp_path))
    batch = Batches.of(config, data)(5)
    expected = batch_at(data.train, seed=0, step=5, batch_size=4, context=config.train.context)
    assert batch.documents is None
    assert (batch.ids == expected.ids).all()
    assert (batch.targets == expected.targets).all()


@pytest.fixture
def documents(tmp_path: Path) -> Path:
    """A prepared folder of many short documents."""
    return prepare_text(tmp_path, words=6, documents=40)


def packed(**train: object) -> TrainConfig:
    return make_config(train={"packing": "documents", "eval_every": 2, **train})


def test_documents_of_a_step_are_numbered(documents: Path):
    data = open_data(documents)
    batch = Batches.of(packed(context=60), data)(3)
    assert batch.documents is not None
    assert batch.documents.max() > 0
    assert ((np.diff(batch.documents) > 0) == (batch.ids[:, 1:] == data.train.eos_id)).all()


def test_a_run_with_packed_documents(documents: Path, tmp_path: Path):
    """Accumulated pieces carry the numbers, and so does validation: its first figure differs from the stream's."""
    runs = {
        name: train(config, documents, tmp_path / name, console=quiet())
        for name, config in {
            "stream": packed(packing="stream", context=60),
            "packed": packed(context=60),
            "in pieces": packed(context=60, micro_batch_size=1),
        }.items()
    }
    first = {name: next(row["val_bpb"] for row in run.history if row["event"] == "eval") for name, run in runs.items()}
    assert first["packed"] == pytest.approx(first["in pieces"], rel=1e-6)
    assert first["packed"] != first["stream"]
    assert runs["packed"].val_bpb == pytest.approx(runs["in pieces"].val_bpb, rel=1e-4)
    assert runs["packed"].val_bpb != runs["stream"].val_bpb


@pytest.mark.parametrize("name", CHANGED)
def test_changed_batches_are_functions_of_seed_step_and_row(name: str, tmp_path: Path):
    """So a resumed run, a loader's threads and a rank that makes its own rows all see the same."""
    special, model, settings = CHANGED[name]
    folder = prepare_text(tmp_path, words=12, documents=30, tokenizer="train", vocab_size=290, special_tokens=special)
    config, data = make_config(model=model, train={"context": 60, **settings}), open_data(folder)
    batches = Batches.of(config, data)
    whole = [batches(step) for step in range(5)]
    again, third = Batches.of(config, data), Batches.of(config.replace(seed=1), data)
    assert not (third(0).ids == whole[0].ids).all()
    with Prefetch(again, 2, max_steps=5) as ahead:
        for step in (3, 4, 1):
            for part, other in zip(ahead(step), whole[step], strict=True):
                assert (part is None and other is None) or (part == other).all()
    some = dataclasses.replace(batches, rows=(3, 1))(2)
    assert (some.ids == whole[2].ids[[3, 1]]).all()
    assert (some.targets == whole[2].targets[[3, 1]]).all()
    plain = batch_at(data.train, seed=0, step=0, batch_size=4, context=60)
    assert not (whole[0].ids == plain.ids).all()


def test_validation_is_never_rearranged(tmp_path: Path):
    folder = prepare_text(tmp_path, words=12, documents=30, tokenizer="train", vocab_size=290, special_tokens="fim")
    data = open_data(folder)
    batches = Batches.of(make_config(train={"fim_rate": 1.0}), data)
    windows = list(eval_windows(data.val, context=12, batch_size=3))
    assert [batch.ids.tolist() for batch in batches.read(windows)] == [batch.ids.tolist() for batch in windows]
