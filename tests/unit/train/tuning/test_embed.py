"""Sentence embeddings: the loss, what a batch may hold, micro-batches, retrieval, and whole runs."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

import langwright as lw
from langwright.cli.tune import run
from langwright.core.errors import UserError
from langwright.core.json_text import read_json_object
from langwright.model.transformer import Block
from langwright.train.compute import ComputeModel
from langwright.train.config import ParallelSettings
from langwright.train.joint import join_pieces
from langwright.train.loop import micro_batches
from langwright.train.objective import Objective, to_device
from langwright.train.ranks import Ranks
from langwright.train.run import run_task
from langwright.train.session import TrainResult
from langwright.train.spread import Spread
from langwright.train.tuning.alike import AlikeTexts
from langwright.train.tuning.base import check_layout
from langwright.train.tuning.config import TuneConfig, load_tuning
from langwright.train.tuning.embed import EMBEDDING, contrast, embed, encode_sides, retrieve, unfair
from tests.unit.train.tuning.encoder import make_encoder
from tests.unit.train.tuning.going_on import assert_goes_on
from tests.unit.train.tuning.talk import make_base, write_lines

WORDS = ("apple", "pear", "red", "blue", "one", "two", "dog", "cat")


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return make_encoder(tmp_path / "base")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    rows = [{"anchor": f"{word} {n}", "positive": f"{n} of {word}"} for word in WORDS for n in range(6)]
    return write_lines(tmp_path / "pairs.jsonl", rows)


def make(base: Path, **over: Any) -> TuneConfig:
    settings: dict[str, Any] = {
        "train.max_steps": 20,
        "train.batch_size": 8,
        "train.context": 24,
        "train.lr": 3e-3,
        "train.warmup_steps": 0,
        "train.eval_every": 10,
        "train.save_every": 5,
        "train.dtype": "float32",
        "examples.val_share": 0.2,
        "device": "cpu",
        "threads": 1,
    }
    return load_tuning("embed", str(base), settings | over)


def tune(config: TuneConfig, data: Path, out: Path, *, resume: bool = False) -> TrainResult:
    return run_task(
        config,
        lambda spread, say: embed(config, [data], (), say, spread=spread),
        out,
        resume=resume,
        console=Console(quiet=True),
    )


def test_the_loss_is_that_of_the_definition():
    """Pair by pair, in plain Python: nobody is told apart from what means the same."""
    generator = torch.Generator().manual_seed(0)
    vectors = torch.nn.functional.normalize(torch.randn(5, 3, 6, dtype=torch.float64, generator=generator), dim=-1)
    meanings = torch.tensor([[0, 10, 20], [1, 11, 21], [2, 10, 10], [1, 13, 20], [4, 14, 11]])
    known = {0: {10}, 1: {11, 13}, 2: {10}, 4: {14}}
    total = 0.0
    for i in range(5):
        anchor, positive, own = (*meanings[i, :2].tolist(), vectors[i, 0] @ vectors[i, 1] / 0.1)
        there = [own] + [
            vectors[i, 0] @ vectors[j, side] / 0.1
            for j in range(5)
            for side in (1, 2)
            if (j, side) != (i, 1) and int(meanings[j, side]) not in known[anchor]
        ]
        back = [own] + [
            vectors[j, 0] @ vectors[i, 1] / 0.1 for j in range(5) if positive not in known[int(meanings[j, 0])]
        ]
        for each in (there, back):
            total += float(torch.stack(each).logsumexp(0) - own) / 2
    assert contrast(vectors, meanings, 0.1).item() == pytest.approx(total)


def test_texts_that_mean_the_same_are_no_negatives():
    assert unfair(torch.tensor([[0, 1], [2, 1], [3, 0]])).tolist() == [
        [False, True, True],  # the same positive; a positive that is the anchor itself
        [True, False, False],
        [False, False, False],
    ]


@pytest.mark.parametrize("size", [1, 3, 8])
def test_micro_batches_have_the_gradient_of_the_whole_batch(size: int, base: Path, data: Path):
    """Cached gradients (Gao et al. 2021) are those of one graph over the batch, where dropout drew the same."""
    task = embed(make(base), [data])
    objective, model, batch = task.objective, task.build(), task.batches(None)(0)
    assert isinstance(objective, Objective)
    assert objective.join is not None
    for layer in model.backbone.layers:
        assert isinstance(layer, Block)
        layer.dropout = 0.2
    model.train()
    pieces = list(micro_batches(batch, size, torch.device("cpu")))
    torch.manual_seed(7)
    whole = torch.cat([encode_sides(model, piece) for piece in pieces])
    expected = objective.join(whole, to_device(batch, torch.device("cpu")).targets) / 8
    expected.backward()
    wanted = {name: each.grad.clone() for name, each in model.named_parameters() if each.grad is not None}
    model.zero_grad()
    torch.manual_seed(7)
    loss = join_pieces(ComputeModel(model, torch.float32), pieces, objective, 8)
    assert loss is not None
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, wanted.get(name), rtol=1e-6, atol=1e-6)


def test_what_belongs_to_a_text_is_looked_for():
    """Two anchors and three candidates on a circle; angles decide."""
    angles = np.array([0.0, 0.1, 1.0, 1.2, 1.05])
    vectors = np.stack([np.cos(angles), np.sin(angles)], 1)
    sides = np.array([[0, 1, 4], [2, 3, 4]])
    found = retrieve(vectors, AlikeTexts([[1]] * 5, sides, sides, 0), temperature=0.5)
    assert found.ranks.tolist() == [1, 2]  # text 4 is nearer to 2 than 3 is
    assert (found.recall(1), found.mrr, found.candidates) == (0.5, 0.75, 3)
    near = np.cos(np.array([[0.1, 1.2, 1.05], [0.9, 0.2, 0.05]])) / 0.5
    nll = [math.log(np.exp(row).sum()) - row[own] for row, own in zip(near, (0, 1), strict=True)]
    assert found.loss == pytest.approx(np.mean(nll))
    assert retrieve(np.ones((5, 2)), AlikeTexts([[1]] * 5, sides, sides, 0), 1.0).ranks.tolist() == [3, 3]


def test_texts_with_the_same_label_are_pairs(base: Path, tmp_path: Path):
    rows = [{"text": f"{word} {n}", "label": word} for word in WORDS[:3] for n in range(10)]
    task = embed(make(base), [write_lines(tmp_path / "texts.jsonl", [*rows, {"text": "alone", "label": "x"}])])
    part = task.batches(None).part  # pyright: ignore[reportAttributeAccessIssue]
    assert len(part) == 24
    assert (part.sides[:, 0] != part.sides[:, 1]).all()
    assert sorted(part.sides[:, 0]) == sorted(part.sides[:, 1]) == list(range(24))
    assert (part.meanings[:, 0] == part.meanings[:, 1]).all()
    assert task.facts.data.dropped == {"no other text has its label": 1}  # pyright: ignore[reportAttributeAccessIssue]


def test_learns_opens_everywhere_and_goes_on(tmp_path: Path, data: Path):
    out, config = tmp_path / "out", make(make_encoder(tmp_path / "drops", dropout=0.1), **{"train.micro_batch_size": 3})
    result = tune(config, data, out)
    found = result.score.more
    assert found is not None
    assert found["recall_at_10"] > 0.5
    about = read_json_object(out / EMBEDDING)
    assert (about["n"], about["recall_at_1"]) == (result.score.n, found["recall_at_1"])
    low, high = about["ci95"]["recall_at_10"]
    assert low <= found["recall_at_10"] <= high
    last = out / "last"
    model = lw.load(last)
    vectors = model.embed(["apple 1", "1 of apple", "cat 5"])
    assert vectors[0] @ vectors[1] > vectors[0] @ vectors[2]
    modules = json.loads((last / "modules.json").read_text())
    assert [each["path"] for each in modules] == ["", "1_Pooling", "2_Normalize"]
    assert read_json_object(last / "1_Pooling" / "config.json")["pooling_mode_mean_tokens"] is True
    assert "sentence-similarity" in (last / "README.md").read_text()

    assert_goes_on(lambda folder: tune(config, data, folder, resume=True), out, result)


def test_an_adapter_of_a_decoder_keeps_how_it_pools(tmp_path: Path, data: Path):
    config = make(
        make_base(tmp_path / "decoder"), **{"adapter.rank": 2, "embedding.pooling": "last", "train.max_steps": 2}
    )
    tune(config, data, tmp_path / "out")
    model = lw.load(tmp_path / "out" / "last")
    assert (model.model.head_kind, model.config.pooling) == ("embedding", "last")
    ids = torch.tensor([model.tokenizer.encode("red 1")])
    with torch.no_grad():
        torch.testing.assert_close(model.embed(["red 1"]), model.model(ids), rtol=1e-5, atol=1e-6)


def test_refusals_come_before_any_work(base: Path, data: Path, tmp_path: Path):
    with pytest.raises(UserError, match="batch_size is 1"):
        embed(make(base, **{"train.batch_size": 1}), [data])
    equal = write_lines(tmp_path / "equal.jsonl", [{"anchor": "A b", "positive": "a  B"}])
    with pytest.raises(UserError, match="the same; there is nothing to learn"):
        embed(make(base), [equal])
    rows = [{"sentence1": "a", "sentence2": "b", "label": "entailment"}]
    with pytest.raises(UserError, match="line 1: has two texts and a label"):
        embed(make(base), [write_lines(tmp_path / "nli.jsonl", rows)])
    with pytest.raises(UserError, match="embed learns from pairs"):
        embed(make(base), [write_lines(tmp_path / "plain.jsonl", [{"text": "a"}])])
    with pytest.raises(UserError, match="start one"):
        check_layout(make(base), Spread(ParallelSettings(kind="ddp"), Ranks(0, 2)))
    with pytest.raises(UserError, match="has 25 tokens"):
        embed(
            make(base),
            [write_lines(tmp_path / "long.jsonl", [{"anchor": f"{'a' * 22}{n}", "positive": "b"} for n in range(9)])],
        )


def test_the_command_ends_with_what_it_found(
    base: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    flags = ["--train.max-steps", "2", "--train.batch-size", "8", "--train.context", "24", "--device", "cpu"]
    assert run(["embed", str(base), "--data", str(data), "--out", str(tmp_path / "out"), *flags]) == 0
    said = capsys.readouterr()
    assert "recall@10" in said.err
    assert "95 % CI" in said.err
    assert "held-out pairs: recall at 1" in said.out
    assert said.out.endswith(f"langwright.load({str(tmp_path / 'out' / 'last')!r}).embed(TEXTS)\n")
