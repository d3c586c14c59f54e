"""`lw.load` of an adapter's folder: where its base and its tokenizer come from, and what is refused."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from langwright.core.errors import UserError
from langwright.infer.lm import LM, load
from langwright.model.adapters import (
    AdapterConfig,
    adapter_parameters,
    add_adapters,
    fuse,
    has_adapters,
    opening,
    save_adapter,
)
from langwright.model.adapters.opening import find_base, load_adapted
from langwright.model.checkpoint.load import load_model
from langwright.model.checkpoint.save import save_model
from langwright.model.heads import HeadKind
from langwright.model.model import Model, build_model
from tests.unit.infer.small import byte_tokenizer, random_model


def adapt(model: Model, **settings: Any) -> Model:
    """With adapters that do something."""
    add_adapters(model, AdapterConfig(rank=4, **settings), seed=1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in adapter_parameters(model).values():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return model


def write(folder: Path, base: str, **settings: Any) -> Model:
    """The base in ``folder/base``, an adapter that names it ``base`` in ``folder/adapter``; the adapted model."""
    plain = random_model()
    save_model(plain, folder / "base")
    byte_tokenizer().save(folder / "base")
    model = adapt(plain, **settings)
    save_adapter(model, folder / "adapter", base=base)
    return model


@pytest.mark.parametrize("how", ["absolute", "beside", "here"])
@pytest.mark.parametrize("dora", [False, True])
def test_an_adapter_is_loaded_with_its_base(how: str, dora: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    base = {"absolute": str(tmp_path / "base"), "beside": "../base", "here": "base"}[how]
    model = write(tmp_path, base, dora=dora)
    lm = load(tmp_path / "adapter", device="cpu")
    assert not has_adapters(lm.model)
    assert not lm.model.training
    ids = [*b"The sea."]
    expected = LM(fuse(model).eval(), byte_tokenizer())
    torch.testing.assert_close(lm.logits(ids), expected.logits(ids), atol=1e-5, rtol=1e-5)
    assert not torch.allclose(lm.logits(ids), load(tmp_path / "base", device="cpu").logits(ids), atol=1e-2)
    assert load(tmp_path / "adapter", device="cpu", dtype="bfloat16").model.dtype == torch.bfloat16


def test_the_tokenizer_is_the_adapters_if_it_has_one(tmp_path: Path):
    write(tmp_path, "../base")
    assert load(tmp_path / "adapter", device="cpu").tokenizer.bos_id is not None
    byte_tokenizer(bos=False).save(tmp_path / "adapter")
    assert load(tmp_path / "adapter", device="cpu").tokenizer.bos_id is None


def test_a_run_leads_to_its_last_adapter(tmp_path: Path):
    write(tmp_path, str(tmp_path / "base"))
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "last").symlink_to(tmp_path / "adapter")
    assert load(tmp_path / "run", device="cpu").generate("a", max_new_tokens=2).token_ids


def test_a_base_on_the_hub_is_asked_for_by_its_revision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write(tmp_path, "org/base")
    asked: list[str] = []

    def answer(ref: str) -> Path:
        asked.append(ref)
        return tmp_path / "base"

    monkeypatch.setattr(opening, "resolve", answer)
    source = tmp_path / "adapter" / "adapter_config.json"
    values = json.loads(source.read_text())
    for base, revision in (("org/base", None), ("org/base", "abc"), ("smollm2-135m-instruct", "abc")):
        source.write_text(json.dumps(values | {"base_model_name_or_path": base, "revision": revision}))
        assert find_base(tmp_path / "adapter") == tmp_path / "base"
    assert asked == ["org/base", "org/base@abc", "smollm2-135m-instruct"]


def test_no_adapter_on_an_adapter(tmp_path: Path):
    model = write(tmp_path, "../base")
    save_adapter(model, tmp_path / "second", base="../adapter")
    with pytest.raises(UserError, match="the base, .*adapter, is itself an adapter; fuse that one first"):
        load(tmp_path / "second")
    save_adapter(model, tmp_path / "own", base=".")
    with pytest.raises(UserError, match="is itself an adapter"):
        load(tmp_path / "own")


def test_what_cannot_be_opened_says_why(tmp_path: Path):
    write(tmp_path, "../base")
    source = tmp_path / "adapter" / "adapter_config.json"
    values = json.loads(source.read_text())
    for base, message in (
        ("../nowhere", "base_model_name_or_path: ../nowhere: no such file or folder"),
        ("smollm2-135m-instrukt", "did you mean smollm2-135m-instruct"),
        ("", "base_model_name_or_path is empty"),
        (None, "base_model_name_or_path is empty"),
        ("x" * 5000, "no such file"),
    ):
        source.write_text(json.dumps(values | {"base_model_name_or_path": base}))
        with pytest.raises(UserError, match=message) as caught:
            load(tmp_path / "adapter")
        assert str(source) in str(caught.value)
        assert "\n" not in str(caught.value)
    source.write_text(json.dumps(values | {"task_type": "SEQ_2_SEQ_LM"}))
    with pytest.raises(UserError, match="task_type 'SEQ_2_SEQ_LM' is not supported"):
        load(tmp_path / "adapter")
    with pytest.raises(UserError, match=r"holds an adapter, not a model; .*langwright\.load opens both"):
        load_model(tmp_path / "adapter")
    source.write_text(json.dumps(values))
    shutil.copy(tmp_path / "base" / "model.safetensors", tmp_path / "adapter")
    with pytest.raises(UserError, match="holds an adapter .* and a whole model"):
        load(tmp_path / "adapter")


def test_an_adapter_for_another_base_is_refused(tmp_path: Path):
    write(tmp_path, "../base")
    other = random_model().config.replace(d_mlp=40)
    shutil.rmtree(tmp_path / "base")
    save_model(build_model(other), tmp_path / "base")
    byte_tokenizer().save(tmp_path / "base")
    with pytest.raises(UserError, match="the adapter is for another base"):
        load(tmp_path / "adapter")


@pytest.mark.parametrize("head", ["sequence_classifier", "token_classifier"])
def test_a_classifier_has_the_labels_of_its_adapter(head: HeadKind, tmp_path: Path):
    """The base is a language model that knows of no labels."""
    write(tmp_path, "../base")
    plain = build_model(random_model().config.replace(n_labels=7), head, seed=2)
    plain.backbone.load_state_dict(random_model().backbone.state_dict())
    model = adapt(plain, train_head=True)
    shutil.rmtree(tmp_path / "adapter")
    save_adapter(model, tmp_path / "adapter", base="../base")
    found = load_adapted(tmp_path / "adapter", find_base(tmp_path / "adapter"))
    assert found.head_kind == head
    assert found.config.n_labels == 7
    assert found.fresh == []
    ids = torch.tensor([[*b"The sea."]])
    with torch.inference_mode():
        torch.testing.assert_close(found(ids), fuse(model).eval()(ids), atol=1e-5, rtol=1e-5)
