"""`langwright verify`: every engine is asked, and whoever departs is named with the place."""

import json
from pathlib import Path

import pytest
import torch

from langwright.apps.export import export
from langwright.apps.verify import Report, Row, verify
from langwright.cli.main import main
from langwright.core.errors import FormatError, UserError
from langwright.core.files import MANIFEST
from langwright.core.safetensors_file import WEIGHTS, open_weights, write_tensors
from langwright.infer.certificate import PARITY, read_certificate, write_certificate
from langwright.infer.engines import Unavailable
from langwright.tokenizer.load import load_tokenizer
from langwright.tokenizer.template_choice import with_template
from tests.unit.apps.exported import make_adapter, make_folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    export(str(make_folder(tmp_path / "base")), tmp_path / "model")
    return tmp_path / "model"


def row(report: Report, engine: str) -> Row:
    return next(each for each in report.rows if each.engine == engine)


def change(folder: Path, name: str) -> None:
    """One weight of one tensor."""
    with open_weights(folder) as weights:
        tensors = {each: weights.tensor(each).clone() for each in weights.names}
    tensors[name][3, 5] += 1.0
    write_tensors(folder / WEIGHTS, tensors)


def test_a_sound_model_is_verified_by_all(folder: Path, capsys: pytest.CaptureFixture[str]):
    report = verify(str(folder))
    assert report.agrees
    assert report.certificate == folder / PARITY
    assert [each.engine for each in report.rows] == ["files", "as loaded", "with cache", "transformers", "int8"]
    assert row(report, "as loaded").difference == 0
    for name in ("with cache", "transformers"):
        difference = row(report, name).difference
        assert difference is not None
        assert difference < 1e-5
    drift = row(report, "int8")
    assert drift.difference is not None
    assert drift.allowed is not None
    assert 1e-4 < drift.difference < drift.allowed
    assert main(["verify", str(folder)]) == 0
    out = capsys.readouterr().out
    assert "verified" in out
    assert "files: as their manifest says" in out


def test_a_planted_fault_in_layer_3_is_named(folder: Path, capsys: pytest.CaptureFixture[str]):
    change(folder, "model.layers.3.mlp.down_proj.weight")
    report = verify(str(folder))
    assert row(report, "files").verdict == "FAILED"
    assert "model.safetensors: does not match its manifest" in row(report, "files").note
    for name in ("as loaded", "with cache"):
        found = row(report, name)
        assert (found.verdict, found.place) == ("FAILED", "layer 3")
        assert found.difference is not None
        assert found.allowed is not None
        assert found.difference > found.allowed
    assert row(report, "transformers").place == "final norm"  # which is what they report after the last layer
    assert main(["verify", str(folder), "--json"]) == 1
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert told["verified"] is False
    assert {each["engine"]: each["place"] for each in told["engines"]}["as loaded"] == "layer 3"
    change(folder, "model.layers.1.self_attn.k_proj.weight")
    report = verify(str(folder))
    assert {row(report, name).place for name in ("as loaded", "with cache", "transformers")} == {"layer 1"}


def test_another_chat_template_is_named(folder: Path):
    (folder / MANIFEST).unlink()
    template = "{% for m in messages %}<|im_start|>{{ m.content }}<|im_end|>{% endfor %}"
    with_template(load_tokenizer(folder), template).save(folder)
    report = verify(str(folder))
    for name in ("as loaded", "transformers"):
        assert row(report, name).verdict == "FAILED"
        assert "prompt 4, token 1 is read as" in row(report, name).token


def test_a_model_without_a_certificate_is_compared_with_itself(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    base = make_folder(tmp_path / "base")
    report = verify(str(base))
    assert report.agrees
    assert report.certificate is None
    assert main(["verify", str(base)]) == 0
    assert "There is no certificate" in capsys.readouterr().out


def test_an_adapter_goes_through_merging_and_peft(tmp_path: Path):
    pytest.importorskip("peft")
    adapter = make_adapter(tmp_path / "adapter", make_folder(tmp_path / "base"))
    report = verify(str(adapter))
    assert report.agrees
    names = [each.engine for each in report.rows]
    assert names == ["base and adapter", "merged", "with cache", "transformers + peft", "int8"]
    peft = row(report, "transformers + peft")
    assert peft.difference is not None
    assert peft.difference < 1e-5


@pytest.mark.parametrize("head", ["sequence_classifier", "token_classifier", "embedding"])
def test_other_heads(head: str, tmp_path: Path):
    labels = {} if head == "embedding" else {"n_labels": 3}
    report = verify(str(make_folder(tmp_path / "model", head, **labels)))  # type: ignore[arg-type]
    assert report.agrees
    assert [each.engine for each in report.rows] == ["as loaded", "transformers", "int8"]
    assert row(report, "transformers").verdict == "ok"


def test_an_engine_that_is_missing_or_breaks_is_told(folder: Path, monkeypatch: pytest.MonkeyPatch):
    def missing(*_: object) -> None:
        raise Unavailable("not installed")

    monkeypatch.setattr("langwright.apps.verify.open_transformers", missing)
    report = verify(str(folder))
    assert report.agrees
    assert (row(report, "transformers").verdict, row(report, "transformers").note) == ("skipped", "not installed")

    def breaks(*_: object) -> None:
        raise RuntimeError("size\nmismatch")

    monkeypatch.setattr("langwright.apps.verify.open_transformers", breaks)
    report = verify(str(folder))
    assert not report.agrees
    assert row(report, "transformers").note == "RuntimeError: size mismatch"


def test_certificates_that_do_not_fit_are_refused(folder: Path, tmp_path: Path):
    path = folder / PARITY
    certificate = read_certificate(path)
    path.write_text(path.read_text().replace("capital", "CAPITAL"))
    with pytest.raises(FormatError, match="was changed after it was written"):
        verify(str(folder))
    export(str(make_folder(tmp_path / "small", n_layers=2)), tmp_path / "two")
    write_certificate(tmp_path / "two" / PARITY, certificate)
    with pytest.raises(UserError, match="number of layers is 4, and this model's is 2"):
        verify(str(tmp_path / "two"))


def test_weights_that_are_not_numbers_are_refused(tmp_path: Path):
    base = make_folder(tmp_path / "base")
    with open_weights(base) as weights:
        tensors = {each: weights.tensor(each).clone() for each in weights.names}
    tensors["model.norm.weight"] *= torch.nan
    write_tensors(base / WEIGHTS, tensors)
    with pytest.raises(UserError, match="not finite"):
        verify(str(base))
    with pytest.raises(UserError):
        export(str(base), tmp_path / "out")
    assert not (tmp_path / "out").exists()
