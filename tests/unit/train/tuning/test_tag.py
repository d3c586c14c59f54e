"""Words with tags: where they are learnt, how spans are judged, and whole runs."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

import langwright as lw
from langwright.core.errors import UserError
from langwright.core.json_text import read_json_object
from langwright.data.loader import IGNORED
from langwright.infer.tagging import Span, are_spans, find_spans
from langwright.train.compute import ComputeModel
from langwright.train.loop import accumulate
from langwright.train.run import run_task
from langwright.train.session import TrainResult
from langwright.train.tuning.config import TuneConfig, load_tuning
from langwright.train.tuning.judged import judge
from langwright.train.tuning.tag import TAGGING, TAGS, JudgedTags, rates, tag
from tests.unit.train.tuning.encoder import make_encoder
from tests.unit.train.tuning.going_on import assert_goes_on
from tests.unit.train.tuning.talk import make_base, write_lines

PEOPLE, PLACES, REST = ("ann lee", "bob", "cy"), ("new york", "rome"), ("met", "in", "saw")


def sentences(n: int) -> list[dict[str, Any]]:
    """Names and places among other words."""
    draw, rows = random.Random(0), []
    for _ in range(n):
        words, tags = [], []
        for kind, names in (("PER", PEOPLE), ("", REST), ("LOC", PLACES), ("", REST)):
            for at, word in enumerate(draw.choice(names).split()):
                words.append(word)
                tags.append(f"{'I' if at else 'B'}-{kind}" if kind else "O")
        rows.append({"tokens": [*words, str(len(rows))], "ner_tags": [*tags, "O"]})
    return rows


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_lines(tmp_path / "words.jsonl", sentences(60))


def make(base: Path, **over: Any) -> TuneConfig:
    settings: dict[str, Any] = {
        "train.max_steps": 40,
        "train.batch_size": 8,
        "train.context": 48,
        "train.lr": 1e-2,
        "train.warmup_steps": 0,
        "train.eval_every": 20,
        "train.save_every": 20,
        "train.dtype": "float32",
        "device": "cpu",
        "threads": 1,
    }
    return load_tuning("tag", str(base), settings | over)


def tune(config: TuneConfig, data: Path, out: Path, *, resume: bool = False) -> TrainResult:
    return run_task(
        config,
        lambda spread, say: tag(config, [data], (), say, spread=spread),
        out,
        resume=resume,
        console=Console(quiet=True),
    )


@pytest.mark.parametrize(
    ("tags", "spans"),
    [
        ("O B-A I-A O", [("A", 1, 3)]),
        ("B-A B-A I-A", [("A", 0, 1), ("A", 1, 3)]),
        ("I-A I-A O I-B", [("A", 0, 2), ("B", 3, 4)]),  # goes on from nothing
        ("B-A I-B I-B", [("A", 0, 1), ("B", 1, 3)]),
        ("B-A I-A E-A E-A S-B B-B", [("A", 0, 3), ("A", 3, 4), ("B", 4, 5), ("B", 5, 6)]),
        ("O O", []),
    ],
)
def test_spans_are_those_of_conlleval(tags: str, spans: list[tuple[str, int, int]]):
    assert find_spans(tags.split()) == [Span(*span) for span in spans]


def test_spans_are_those_of_seqeval():
    """Of 500 random texts, where that library is installed."""
    seqeval = pytest.importorskip("seqeval.metrics.sequence_labeling")
    draw = random.Random(1)
    for _ in range(500):
        tags = draw.choices(["O", "B-A", "I-A", "B-B", "I-B", "E-A", "S-B"], k=8)
        assert find_spans(tags) == [Span(label, start, stop + 1) for label, start, stop in seqeval.get_entities(tags)]


def test_tags_without_spans_are_known():
    assert are_spans(["O", "B-PER"])
    assert not are_spans(["NOUN", "O"])
    assert not are_spans(["O"])


def test_spans_count_only_where_they_are_exact():
    names = ("B-A", "B-B", "I-A", "O")
    true, said = [0, 2, 3, 1, 3], [0, 3, 3, 1, 1]
    found = JudgedTags(judge(np.eye(4)[said] * 3.0, np.array(true)), np.array([0, 0, 0, 1, 1]), names)
    assert found.spans is not None
    assert found.spans.tolist() == [[0, 1, 1], [1, 2, 1]]
    assert rates(found.spans) == pytest.approx((1 / 3, 1 / 2, 2 / 5))
    values = found.values()
    assert values["entities"]["labels"]["B"] == pytest.approx({"n": 1, "precision": 0.5, "recall": 1.0, "f1": 2 / 3})
    assert (values["entities"]["n"], values["accuracy"]) == (2, 3 / 5)
    low, high = values["entities"]["ci95"]["f1"]
    assert 0 <= low <= 0.4 <= high


@pytest.mark.parametrize(("causal", "places"), [(False, [1, 3, 6]), (True, [1, 5, 7])])
def test_one_token_of_a_word_is_learnt(causal: bool, places: list[int], tmp_path: Path):
    """The first; of a decoder the last, where it has read the word."""
    rows = [{"words": ["ab", "cde", "."], "tags": ["X", "Y", "O"]}]
    rows += [{"words": [f"a{n}"], "tags": ["X"]} for n in range(9)]
    base = make_base(tmp_path / "base") if causal else make_encoder(tmp_path / "base")
    task = tag(make(base), [write_lines(tmp_path / "words.jsonl", rows)], [write_lines(tmp_path / "v.jsonl", rows[:1])])
    part = task.batches(None).part  # pyright: ignore[reportAttributeAccessIssue]
    learnt = [place for place, told in enumerate(part.tags[0]) if told != IGNORED]
    assert [part.tags[0][place] for place in learnt] == [1, 2, 0]
    assert learnt == places
    assert len(part.texts[0]) == len(part.tags[0])


def test_micro_batches_are_the_batch(data: Path, tmp_path: Path):
    """Texts hold different numbers of words, and every word counts alike."""
    rows = [*sentences(20), {"tokens": ["bob"], "ner_tags": ["B-PER"]}]
    task = tag(make(make_encoder(tmp_path / "base")), [write_lines(tmp_path / "rows.jsonl", rows)], [data])
    found = []
    for size in (None, 1, 3):
        model = task.build()
        loss = accumulate(ComputeModel(model, torch.float32), task.batches(None)(0), TAGGING, size)
        found.append((loss, {name: each.grad for name, each in model.named_parameters() if each.grad is not None}))
    for loss, gradients in found[1:]:
        assert loss == pytest.approx(found[0][0], rel=1e-6)
        for name, gradient in gradients.items():
            torch.testing.assert_close(gradient, found[0][1][name], rtol=1e-5, atol=1e-6)


def test_learns_tells_and_goes_on(data: Path, tmp_path: Path):
    out, config = tmp_path / "out", make(make_encoder(tmp_path / "base", dropout=0.05))
    result = tune(config, data, out)
    assert result.score.more is not None
    assert result.score.more["entity_f1"] > 0.6
    about = read_json_object(out / TAGS)
    assert about["entities"]["f1"] == result.score.more["entity_f1"]
    assert about["n"] == result.score.n
    model = lw.load(out / "last")
    assert model.temperature == result.score.temperature
    one, other, none = model.tag(["Ann Lee met new york.", ["ann", "lee", "met", "new", "york", "."], ""])
    assert [word.text for word in one.words] == ["Ann", "Lee", "met", "new", "york", "."]
    assert [word.tag for word in one.words] == [word.tag for word in other.words]
    assert all(span.text == "Ann Lee met new york."[span.start : span.stop] for span in one.spans)
    assert {(span.label, span.text) for span in one.spans} & {("PER", "Ann Lee"), ("LOC", "new york")}
    assert none.words == none.spans == ()
    assert "token-classification" in (out / "last" / "README.md").read_text()
    assert_goes_on(lambda folder: tune(config, data, folder, resume=True), out, result)


def test_an_adapter_with_the_head_of_a_decoder(data: Path, tmp_path: Path):
    config = make(make_base(tmp_path / "base"), **{"adapter.rank": 4, "train.max_steps": 4})
    result = tune(config, data, tmp_path / "out")
    model = lw.load(tmp_path / "out" / "last")
    assert model.config.labels == ("B-LOC", "B-PER", "I-LOC", "I-PER", "O")
    assert model.temperature == result.score.temperature
    assert len(model.tag(["bob in rome"])[0].words) == 3


@pytest.mark.parametrize("too_long", ["cut", "drop"])
def test_long_texts(too_long: str, tmp_path: Path):
    rows = [
        {"words": ["ab"] * (30 if n == 5 else 3), "tags": ["X", *["O"] * (29 if n == 5 else 2)]} for n in range(1, 9)
    ]
    for n, row in enumerate(rows):
        row["words"][0] = f"a{n}"
    path = write_lines(tmp_path / "long.jsonl", rows)
    config = make(make_encoder(tmp_path / "base"), **{"examples.too_long": too_long, "train.context": 24})
    task = tag(config, [path], [path])
    part = task.batches(None).part  # pyright: ignore[reportAttributeAccessIssue]
    assert max(map(len, part.texts)) <= 24
    assert len(part) == (8 if too_long == "cut" else 7)
    with pytest.raises(UserError, match=r"line 5: has 62 tokens"):
        tag(config.replace(examples=config.examples.replace(too_long="error")), [path], [path])


def test_refusals_come_before_any_work(data: Path, tmp_path: Path):
    base = make_encoder(tmp_path / "base")
    odd = write_lines(tmp_path / "odd.jsonl", [{"tokens": ["a", "b"], "ner_tags": ["O"]}])
    with pytest.raises(UserError, match="1 tags for 2 words"):
        tag(make(base), [odd])
    with pytest.raises(UserError, match="line 1: tag 'B-ORG' does not occur"):
        tag(make(base), [data], [write_lines(tmp_path / "v.jsonl", [{"tokens": ["a"], "ner_tags": ["B-ORG"]}])])
    same = write_lines(tmp_path / "same.jsonl", [{"tokens": ["a", f"b{n}"], "ner_tags": ["O", "O"]} for n in range(20)])
    with pytest.raises(UserError, match="all words have the tag 'O'"):
        tag(make(base), [same])
    with pytest.raises(UserError, match="tag learns words with tags"):
        tag(make(base), [write_lines(tmp_path / "plain.jsonl", [{"text": "a"}])])
    hollow = [{"tokens": ["a", "\u200b"], "ner_tags": ["O", "B-PER"]}, *sentences(12)]
    with pytest.raises(UserError, match="has no tokens; take it and its tag out"):
        tag(make(base), [write_lines(tmp_path / "hollow.jsonl", hollow)], [data])
