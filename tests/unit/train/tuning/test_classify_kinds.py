"""Classifiers of several labels at once, of numbers, of pairs of texts, and with texts that no label fits."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import langwright as lw
from langwright.core.errors import UserError
from langwright.core.json_text import read_json_object
from langwright.model.checkpoint.load import load_model
from langwright.train.tuning.classify import CLASSES, classify, label_loss
from tests.unit.train.tuning.encoder import make_encoder
from tests.unit.train.tuning.going_on import assert_goes_on
from tests.unit.train.tuning.talk import make_base, write_lines
from tests.unit.train.tuning.test_classify import make, tune

WORDS = {"fruit": ("apple", "pear"), "colour": ("red", "blue"), "number": ("one", "two")}


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return make_encoder(tmp_path / "base")


def several(n: int = 60) -> list[dict[str, Any]]:
    """Words of some kinds, with the kinds as labels."""
    rows = []
    for number in range(n):
        kinds = [kind for at, kind in enumerate(WORDS) if number >> at & 1]
        words = [WORDS[kind][number // 8 % 2] for kind in kinds]
        rows.append({"text": f"{' '.join(words)} {number}", "labels": kinds})
    return rows


def in_transformers(folder: Path, *texts: Any) -> torch.Tensor:
    """The logits that the reference library gives for texts, or pairs of them, from the folder as it is."""
    model, tokenizer = AutoModelForSequenceClassification.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        return torch.cat([model.eval()(**tokenizer(*text, return_tensors="pt")).logits for text in texts])


def test_several_labels_at_once(base: Path, tmp_path: Path):
    data, out = write_lines(tmp_path / "rows.jsonl", several()), tmp_path / "out"
    config = make(base, **{"train.max_steps": 100})
    result = tune(config, data, out)
    assert result.score.more is not None
    assert result.score.more["micro_f1"] > 0.8
    about = read_json_object(out / CLASSES)
    assert about["micro_f1"] == result.score.more["micro_f1"]
    assert set(about["labels"]["fruit"]) == {"n", "precision", "recall", "f1", "fitted_threshold"}
    model = lw.load(out / "last")
    assert (model.config.problem, model.config.labels) == ("several", ("colour", "fruit", "number"))
    assert read_json_object(out / "last" / "config.json")["problem_type"] == "multi_label_classification"
    found = model.classify(["red apple 3"])[0]
    theirs = torch.sigmoid(in_transformers(out / "last", ["red apple 3"]))[0].tolist()
    assert [found[name] for name in model.config.labels] == pytest.approx(theirs, abs=1e-5)
    with pytest.raises(UserError, match="use classify"):
        model.rate(["red"])
    assert_goes_on(lambda folder: tune(config, data, folder, resume=True), out, result)


def test_losses_are_those_of_transformers(base: Path):
    """Labels, several labels and numbers, as the reference library computes them for each ``problem_type``."""
    logits = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    hot, numbers = (logits > 0.3).flip(0).float(), torch.arange(5.0)
    cross = torch.nn.functional.cross_entropy(logits, torch.tensor([0, 2, 1, 1, 0]))
    torch.testing.assert_close(label_loss(logits, torch.tensor([0, 2, 1, 1, 0]), "one") / 5, cross)
    torch.testing.assert_close(label_loss(logits, hot, "several") / 5, torch.nn.BCEWithLogitsLoss()(logits, hot))
    torch.testing.assert_close(
        label_loss(logits[:, :1], numbers, "number") / 5, torch.nn.MSELoss()(logits[:, 0], numbers)
    )


def test_numbers(base: Path, tmp_path: Path):
    rows = [{"text": f"{'very ' * (n % 4)}good {n}", "label": n % 4 + 0.5} for n in range(48)]
    data, out = write_lines(tmp_path / "rows.jsonl", rows), tmp_path / "out"
    result = tune(make(base, **{"train.max_steps": 80}), data, out)
    assert result.score.more is not None
    assert result.score.more["pearson"] > 0.8
    assert set(read_json_object(out / CLASSES)) == {"n", "rmse", "pearson", "spearman", "ci95", "loss"}
    model = lw.load(out / "last")
    assert read_json_object(out / "last" / "config.json")["problem_type"] == "regression"
    assert model.rate(["good 1"]) == pytest.approx(in_transformers(out / "last", ["good 1"])[0].tolist(), abs=1e-5)
    low, high = model.rate(["good 1", "very very very good 1"])
    assert low < high
    with pytest.raises(UserError, match="use rate"):
        model.classify(["good"])


def test_an_adapter_knows_what_it_tells(base: Path, tmp_path: Path):
    config = make(base, **{"adapter.rank": 2, "train.max_steps": 2})
    tune(config, write_lines(tmp_path / "rows.jsonl", several()), tmp_path / "out")
    model = lw.load(tmp_path / "out" / "last")
    assert (model.config.problem, len(model.config.labels)) == ("several", 3)
    rows = [{"text": f"good {n}", "label": n / 7} for n in range(40)]
    tune(config, write_lines(tmp_path / "numbers.jsonl", rows), tmp_path / "other")
    assert len(lw.load(tmp_path / "other" / "last").rate(["good"])) == 1


def test_pairs_are_read_as_transformers_reads_them(base: Path, tmp_path: Path):
    """Framed with the tokenizer's template for pairs, and the second text of another segment."""
    rows = [
        {"sentence1": f"{one} {n}", "sentence2": f"{other} {n}", "label": "same" if one == other else "other"}
        for n in range(6)
        for one in ("red", "blue", "pear")
        for other in ("red", "blue", "pear")
    ]
    data, out = write_lines(tmp_path / "pairs.jsonl", rows), tmp_path / "out"
    tune(make(base, **{"train.max_steps": 4}), data, out)
    model, pair = lw.load(out / "last"), ("red 3", "it is blue, 3")
    found = model.classify([pair], temperature=1.0)[0]
    theirs = in_transformers(out / "last", pair)
    assert [found[name] for name in model.config.labels] == pytest.approx(
        torch.softmax(theirs, -1)[0].tolist(), abs=1e-5
    )
    ours = load_model(out / "last")
    reference = AutoTokenizer.from_pretrained(out / "last")(*pair, return_tensors="pt")
    assert reference["token_type_ids"].sum() > 0
    task = classify(
        make(base),
        [data],
        [write_lines(tmp_path / "v.jsonl", [rows[0] | dict(zip(("sentence1", "sentence2"), pair, strict=True))])],
    )
    assert task.batches(None).part.types is not None  # pyright: ignore[reportAttributeAccessIssue]
    with torch.no_grad():
        one = ours(reference["input_ids"], type_ids=reference["token_type_ids"])
        torch.testing.assert_close(one, theirs, rtol=1e-5, atol=1e-5)
        assert not torch.allclose(one, ours(reference["input_ids"]))


