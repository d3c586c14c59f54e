"""A whole run on a few kilobytes of text: what it leaves behind, what it tells, what it refuses."""

import json
import math
from pathlib import Path

import pytest
import torch

from langwright.core.errors import UserError
from langwright.core.json_text import read_json_object
from langwright.data.loader import open_data
from langwright.model.checkpoint.load import load_model
from langwright.model.model import Model
from langwright.tokenizer.load import load_tokenizer
from langwright.train.checkpoint import list_checkpoints
from langwright.train.config import list_recipes, load_recipe
from langwright.train.pretraining import resolve
from langwright.train.probe import seconds_per_step
from langwright.train.run import train
from langwright.train.validate import validate
from tests.unit.train.tiny import make_config, prepare_text, quiet, told, write_text


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare_text(tmp_path_factory.mktemp("text"))


def test_leaves_a_model_that_is_what_it_says(data: Path, tmp_path: Path):
    out, console = tmp_path / "run", quiet()
    config = make_config(
        train={"max_steps": 30, "eval_every": 10, "log_every": 5, "save_every": 20, "dtype": "bfloat16"}
    )
    result = train(config, data, out, console=console)

    assert result.steps == 30
    assert result.checkpoint == out / "step-00000030"
    assert (out / "last").resolve() == result.checkpoint.resolve()
    assert [path.name for path in sorted(out.glob("step-*"))] == ["step-00000020", "step-00000030"]
    names = {path.name for path in result.checkpoint.iterdir()}
    assert names >= {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "langwright.json"}
    assert names >= {"README.md", "trainer.json", "optimizer.safetensors", "manifest.json"}

    model, opened = load_model(out / "last"), open_data(data)
    assert model.dtype == torch.float32
    score = validate(model, opened.val, context=12, batch_size=4)
    assert score.bpb == pytest.approx(result.val_bpb, rel=1e-6)
    assert score.ppl == pytest.approx(result.val_ppl, rel=1e-6)
    assert load_tokenizer(out / "last").fingerprint == load_tokenizer(data).fingerprint

    evaluations = [row for row in result.history if row["event"] == "eval"]
    assert [row["step"] for row in evaluations] == [0, 10, 20, 30]
    assert evaluations[-1]["val_bpb"] == result.val_bpb < 0.8 * evaluations[0]["val_bpb"]
    steps = [row for row in result.history if row["event"] == "step"]
    assert [row["step"] for row in steps] == [1, 5, 10, 15, 20, 25, 30]
    assert set(steps[0]) >= {"loss", "lr", "grad_norm", "tokens_per_second", "elapsed", "tokens"}
    assert result.tokens_per_second > 0
    lines = (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == result.history

    text = told(console)
    assert "parameters (llama, 2 layers of 16), bfloat16 on cpu, 1 threads" in text
    assert "30 steps of 4 x 12 = 1,440 tokens" in text
    assert "to go at" in text
    assert "step 30/30 · loss" in text
    assert f"done: 30 steps, {result.val_bpb:.4f} bits per byte" in text


def test_checkpoint_says_what_it_is(data: Path, tmp_path: Path):
    result = train(make_config(seed=5), data, tmp_path, console=quiet())
    said = read_json_object(result.checkpoint / "langwright.json")
    assert said["config"]["train"]["max_steps"] == 6
    assert said["config"]["seed"] == 5
    assert said["data"]["fingerprint"] == open_data(data).fingerprint
    assert said["metrics"] == {"step": 6, "bpb": result.val_bpb, "ppl": result.val_ppl}
    assert said["software"]["torch"] == torch.__version__
    card = (result.checkpoint / "README.md").read_text(encoding="utf-8")
    assert f"{result.val_bpb:.4f} bits per byte" in card
    assert "text.txt" in card
    assert "AutoModelForCausalLM.from_pretrained" in card


def test_samples_come_from_the_caller(data: Path, tmp_path: Path):
    seen, console = [], quiet()

    def sampler(model: Model, prompt: str) -> str:
        seen.append((model.training, model.dtype, prompt))
        torch.rand(9)  # a sampler may draw: it must not change the training
        return " [b]and[/b] so on"

    config = make_config(
        model={"dropout": 0.3}, train={"sample_every": 2, "sample_prompt": "the cat", "dtype": "bfloat16"}
    )
    result = train(config, data, tmp_path / "a", sampler=sampler, console=console)
    assert seen == [(False, torch.float32, "the cat")] * 3
    rows = [row for row in result.history if row["event"] == "sample"]
    assert [(row["step"], row["text"]) for row in rows] == [(step, " [b]and[/b] so on") for step in (2, 4, 6)]
    assert "the cat [b]and[/b] so on" in told(console)
    other = train(config, data, tmp_path / "b", console=quiet())
    assert other.val_bpb == result.val_bpb


def test_validation_does_not_change_the_training(data: Path, tmp_path: Path):
    runs = []
    for every in (0, 1):
        config = make_config(model={"dropout": 0.3}, train={"eval_every": every})
        runs.append(train(config, data, tmp_path / str(every), console=quiet()))
    assert runs[0].val_bpb == runs[1].val_bpb
    assert len(runs[1].history) - len(runs[0].history) == 5


def test_epochs_decide_the_steps(data: Path):
    opened = open_data(data)
    windows = (opened.train.n_tokens - 1 - 12 + 1) // 12
    config, steps_per_epoch = resolve(make_config(train={"max_steps": None, "epochs": 2.5}), opened)
    assert config.train.max_steps == -(-5 * windows // 8)
    assert steps_per_epoch == windows // 4


@pytest.mark.parametrize("name", list_recipes())
def test_every_recipe_trains_saves_and_continues(name: str, data: Path, tmp_path: Path):
    """Each with its own architecture, made narrow where it is wide."""
    small = {"model.d_model": 32, "model.n_heads": 2, "model.d_mlp": 64, "train.batch_size": 2}
    if not load_recipe(name).model.layer_types:
        small["model.n_layers"] = 2
    if not load_recipe(name).model.causal:
        data = prepare_text(tmp_path / "text", special_tokens="bert")
    config = load_recipe(
        name, small | {"train.micro_batch_size": 1, "train.context": 16, "train.max_steps": 2, "threads": 1}
    )
    result = train(config, data, tmp_path, console=quiet())
    assert load_model(result.checkpoint).config.family == config.model.family
    longer = config.replace(train=config.train.replace(max_steps=3))
    assert train(longer, data, tmp_path, resume=True, console=quiet()).steps == 3


def test_gradients_that_explode_stop_the_run_with_advice(data: Path, tmp_path: Path):
    console = quiet()
    config = make_config(train={"lr": 1e30, "schedule": "constant", "max_steps": 50, "save_every": 1})
    with pytest.raises(UserError, match=r"3 steps in a row could not be taken .* lower train\.lr \(now 1e\+30\)"):
        train(config, data, tmp_path, console=console)
    assert told(console).count("was not taken: loss") == 3
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["grad_norm"] for row in rows if row["event"] == "skip"] == [None] * 3


@pytest.mark.parametrize("due", ["save", "eval"])
def test_broken_weights_never_take_the_place_of_good_ones(data: Path, tmp_path: Path, due: str):
    def spoil(model: Model, _: str) -> str:
        with torch.no_grad():
            model.get_parameter("backbone.layers.1.mlp.up_proj.weight")[0] = math.inf
        return ""

    settings = {"sample_every": 3, "save_every": 0, "eval_every": 0, "keep": 1} | {f"{due}_every": 1}
    with pytest.raises(UserError, match=r"weights are no longer finite after step \d; .* lower train\.lr"):
        train(make_config(train=settings), data, tmp_path, sampler=spoil, console=quiet())
    assert [path.name for path in list_checkpoints(tmp_path)] == (["step-00000002"] if due == "save" else [])


def test_refuses_an_out_folder_that_holds_checkpoints(data: Path, tmp_path: Path):
    train(make_config(), data, tmp_path, console=quiet())
    before = (tmp_path / "metrics.jsonl").read_bytes()
    with pytest.raises(
        UserError, match="already holds checkpoints; add --resume to continue, or choose another folder"
    ):
        train(make_config(), data, tmp_path, console=quiet())
    assert (tmp_path / "metrics.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    ("model", "settings", "message"),
    [
        ({"family": "lama"}, {}, "model.family 'lama' is unknown; use one of"),
        ({"family": "llama", "qk_norm": True}, {}, "qk_norm"),
        ({"n_heads": 3}, {}, r"model.n_heads \(3\) must divide"),
        ({}, {"context": 100_000}, "too few for a context of 100000"),
    ],
)
def test_refuses_before_any_work(data: Path, tmp_path: Path, model: dict, settings: dict, message: str):
    with pytest.raises(UserError, match=message):
        train(make_config(model=model, train=settings), data, tmp_path / "run", console=quiet())
    assert not (tmp_path / "run").exists()


def test_refuses_data_that_are_none(tmp_path: Path):
    with pytest.raises(UserError, match="not a folder of prepared data"):
        train(make_config(), write_text(tmp_path).parent, tmp_path / "run", console=quiet())


def test_out_that_is_a_file_is_named(data: Path, tmp_path: Path):
    (tmp_path / "run").write_text("mine")
    with pytest.raises(UserError, match="run: cannot be written"):
        train(make_config(), data, tmp_path / "run", console=quiet())


def test_a_probe_trains_nothing_and_tells_the_time_of_a_step(data: Path):
    assert 0 < seconds_per_step(make_config(), data, steps=2) < 60
