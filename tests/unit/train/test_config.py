"""Recipes load, overrides reach their fields, and wrong values are named."""

from pathlib import Path

import pytest

from langwright.core.errors import UserError
from langwright.model.flops import matmul_parameters
from langwright.model.model import Model, build_model, count_parameters
from langwright.train.config import Architecture, LoopSettings, TrainConfig, list_recipes, load_recipe, round_up


def test_recipes_are_listed_and_load():
    assert set(list_recipes()) >= {"encoder-laptop", "encoder-tiny", "gpt2-124m", "laptop", "tiny", "vanilla-wikitext2"}
    for name in list_recipes():
        assert isinstance(load_recipe(name), TrainConfig)


def test_gpt2_recipe_is_gpt2():
    recipe = load_recipe("gpt2-124m")
    shape = recipe.model.build(vocab_size=50257, context=recipe.train.context)
    assert (shape.vocab_size, shape.max_positions, shape.d_mlp, shape.d_head) == (50304, 1024, 3072, 64)
    body = matmul_parameters(shape) - shape.d_model * shape.vocab_size
    assert body == 12 * 12 * 768**2
    assert recipe.train.batch_size * recipe.train.context == 491_520


@pytest.mark.parametrize("name", ["laptop", "encoder-laptop"])
def test_laptop_recipe_has_about_ten_million_parameters(name: str):
    recipe = load_recipe(name)
    model = build_model(recipe.model.build(vocab_size=8192, context=recipe.train.context))
    assert 9e6 < count_parameters(model) < 11e6


def test_vanilla_recipe_is_the_tutorials_model():
    recipe = load_recipe("vanilla-wikitext2")
    shape = recipe.model.build(vocab_size=28_782, context=recipe.train.context)
    model = Model(shape)
    # Embedding and head, two encoder layers of 4 x 200 x 200 attention and 2 x 200 x 200 MLP, their biases and norms.
    layer = 4 * 200 * 200 + 4 * 200 + 2 * 200 * 200 + 2 * 200 + 2 * 2 * 200
    assert count_parameters(model) == 2 * 28_782 * 200 + 28_782 + 2 * layer
    assert shape.embed_scale == pytest.approx(200**0.5)
    assert (shape.dropout, shape.attn_dropout, shape.mlp_dropout) == (0.2, 0.2, 0.2)
    assert (recipe.train.lr, recipe.train.gamma, recipe.train.grad_clip, recipe.train.epochs) == (5.0, 0.95, 0.5, 3)


def test_overrides_may_be_dotted_or_nested():
    recipe = load_recipe("tiny", {"train.max-steps": "7", "train": {"lr": 0.5}, "model.d_model": 64, "seed": 3})
    assert (recipe.train.max_steps, recipe.train.lr, recipe.model.d_model, recipe.seed) == (7, 0.5, 64, 3)
    assert recipe.train.batch_size == load_recipe("tiny").train.batch_size


def test_recipe_from_a_file(tmp_path: Path):
    path = tmp_path / "mine.toml"
    path.write_text(
        "[model]\nd_model = 8\nn_layers = 1\nn_heads = 2\n"
        "[train]\nmax_steps = 1\nbatch_size = 1\ncontext = 4\nlr = 0.1\n"
    )
    assert load_recipe(str(path)).model.d_model == 8


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        ({"train.learning_rate": 1}, "train.learning_rate: unknown key"),
        ({"train.lr": -1}, "train.lr"),
        ({"train.lr": "fast"}, "train.lr"),
        ({"train.batch_size": 0}, "train.batch_size"),
        ({"train.micro_batch_size": 17}, "train.micro_batch_size: is more than batch_size (16)"),
        ({"train.dtype": "float8"}, "train.dtype"),
        ({"train.schedule": "linear"}, "train.schedule"),
        ({"train.max_steps": None}, "train.epochs: give max_steps or epochs"),
        ({"model.norm": "batchnorm"}, "model.norm"),
        ({"model.dropout": 1.0}, "model.dropout"),
    ],
)
def test_wrong_values_are_named(overrides: dict, named: str):
    with pytest.raises(UserError) as error:
        load_recipe("tiny", overrides)
    assert named in str(error.value)
    assert "\n" not in str(error.value)


def test_unknown_recipe_names_the_known_ones():
    with pytest.raises(UserError, match="'huge' is unknown; use encoder-laptop, encoder-tiny, gpt2-124m"):
        load_recipe("huge")
    with pytest.raises(UserError, match="no such file"):
        load_recipe("huge.toml")


def test_architecture_derives_what_is_not_given():
    shape = Architecture(d_model=96, n_layers=1, n_heads=3, n_kv_heads=1, vocab_multiple=64)
    built = shape.build(vocab_size=65, context=32, bos_id=1, eos_ids=(2,))
    assert (built.d_head, built.n_kv_heads, built.d_mlp, built.vocab_size, built.max_positions) == (32, 1, 256, 128, 32)
    assert (built.bos_id, built.eos_ids) == (1, (2,))
    assert shape.replace(gated=False).build(vocab_size=65, context=32).d_mlp == 384


def test_architecture_names_what_does_not_fit():
    with pytest.raises(UserError, match=r"model\.n_heads \(3\) must divide model\.d_model \(16\)"):
        Architecture(d_model=16, n_layers=1, n_heads=3).build(vocab_size=9, context=4)
    with pytest.raises(UserError, match=r"model\.max_positions \(3\) is less than train\.context \(4\)"):
        Architecture(d_model=16, n_layers=1, n_heads=2, max_positions=3).build(vocab_size=9, context=4)
    with pytest.raises(UserError, match=r"n_kv_heads \(3\) must divide n_heads \(4\)"):
        Architecture(d_model=16, n_layers=1, n_heads=4, n_kv_heads=3).build(vocab_size=9, context=4)


def test_every_field_has_help():
    for config in (TrainConfig, Architecture, LoopSettings):
        assert [name for name, field in config.model_fields.items() if not field.description] == []


def test_round_up():
    assert [round_up(n, 64) for n in (1, 64, 65)] == [64, 64, 128]
