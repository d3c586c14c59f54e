"""Configuration: validated whole, refused in one line, merged key by key."""

from pathlib import Path

import pytest
from pydantic import Field, ValidationError, field_validator

from langwright.core.config import Frozen, merge, read_toml
from langwright.core.errors import UserError


class Inner(Frozen):
    lr: float = Field(default=0.1, gt=0)
    """Step size."""
    betas: tuple[float, float] = (0.9, 0.95)


class Outer(Frozen):
    name: str
    steps: int = 10
    train: Inner = Inner()

    @field_validator("name")
    @classmethod
    def plain(cls, name: str) -> str:
        if name == "bad":
            raise UserError("a name is not\nbad")
        return name


def test_parse_fills_and_freezes() -> None:
    config = Outer.parse({"name": "x", "train": {"lr": "3e-4"}}, "file")
    assert config == Outer(name="x", train=Inner(lr=3e-4))
    with pytest.raises(ValidationError):
        config.steps = 3  # type: ignore[misc]
    assert Inner.model_fields["lr"].description == "Step size."


@pytest.mark.parametrize(
    ("values", "what"),
    [
        ({}, "name: Field required"),
        ({"name": "x", "stepz": 1}, "stepz: unknown key; remove it or check its spelling"),
        ({"name": "x", "steps": "many"}, r"steps: .*\(got 'many'\)"),
        (
            {"name": "x", "train": {"lr": -1, "beta": 2}},
            r"train\.lr: .*greater than 0 \(got -1\); train\.beta: unknown key",
        ),
        ({"name": "x", "train": {"betas": [0.9]}}, r"train\.betas\.1"),
        ({"name": "x", "train": {"lr": float("nan")}}, r"train\.lr: .*finite"),
        ({"name": "x", "train": {"lr": "inf"}}, r"train\.lr: .*finite"),
        ({"name": "bad"}, r"name: a name is not bad \(got 'bad'\)"),
        ({"name": "x" * 9, "steps": "y" * 10_000}, "steps"),
        ({"name": "x", "a\nb": 1}, "a b: unknown key"),
        ([], "value: "),
    ],
)
def test_errors_are_one_line(values: dict[str, object], what: str) -> None:
    with pytest.raises(UserError, match=what) as caught:
        Outer.parse(values, "run.toml")
    assert str(caught.value).startswith("run.toml: ")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


def test_replace_validates_again() -> None:
    config = Outer(name="x", train=Inner(lr=0.5))
    assert config.replace(steps=3) == Outer(name="x", steps=3, train=Inner(lr=0.5))
    assert config.replace(train={"lr": 1}).train == Inner(lr=1)
    for changes in ({"steps": "many"}, {"stepz": 1}, {"train": {"lr": 0}}):
        with pytest.raises(UserError, match="Outer: "):
            config.replace(**changes)


def test_merge_lays_one_on_the_other_at_every_depth() -> None:
    base = {"a": {"b": 1, "c": {"d": 2}}, "e": 3, "f": {"g": 4}}
    over = {"a": {"c": {"d": 5, "x": 6}}, "e": {"y": 7}, "f": 8}
    assert merge(base, over) == {"a": {"b": 1, "c": {"d": 5, "x": 6}}, "e": {"y": 7}, "f": 8}
    assert base == {"a": {"b": 1, "c": {"d": 2}}, "e": 3, "f": {"g": 4}}
    assert merge({}, {}) == {}


def test_read_toml(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text("name = 'x'\n[train]\nlr = 0.1\n")
    assert read_toml(path) == {"name": "x", "train": {"lr": 0.1}}
    with pytest.raises(UserError, match=r"absent\.toml: no such file; give the path"):
        read_toml(tmp_path / "absent.toml")
    with pytest.raises(UserError, match="cannot be read: Is a directory"):
        read_toml(tmp_path)
    for content in (b"a = \xff", b"a = ", b"a = 1\na = 2", b"a = " + b"[" * 100_000):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"run\.toml: not valid TOML"):
            read_toml(path)
