"""Plans against published runs, and the arithmetic of data, time, cost and fit."""

from pathlib import Path
from typing import Any

import pytest

from langwright.core.errors import UserError
from langwright.train.config import list_recipes, load_recipe
from langwright.train.planning.advice import check_memory, find_fit, gigabytes
from langwright.train.planning.devices import find_device, known_devices
from langwright.train.planning.memory import count_weights
from langwright.train.planning.pace import Pace, measure_pace
from langwright.train.planning.plan import Machine, machine_of, plan_run, plan_size
from langwright.train.planning.request import PlanRequest, decide_steps, make_plan
from langwright.train.planning.scaling import BESIROGLU, HOFFMANN, worth_of
from langwright.train.planning.words import clock, plan_lines
from tests.unit.train.tiny import VOCAB, make_config, prepare_text

HERE = Machine("a machine", "cpu", 4e9)
# Parameters, tokens, device, device-hours by the model cards, and ours over theirs as docs/planning.md says it.
PUBLISHED = {
    "Llama 2 7B": (6.74e9, 2e12, "a100", 184_320, 0.93),
    "Llama 2 70B": (68.98e9, 2e12, "a100", 1_720_320, 1.02),
    "Llama 3.1 405B": (405.85e9, 15.6e12, "h100", 30.84e6, 0.86),
    "Llama 3 70B": (70.55e9, 15e12, "h100", 6.4e6, 0.70),
    "Llama 3.1 8B": (8.03e9, 15e12, "h100", 1.46e6, 0.35),
}


def device_hours(parameters: float, tokens: float, device: str, count: int = 1) -> float:
    plan = plan_size(parameters, tokens, machine_of(find_device(device), count, None, None, None))
    assert plan.cost is not None
    return plan.cost.device_hours


@pytest.mark.parametrize("name", PUBLISHED)
def test_stands_beside_published_runs_as_documented(name: str):
    parameters, tokens, device, hours, ratio = PUBLISHED[name]
    assert device_hours(parameters, tokens, device) / hours == pytest.approx(ratio, abs=0.01)
    assert device_hours(parameters, tokens, device, 512) == pytest.approx(device_hours(parameters, tokens, device))


def test_gpt3_is_what_its_paper_says():
    """Brown et al. 2020, table D.1: 3.14e23 operations for 174.6e9 parameters and 300e9 tokens."""
    plan = plan_size(174.6e9, 300e9, machine_of(find_device("a100"), 1024, None, None, 2.0))
    assert plan.flops == pytest.approx(3.14e23, rel=0.01)
    assert plan.cost is not None
    assert plan.time is not None
    assert plan.cost.money == pytest.approx(2 * plan.cost.device_hours)
    assert plan.time.total * 1024 / 3600 == pytest.approx(plan.cost.device_hours)
    assert "27.1 days" in "\n".join(plan_lines(plan))


def test_compute_optimal_sizes_are_those_of_the_papers():
    """Hoffmann et al. chose 70e9 parameters and 1.4e12 tokens; Besiroglu et al. find that for the same arithmetic."""
    flops = 6 * 70e9 * 1.4e12
    assert BESIROGLU.parameters_for(flops) == pytest.approx(70e9, rel=0.07)
    assert HOFFMANN.parameters_for(flops) < 45e9  # the published fit disagrees with its authors' own choice
    for law in (BESIROGLU, HOFFMANN):
        size = law.parameters_for(flops)
        assert law.tokens_for(size) == pytest.approx(flops / 6 / size, rel=1e-6)
        best = law.loss(size, flops / 6 / size)
        assert best < min(law.loss(size * off, flops / 6 / size / off) for off in (0.8, 1.25))
        assert law.same_loss(size, 1e12, size) == pytest.approx(1e12)
        assert law.same_loss(size, 1e15, size / 100) == float("inf")


def test_repeats_are_worth_less_and_less():
    assert worth_of(50, 100) == 50
    assert 3.6 < worth_of(400, 100) / 100 < 4
    assert worth_of(1e9, 100) == pytest.approx(100 * 16.4)


@pytest.mark.parametrize("name", known_devices())
def test_every_device_can_be_planned_for(name: str):
    plan = make_plan("laptop", {"device": name.upper()}, PlanRequest(price_per_hour=2))
    assert plan.memory is not None
    assert plan.time is not None
    assert plan.memory.fits
    assert plan.dtype == ("bfloat16" if known_devices()[name].bfloat16 else "float32")
    assert plan.cost is not None
    assert plan.cost.money == pytest.approx(2 * plan.cost.device_hours)
    assert sum(plan.memory.terms.values()) == plan.memory.peak


