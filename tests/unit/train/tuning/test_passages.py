"""Documents as passages, and their middles."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

import langwright as lw
from langwright.core.errors import UserError
from langwright.data.fim import FillInTheMiddle
from langwright.data.rendering import Rendered
from langwright.tokenizer.sentinels import SENTINELS, with_sentinels
from langwright.tokenizer.tokenizer import Tokenizer
from langwright.train.run import run_task
from langwright.train.tuning.config import TuneConfig
from langwright.train.tuning.passages import passages
from langwright.train.tuning.sft import sft
from tests.unit.infer.small import byte_tokenizer
from tests.unit.train.tuning.talk import chats, make_base, make_tuning, write_lines

UNUSED = ("<a>", "<b>", "<c>")


def with_unused() -> Tokenizer:
    made = byte_tokenizer()
    made.backend.add_special_tokens([*UNUSED])
    return Tokenizer(made.backend, roles=made.roles)


def text_of(tokenizer: Tokenizer, text: str) -> Rendered:
    ids = [tokenizer.bos_id or 0, *tokenizer.encode(text), tokenizer.eos_id or 0]
    return Rendered(ids, [False] + [True] * (len(ids) - 1), "line 1", text)


def test_passages_are_the_text():
    tokenizer = byte_tokenizer()
    text = text_of(tokenizer, "abcdefghij" * 3)
    found = passages([text], tokenizer, 8, move=None, seed=0)
    assert [index for each in found for index in each.ids[1:]] == text.ids[1:]
    assert all(each.ids[0] == tokenizer.bos_id and len(each.ids) <= 8 for each in found)
    assert all(each.trained == [False] + [True] * (len(each.ids) - 1) for each in found)
    assert found[1].where == "line 1, passage 2"
    assert passages([text], tokenizer, 100, move=None, seed=0)[0].where == "line 1"


def test_moved_passages_hold_the_same_and_end():
    tokenizer = with_sentinels(with_unused(), UNUSED)
    prefix, suffix, middle = (tokenizer.id(name) for name in SENTINELS)
    move = FillInTheMiddle.of(tokenizer, tokenizer.eos_id or 0, rate=1.0, spm=0.0, by_lines=False)
    text = text_of(tokenizer, "".join(map(chr, range(97, 123))) * 4)
    found = passages([text], tokenizer, 40, move=move, seed=0)
    assert found == passages([text], tokenizer, 40, move=move, seed=0)
    assert found != passages([text], tokenizer, 40, move=move, seed=1)
    moved = [each.ids for each in found if middle in each.ids]
    assert len(moved) >= 2
    for ids in moved:
        assert len(ids) <= 40
        assert ids[-1] == tokenizer.eos_id
        one, two, three = (ids.index(index) for index in (prefix, suffix, middle))
        whole = tokenizer.decode(ids[one + 1 : two] + ids[three + 1 : -1] + ids[two + 1 : three])
        assert whole in "".join(map(chr, range(97, 123))) * 4


def make(base: Path, **over: Any) -> TuneConfig:
    wanted = {"examples.too_long": "split", "train.fim_rate": 0.5, "examples.sentinels": UNUSED, "train.context": 48}
    return make_tuning(base, **wanted | over)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return make_base(tmp_path / "base", unused=UNUSED)


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    rows = [{"text": " ".join(f"word{n}" for n in rng.integers(0, 99, 40))} for _ in range(12)]
    return write_lines(tmp_path / "texts.jsonl", rows)


def test_learns_middles_of_passages(base: Path, texts: Path, tmp_path: Path):
    config = make(base)
    quiet = Console(quiet=True)
    run_task(config, lambda spread, say: sft(config, [texts], (), say, spread=spread), tmp_path / "out", console=quiet)
    model = lw.load(tmp_path / "out" / "last")
    assert [model.tokenizer.id(name) for name in SENTINELS] == [259, 260, 261]
    data = sft(config, [texts]).facts.data.model_dump(mode="json")
    assert data["train"]["examples"] > 11


def test_refusals(base: Path, texts: Path, tmp_path: Path):
    with pytest.raises(UserError, match="sentinels"):
        sft(make(base, **{"examples.sentinels": ()}), [texts])
    talk = write_lines(tmp_path / "talk.jsonl", chats())
    with pytest.raises(UserError, match="plain texts, and this is chat"):
        sft(make(base), [talk])
    with pytest.raises(UserError, match="are allowed"):
        sft(make(base, **{"train.fim_rate": 0.0, "train.context": 16}), [talk])