def test_out_of_scope_is_told_apart(base: Path, tmp_path: Path):
    rows = [{"text": f"{word} {n}", "label": word} for word in ("red", "pear", "oos") for n in range(20)]
    data = write_lines(tmp_path / "rows.jsonl", rows)
    tune(make(base, **{"labels.out_of_scope": "oos", "train.max_steps": 4}), data, tmp_path / "out")
    about = read_json_object(tmp_path / "out" / CLASSES)
    apart, confusion = about["out_of_scope"], np.array(about["confusion"])
    names = list(about["labels"])
    inside = [at for at, name in enumerate(names) if name != "oos"]
    assert apart["in_scope_accuracy"]["n"] == confusion[inside].sum()
    assert apart["in_scope_accuracy"]["share"] == pytest.approx(
        confusion.diagonal()[inside].sum() / confusion[inside].sum()
    )
    assert apart["recall"]["share"] == about["labels"]["oos"]["recall"]
    with pytest.raises(UserError, match="'none' occurs in no example"):
        classify(make(base, **{"labels.out_of_scope": "none"}), [data])


def test_labels_that_do_not_go_together_are_refused(base: Path, tmp_path: Path):
    def refuse(rows: list[dict[str, Any]], match: str, **over: Any) -> None:
        with pytest.raises(UserError, match=match):
            classify(make(base, **over), [write_lines(tmp_path / "rows.jsonl", rows)])

    texts = [f"good {n}" for n in range(30)]
    rows = [{"text": text, "label": n / 4} for n, text in enumerate(texts)]
    refuse([*rows, {"text": "x", "label": "n/a"}], "line 31: label 'n/a' is no number")
    refuse([*rows, {"text": "x", "label": "nan"}], "line 31: label 'nan' is no number")
    rows = [{"text": text, "label": ["a"]} for text in texts]
    refuse([*rows, {"text": "x", "label": "a"}], "line 31: label: one label where other rows have a list")
    refuse(rows, "line 1: has a list of labels", **{"labels.kind": "one"})
    refuse([{"text": text, "label": []} for text in texts], "no example has a label")
    refuse(rows, "is for one label a text", **{"labels.out_of_scope": "a"})
    rows = [{"sentence1": text, "sentence2": "x", "label": "ab"[n % 2]} for n, text in enumerate(texts)]
    with pytest.raises(UserError, match="puts nothing between two texts"):
        classify(make(make_base(tmp_path / "decoder")), [write_lines(tmp_path / "rows.jsonl", rows)])