@pytest.mark.parametrize("recipe", list_recipes())
def test_every_recipe_can_be_planned_without_data(recipe: str):
    plan = make_plan(recipe, {"device": "h100"}, PlanRequest())
    assert plan.data.steps > 0
    assert any("vocabulary" in text for text in plan.assumed)
    assert all(len(line) < 180 for line in plan_lines(plan))


def test_what_does_not_fit_is_told_with_the_piece_that_does():
    settings = {"batch_size": 64, "context": 256, "dtype": "float32"}
    config = make_config(model={"d_model": 256, "n_layers": 6}, train=settings)
    shape = config.model.build(vocab_size=4096, context=256)
    roomy = find_fit(config, shape, "cpu", 64e9)
    assert roomy.fits
    assert roomy.largest == 64
    tight = find_fit(config, shape, "cpu", 0.8e9)
    assert not tight.fits
    assert 0 < tight.largest < 64
    assert f"--train.micro-batch-size {tight.largest} fits" in tight.advice[0]
    smaller = config.replace(train=config.train.replace(micro_batch_size=tight.largest))
    assert find_fit(smaller, shape, "cpu", 0.8e9).fits
    one_more = config.replace(train=config.train.replace(micro_batch_size=tight.largest + 1))
    assert not find_fit(one_more, shape, "cpu", 0.8e9).fits
    assert "make the model smaller" in find_fit(config, shape, "cpu", 0.1e9).advice[0]


def test_one_sequence_that_does_not_fit_is_told_with_a_context_that_does():
    config = make_config(model={"d_model": 512, "n_layers": 12}, train={"batch_size": 1, "context": 65536})
    shape = config.model.build(vocab_size=1000, context=65536)
    advice = find_fit(config, shape, "cpu", 4e9).advice[0]
    context = int(advice.partition("--train.context ")[2].split()[0])
    assert 16 <= context < 65536
    shorter = config.replace(train=config.train.replace(context=context))
    assert find_fit(shorter, shape, "cpu", 4e9).fits


def test_a_checkpoint_written_meanwhile_is_a_copy():
    def peak(kind: str = "cpu", **changes: Any) -> int:
        config = make_config(train={"max_steps": 100, "save_every": 10} | changes)
        return find_fit(config, config.model.build(vocab_size=5000, context=12), kind, None).use.peak_bytes

    waiting = peak(save_in_background=False)
    weights = count_weights(make_config().model.build(vocab_size=5000, context=12)).total
    assert peak() - waiting == pytest.approx(12 * weights, rel=0.01)  # weights and Adam's two moments
    assert peak(save_every=0) == peak(save_every=100) == waiting  # nothing goes on after the last step
    assert peak("cuda") == peak("cuda", save_in_background=False)


def test_what_one_device_cannot_hold_is_divided_over_many():
    model = {"d_model": 4096, "n_layers": 32, "n_heads": 32}
    config = make_config(model=model, train={"batch_size": 64, "context": 2048, "micro_batch_size": 1})
    config = config.replace(train=config.train.replace(dtype="bfloat16"))
    shape = config.model.build(vocab_size=32000, context=2048)
    assert not find_fit(config, shape, "cuda", 75e9).fits
    shared = find_fit(config, shape, "cuda", 75e9, count=8)
    assert shared.shards == 8
    assert shared.fits
    assert "FSDP" in shared.advice[0]


def test_training_refuses_what_cannot_fit(monkeypatch: pytest.MonkeyPatch):
    said: list[str] = []
    config = make_config()
    shape = config.model.build(vocab_size=VOCAB, context=12)
    monkeypatch.setattr("langwright.train.planning.advice.available_memory", lambda _: 1e8)
    with pytest.raises(UserError, match=r"needs about \d+ MB on cpu and 100 MB are free; .*; or add --force to try"):
        check_memory(config, shape, said.append, force=False)
    assert not said
    check_memory(config, shape, said.append, force=True)
    assert "trying all the same" in said[0]
    monkeypatch.setattr("langwright.train.planning.advice.available_memory", lambda _: None)
    assert check_memory(config, shape, said.append, force=False).fits


