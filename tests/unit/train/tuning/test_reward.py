"""Reward models: the loss, a run, and the checkpoint in other hands."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from transformers import AutoModelForSequenceClassification

import langwright as lw
from langwright.core.errors import UserError
from langwright.core.json_text import read_json_object
from langwright.model.checkpoint.load import load_model
from langwright.model.checkpoint.save import save_model
from langwright.model.families import find_family
from langwright.model.model import build_model
from langwright.train.objective import to_device
from langwright.train.run import run_task
from langwright.train.session import TrainResult
from langwright.train.tuning.config import TuneConfig, load_tuning
from langwright.train.tuning.reward import REWARDS, learn_rewards, ranking_loss, rewards
from tests.unit.infer.small import byte_tokenizer
from tests.unit.train.tuning.talk import make_base, write_lines

PAIRS = [
    {"prompt": f"Say {number}", "chosen": f"{'very ' * (number % 3)}please {number}", "rejected": f"no {number}!"}
    for number in range(24)
]


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return make_base(tmp_path / "base")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_lines(tmp_path / "pairs.jsonl", PAIRS)


def make(base: Path, **over: Any) -> TuneConfig:
    settings: dict[str, Any] = {
        "train.max_steps": 16,
        "train.batch_size": 4,
        "train.micro_batch_size": None,
        "train.context": 64,
        "train.lr": 1e-2,
        "train.warmup_steps": 0,
        "train.eval_every": 8,
        "train.dtype": "float32",
        "adapter.rank": 4,
        "device": "cpu",
        "threads": 1,
    }
    return load_tuning("reward", str(base), settings | over)


def tune(config: TuneConfig, data: Path, out: Path) -> TrainResult:
    return run_task(
        config,
        lambda spread, say: learn_rewards(config, [data], (), say, spread=spread),
        out,
        console=Console(quiet=True),
    )


def test_the_loss_is_bradley_and_terrys(base: Path, data: Path):
    """And what an answer gets depends neither on its padding nor on the other answer."""
    task = learn_rewards(make(base), [data])
    model = task.build().eval()
    piece = to_device(task.batches(None)(0), torch.device("cpu"))
    assert piece.mask is not None
    found = rewards(model, piece)
    expected = 0.0
    for row in range(len(piece.ids)):
        chosen, rejected = (model(piece.ids[row, side][piece.mask[row, side]][None]).item() for side in (0, 1))
        assert found[row].tolist() == pytest.approx([chosen, rejected], abs=1e-5)
        expected -= math.log(1 / (1 + math.exp(rejected - chosen)))
    assert ranking_loss(model, piece).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("whole", [False, True])
def test_learns_what_is_preferred(whole: bool, base: Path, data: Path, tmp_path: Path):
    result = tune(make(base, **({"adapter": None} if whole else {})), data, tmp_path / "out")
    assert result.score.accuracy == 1
    about = read_json_object(tmp_path / "out" / REWARDS)
    assert about["rewards"]["chosen"]["mean"] > about["rewards"]["rejected"]["mean"]
    model = lw.load(tmp_path / "out" / "last")
    asked = [{"role": "user", "content": "Say 30"}]
    good, bad = model.reward([[*asked, {"role": "assistant", "content": said}] for said in ("please 30", "no 30!")])
    assert good > bad
    assert model.reward([*asked, {"role": "assistant", "content": "please 30"}]) == pytest.approx(good, abs=1e-5)
    text = "<s>user: Say 30<|im_end|><s>assistant: please 30<|im_end|>"
    ids = model.tokenizer.encode(text, allow_special=True)
    assert model.reward(ids) == pytest.approx(good, abs=1e-5)
    assert isinstance(model.reward("a text"), float)
    with pytest.raises(UserError, match="context is 96"):
        model.reward("long " * 40)
    if whole:
        theirs = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out" / "last").eval()
        assert theirs.config.num_labels == 1
        with torch.no_grad():
            assert theirs(torch.tensor([ids])).logits.item() == pytest.approx(good, abs=1e-4)
    assert "reward(" in (tmp_path / "out" / "last" / "README.md").read_text()


def test_an_encoder_can_be_asked_too(data: Path, tmp_path: Path):
    """With a template of plain words, since it has no tokens that end a turn."""
    values = {
        "model_type": "bert",
        "vocab_size": 259,
        "hidden_size": 24,
        "intermediate_size": 20,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "pad_token_id": 0,
        "max_position_embeddings": 64,
    }
    tokenizer = byte_tokenizer(bos=False, chat_template=None)
    (tmp_path / "base").mkdir()
    save_model(build_model(find_family(values).config_from_hf(values), "masked_lm"), tmp_path / "base")
    tokenizer.save(tmp_path / "base")
    plain = tmp_path / "plain.jinja"
    plain.write_text(
        "{% for message in messages %}{{ message.role }}: {{ message.content }}|{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    config = make(tmp_path / "base", adapter=None, **{"examples.chat_template": str(plain), "train.max_steps": 2})
    tune(config, data, tmp_path / "out")
    said = lw.load(tmp_path / "out" / "last").reward(
        [{"role": "user", "content": "Say 30"}, {"role": "assistant", "content": "no"}]
    )
    assert math.isfinite(said)


def test_refusals(base: Path, data: Path, tmp_path: Path):
    with pytest.raises(UserError, match="reward learns pairs"):
        learn_rewards(make(base), [write_lines(tmp_path / "other.jsonl", [{"prompt": "a", "completion": "b"}])])
    with pytest.raises(UserError, match="chat template"):
        learn_rewards(make(make_base(tmp_path / "bare", template=None)), [data])
    with pytest.raises(UserError, match="cannot give rewards"):
        lw.load(base).reward("a text")
    long = write_lines(tmp_path / "long.jsonl", [row | {"chosen": "please " * 9} for row in PAIRS])
    with pytest.raises(UserError, match="64 are allowed"):
        learn_rewards(make(base), [long])
    assert load_model(base).head_kind == "causal_lm"
