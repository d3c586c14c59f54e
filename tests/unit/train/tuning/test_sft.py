"""Supervised fine-tuning from files to a checkpoint that answers."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

import langwright as lw
from langwright.core.errors import UserError
from langwright.core.json_text import read_json_object
from langwright.model.adapters import AdapterConfig, add_adapters
from langwright.model.checkpoint.load import load_model
from langwright.model.model import Model
from langwright.train.checkpoint import list_checkpoints
from langwright.train.compute import ComputeModel
from langwright.train.config import ParallelSettings
from langwright.train.loop import accumulate
from langwright.train.objective import MASKED_LM
from langwright.train.ranks import Ranks
from langwright.train.replay import replay
from langwright.train.run import run_task
from langwright.train.session import TrainResult
from langwright.train.spread import Spread
from langwright.train.task import Task
from langwright.train.tuning.base import adapter_form, check_layout
from langwright.train.tuning.config import TuneConfig, load_tuning
from langwright.train.tuning.sft import sft
from tests.unit.train.tuning.talk import chats, make_base, make_tuning, write_lines

QUIET = Console(quiet=True)
CLOCK = ("elapsed", "tokens_per_second")


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return make_base(tmp_path / "base")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_lines(tmp_path / "chats.jsonl", chats())


def tune(config: TuneConfig, data: Path, out: Path, *, resume: bool = False) -> TrainResult:
    return run_task(
        config, lambda spread, say: sft(config, [data], (), say, spread=spread), out, resume=resume, console=QUIET
    )


def figures(result: TrainResult) -> list[dict[str, Any]]:
    rows = [row for row in result.history if row["event"] != "save"]
    return [{name: value for name, value in row.items() if name not in CLOCK} for row in rows]


@pytest.mark.parametrize(("over", "share"), [({}, 0.9), ({"adapter": None}, 0.6)])
def test_learns_to_answer(over: dict[str, Any], share: float, base: Path, data: Path, tmp_path: Path):
    config = make_tuning(base, **{"train.max_steps": 40, "train.lr": 3e-2} | over)
    result = tune(config, data, tmp_path / "out")
    evals = [row["val_bpb"] for row in result.history if row["event"] == "eval"]
    assert evals[-1] < share * evals[0]
    model = lw.load(tmp_path / "out" / "last")
    assert model.chat_template is not None
    base_model = lw.load(base)
    ids = list(b"Say 4")
    assert not torch.equal(model.logits(ids), base_model.logits(ids))


def test_a_checkpoint_holds_the_adapter_alone(base: Path, data: Path, tmp_path: Path):
    tune(make_tuning(base), data, tmp_path / "out")
    last = tmp_path / "out" / "last"
    assert (last / "adapter_model.safetensors").stat().st_size < 200_000
    assert not (last / "model.safetensors").exists()
    about = read_json_object(last / "langwright.json")
    assert about["method"] == "sft"
    assert about["base"] == str(base)
    assert read_json_object(last / "adapter_config.json")["base_model_name_or_path"] == str(base.resolve())
    assert "adapter" in (last / "README.md").read_text()
    with pytest.raises(UserError, match="made by langwright tune"):
        replay(tmp_path / "out", 2, lambda _: None)


def test_a_name_stays_a_name(base: Path, tmp_path: Path):
    """What was tuned from a catalogue's or a hub's model can be used on another machine."""
    model = add_adapters(load_model(base, dtype=torch.float32), AdapterConfig(rank=2))
    adapter_form("smollm2-135m-instruct").write(model, tmp_path / "adapter")
    written = read_json_object(tmp_path / "adapter" / "adapter_config.json")
    assert written["base_model_name_or_path"] == "smollm2-135m-instruct"


def test_full_tuning_writes_a_whole_model(base: Path, data: Path, tmp_path: Path):
    tune(make_tuning(base, adapter=None), data, tmp_path / "out")
    last = tmp_path / "out" / "last"
    assert (last / "model.safetensors").exists()
    assert lw.load(last).generate("x", max_new_tokens=2, temperature=0).token_ids


@pytest.mark.parametrize("over", [{}, {"adapter": None}, {"adapter.dropout": 0.2}, {"train.micro_batch_size": 1}])
def test_resumed_is_uninterrupted(over: dict[str, Any], base: Path, data: Path, tmp_path: Path):
    config = make_tuning(base, **over)
    whole = tune(config, data, tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "cut", symlinks=True)
    for path in list_checkpoints(tmp_path / "cut")[1:]:
        shutil.rmtree(path)
    again = tune(config, data, tmp_path / "cut", resume=True)
    assert figures(again) == figures(whole)
    for name in ("adapter_model.safetensors", "model.safetensors", "optimizer.safetensors"):
        one, other = (tmp_path / side / "last" / name for side in ("whole", "cut"))
        assert one.exists() == other.exists()
        assert not one.exists() or one.read_bytes() == other.read_bytes()


def gradients(task: Task, step: int = 0, size: int | None = None) -> tuple[float, dict[str, torch.Tensor]]:
    model: Model = task.build()
    loss = accumulate(ComputeModel(model, torch.float32), task.batches(None)(step), MASKED_LM, size)
    assert loss is not None
    return loss, {name: each.grad for name, each in model.named_parameters() if each.grad is not None}


def test_packed_has_the_gradients_of_unpacked(base: Path, data: Path):
    """Examples in one row do not attend to each other (trl 805): one step over all of them is the same either way."""
    tasks = []
    for pack in (True, False):
        config = make_tuning(base, **{"examples.pack": pack, "adapter": None})
        task = sft(config, [data])
        rows = len(task.batches(None).part.layout)  # pyright: ignore[reportAttributeAccessIssue]
        tasks.append(sft(config.replace(train=config.train.replace(batch_size=rows)), [data]))
    (packed_loss, packed), (plain_loss, plain) = (gradients(task) for task in tasks)
    assert packed_loss == pytest.approx(plain_loss, rel=1e-6)
    for name, grad in plain.items():
        assert (packed[name] - grad).abs().max() <= 1e-5 * max(1.0, grad.abs().max().item())


def test_accumulated_is_the_large_batch(base: Path, data: Path):
    """Though answers differ in length (transformers 34191)."""
    task = sft(make_tuning(base, **{"train.batch_size": 4}), [data])
    whole_loss, whole = gradients(task)
    loss, found = gradients(task, size=1)
    assert loss == pytest.approx(whole_loss, rel=1e-6)
    for name, grad in whole.items():
        torch.testing.assert_close(found[name], grad, rtol=1e-5, atol=1e-6)


def test_only_adapters_have_gradients(base: Path, data: Path):
    _, found = gradients(sft(make_tuning(base), [data]))
    assert found
    assert all("lora_" in name for name in found)


def test_refusals_come_before_any_work(base: Path, data: Path, tmp_path: Path):
    bare = make_base(tmp_path / "bare", template=None)
    with pytest.raises(UserError, match="template"):
        sft(make_tuning(bare), [data])
    with pytest.raises(UserError, match="batch_size"):
        sft(make_tuning(base, **{"train.batch_size": 500}), [data])
    with pytest.raises(UserError, match="train.context"):
        sft(make_tuning(base, **{"train.context": 10}), [data])
    with pytest.raises(UserError, match="no such chat template"):
        sft(make_tuning(base, **{"examples.chat_template": "chatty"}), [data])
    with pytest.raises(UserError, match="pretraining"):
        make_tuning(base, **{"train.packing": "documents"})
    assert load_tuning("sft", "x", {"adapter": None}).train.lr == pytest.approx(2e-5)


def test_held_out_examples_that_are_also_learnt_are_told(base: Path, data: Path, tmp_path: Path):
    said: list[str] = []
    val = write_lines(tmp_path / "val.jsonl", chats()[:3])
    task = sft(make_tuning(base), [data], [val], said.append)
    assert any("3 held-out examples are also learnt from" in line and "line 1" in line for line in said)
    assert task.facts.data.val.examples == 3  # pyright: ignore[reportAttributeAccessIssue]


def test_fsdp_is_refused_where_it_cuts_what_must_be_whole(base: Path, data: Path):
    shares = Spread(ParallelSettings(kind="fsdp"), Ranks(0, 2))
    assert shares.kind == "fsdp"
    for config in (make_tuning(base), make_tuning(base, adapter=None).replace(method="dpo")):
        with pytest.raises(UserError, match="use ddp"):
            check_layout(config, shares)
    check_layout(make_tuning(base, adapter=None), shares)
    check_layout(make_tuning(base), Spread(ParallelSettings(kind="ddp"), Ranks(0, 2)))


def test_another_data_set_is_no_resume(base: Path, data: Path, tmp_path: Path):
    config = make_tuning(base)
    tune(config, data, tmp_path / "out")
    other = write_lines(tmp_path / "other.jsonl", chats()[:20])
    with pytest.raises(UserError, match="other data"):
        tune(config, other, tmp_path / "out", resume=True)


def test_a_tokenizer_of_another_size_is_refused(base: Path, data: Path):
    tokenizer = lw.load(base).tokenizer
    tokenizer.backend.add_special_tokens(["<more>"])
    tokenizer.save(base)
    with pytest.raises(UserError, match="260 ids and the model knows 259"):
        sft(make_tuning(base), [data])