def test_steps_are_those_of_the_run():
    config = make_config(train={"max_steps": None, "epochs": 2.0})
    assert decide_steps(config.train, 1000, None, 1000) == (-(-2 * (999 // 12) // 4), None)
    assert decide_steps(config.train, 1000, 480, None) == (10, None)
    steps, told = decide_steps(config.train, 1000, None, None)
    assert steps == -(-20 * 1000 // 48)
    assert told is not None
    assert "20 tokens a parameter" in told
    assert decide_steps(make_config().train, 1000, None, None) == (6, None)


def test_time_is_the_pace_times_the_work(tmp_path: Path):
    settings = {"max_steps": 100, "eval_every": 40, "eval_tokens": 500, "save_every": 50}
    config = make_config(train=settings)
    shape = config.model.build(vocab_size=VOCAB, context=12)
    pace = Pace(rows=4, sequence=0.2, update=0.1, validation=0.001)
    time = plan_run(config, shape, HERE, pace=pace, val_tokens=1000).time
    assert time is not None
    assert time.step == pytest.approx(0.9)
    assert time.training == pytest.approx(90)
    assert time.validation == pytest.approx(4 * 500 * 0.001)  # before, after 40 and 80 steps, and at the end
    assert time.tokens_per_second == pytest.approx(48 / 0.9)
    assert time.total == pytest.approx(time.training + time.validation + time.saving)


@pytest.mark.parametrize("settings", [{}, {"micro_batch_size": 2}, {"optimiser": "muon", "dtype": "bfloat16"}])
def test_a_pace_is_measured_and_nothing_else_changes(settings: dict[str, Any]):
    config = make_config(train=settings)
    pace = measure_pace(config, config.model.build(vocab_size=VOCAB, context=12), seconds=0.2)
    assert pace.sequence > 0
    assert pace.validation > 0
    assert pace.update >= 0
    assert pace.step(8) > pace.step(4)


def test_a_plan_of_real_data_counts_passes(tmp_path: Path):
    data = prepare_text(tmp_path)
    changes = {"train.batch_size": 4, "train.context": 16, "threads": 1}
    plan = make_plan("tiny", changes, PlanRequest(data=data, probe=False))
    assert plan.time is None
    assert plan.data.unique
    assert plan.data.epochs == pytest.approx(plan.data.tokens / plan.data.unique)
    text = "\n".join(plan_lines(plan))
    assert "not known" in text
    assert "Muennighoff" in text


@pytest.mark.parametrize(
    ("recipe", "changes", "request_", "message"),
    [
        ("tiny", {}, {"params": 1e9}, "not both"),
        (None, {"seed": 1}, {"params": 1e9}, "--seed belongs to a recipe"),
        (None, {"device": "b7"}, {"params": 1e9}, "'b7' is not in the table; use h100"),
        ("tiny", {}, {"count": 2}, "--count needs a --device of the table"),
        ("tiny", {}, {"mfu": 0.5}, "--mfu needs a --device of the table"),
        ("tiny", {"device": "h1000"}, {}, "'h1000' is not available here"),
        ("tiny", {}, {"data": Path("nowhere")}, "nowhere: not a folder of prepared data"),
        ("tinny", {}, {}, "recipe 'tinny' is unknown"),
        ("tiny", {"train.lrr": 1}, {}, "train.lrr: unknown key"),
        ("tiny", {"train.batch_size": 0}, {}, "train.batch_size"),
        ("tiny", {"model.n_heads": 3}, {}, "must divide"),
    ],
)
def test_bad_questions_are_answered_in_one_line(
    recipe: str | None, changes: dict[str, Any], request_: dict[str, Any], message: str
):
    with pytest.raises(UserError) as caught:
        make_plan(recipe, changes, PlanRequest(**request_))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_data_bring_their_own_vocabulary(tmp_path: Path):
    with pytest.raises(UserError, match="not both"):
        make_plan("tiny", {}, PlanRequest(data=prepare_text(tmp_path), vocab_size=100))


def test_sizes_and_times_read_well():
    assert [gigabytes(size) for size in (5e6, 2.34e9, 512e9)] == ["5 MB", "2.3 GB", "512 GB"]
    told = [clock(seconds) for seconds in (42, 600, 7200, 200_000, 1e9)]
    assert told == ["42 s", "10 min", "2 h", "2.31 days", "31.7 years"]
    assert len(plan_lines(plan_size(1e9, 2e10, machine_of(find_device("m1"), 1, None, None, None)))) > 5


def test_a_recipe_of_ones_own_is_planned_as_a_named_one(tmp_path: Path):
    path = tmp_path / "mine.toml"
    path.write_text(
        "[model]\nd_model=64\nn_layers=2\nn_heads=2\n[train]\nmax_steps=9\nbatch_size=2\ncontext=8\nlr=1.0\n"
    )
    plan = make_plan(str(path), {"device": "h100"}, PlanRequest(vocab_size=500, tokens=1600))
    assert plan.data.steps == 100
    assert load_recipe(str(path)).train.max_steps == 9
