"""`langwright export`: what comes out computes what went in, or nothing comes out."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch

import langwright as lw
from langwright.apps.export import Exported, export
from langwright.apps.verify import verify
from langwright.cli.main import main
from langwright.core.errors import UserError
from langwright.core.gguf_file import GgufFile
from langwright.core.json_text import read_json_object
from langwright.infer.certificate import PARITY, certificate_path, read_certificate
from langwright.model.adapters.peft_config import read_peft_config
from langwright.model.checkpoint.save import save_model
from langwright.tokenizer.tokenizer import Tokenizer
from tests.unit.apps.exported import make, make_adapter, make_folder, tokenizer
from tests.unit.infer.small import byte_tokenizer

IDS = [5, 90, 260, 17, 133]


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return make_folder(tmp_path / "base")


@pytest.mark.parametrize("dora", [False, True])
def test_an_adapter_is_merged_and_proved(dora: bool, base: Path, tmp_path: Path):
    adapter = make_adapter(tmp_path / "adapter", base, dora=dora)
    done = export(str(adapter), tmp_path / "out")
    assert done.merge_difference is not None
    assert done.merge_difference < 1e-4
    assert done.difference == 0
    merged, plain = lw.load(tmp_path / "out"), lw.load(base)
    torch.testing.assert_close(merged.logits(IDS), lw.load(adapter).logits(IDS), atol=1e-5, rtol=1e-5)
    assert (merged.logits(IDS) - plain.logits(IDS)).abs().max() > 0.01
    assert merged.model.config.tie_embeddings
    assert merged.tokenizer.chat_template == tokenizer().chat_template
    assert verify(str(tmp_path / "out")).agrees


def test_a_merge_that_is_off_writes_nothing(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    adapter = make_adapter(tmp_path / "adapter", base)
    with pytest.raises(UserError, match="merged into its base, the adapter gives logits that differ by"):
        export(str(adapter), tmp_path / "out", max_difference=0)

    def forgets(model: Any) -> Any:
        for each in model.modules():
            if hasattr(each, "lora_b"):
                each.lora_b.data.zero_()
        return model

    monkeypatch.setattr("langwright.apps.export.fold", forgets)
    with pytest.raises(UserError, match="nothing was written"):
        export(str(adapter), tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "base"]


@torch.no_grad()
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_transformers_loads_the_folder_with_equal_logits(dtype: Any, base: Path, tmp_path: Path):
    transformers = pytest.importorskip("transformers")
    export(str(base), tmp_path / "out", dtype=dtype)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32).eval()
    ours = lw.load(tmp_path / "out").logits(IDS)
    assert (theirs(torch.tensor([IDS])).logits[0] - ours).abs().max() < 1e-5
    words = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    chat = [{"role": "user", "content": "Hi 123"}]
    rendered = words.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
    assert rendered == lw.load(tmp_path / "out").encode_prompt(chat)
    assert theirs.generation_config.eos_token_id == sorted({0, tokenizer().id("<|im_end|>")})


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "q8_0"])
def test_gguf(dtype: Any, base: Path, tmp_path: Path):
    done = export(str(base), tmp_path / "new" / "m.gguf", format="gguf", dtype=dtype)
    assert done.difference <= done.allowed
    assert (done.difference == 0) == (dtype == "float32")
    again = lw.load(tmp_path / "new" / "m.gguf")
    assert (again.logits(IDS) - lw.load(base).logits(IDS)).abs().max() <= done.allowed
    assert again.encode_prompt("I'M 12 <|im_end|>") == lw.load(base).encode_prompt("I'M 12 <|im_end|>")
    assert verify(str(tmp_path / "new" / "m.gguf")).agrees
    with GgufFile.open(tmp_path / "new" / "m.gguf") as file:
        assert file.metadata["general.name"] == "base"
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["m.gguf", "m.parity.json"]


def test_a_gguf_of_a_gguf_is_the_same_file(base: Path, tmp_path: Path):
    export(str(base), tmp_path / "a.gguf", format="gguf", dtype="q8_0")
    export(str(tmp_path / "a.gguf"), tmp_path / "b.gguf", format="gguf", dtype="q8_0")
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()


def test_an_adapter_alone_is_found_by_peft_and_by_us(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    adapter = make_adapter(tmp_path / "adapter", base, named="base")
    export(str(adapter), tmp_path / "out" / "mine", format="adapter")
    assert read_peft_config(tmp_path / "out" / "mine").base == str(base.resolve())
    monkeypatch.chdir("/")
    assert lw.load(tmp_path / "out" / "mine").logits(IDS).isfinite().all()
    report = verify(str(tmp_path / "out" / "mine"))
    assert report.agrees
    assert [row.engine for row in report.rows][:3] == ["files", "base and adapter", "merged"]
    with pytest.raises(UserError, match="is a whole model and no adapter"):
        export(str(base), tmp_path / "no", format="adapter")


def test_a_catalogue_base_is_named_as_on_the_hub(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    adapter = make_adapter(tmp_path / "adapter", base, named="smollm2-135m-instruct")
    monkeypatch.setattr("langwright.model.adapters.opening.resolve", lambda _: base)
    done = export(str(adapter), tmp_path / "out", format="adapter")
    assert read_peft_config(tmp_path / "out").base == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert not (tmp_path / "out" / PARITY).exists()
    assert "no certificate" in done.notes[0]
    card = (tmp_path / "out" / "README.md").read_text()
    assert "base_model: HuggingFaceTB/SmolLM2-135M-Instruct" in card
    assert "license: apache-2.0" in card


def test_ollama_gets_a_modelfile(base: Path, tmp_path: Path):
    export(str(base), tmp_path / "out", format="ollama", dtype="q8_0")
    text = (tmp_path / "out" / "Modelfile").read_text()
    assert text.startswith('FROM ./model.gguf\nTEMPLATE """{{ range .Messages }}{{ if eq .Role "system" }}<|im_start|>')
    assert 'PARAMETER stop "<|im_end|>"' in text
    assert verify(str(tmp_path / "out" / "model.gguf")).agrees


def test_a_classifier_keeps_labels_and_temperature(tmp_path: Path):
    folder = make_folder(tmp_path / "labels", "sequence_classifier", n_labels=2, labels=("cat", "dog"))
    (folder / "langwright.json").write_text(json.dumps({"metrics": {"temperature": 1.7}, "data_folder": "/secret"}))
    export(str(folder), tmp_path / "out")
    found = lw.load(tmp_path / "out")
    assert found.temperature == 1.7
    assert found.classify(["a"]) == lw.load(folder).classify(["a"])
    assert "secret" not in (tmp_path / "out" / "langwright.json").read_text()
    assert verify(str(tmp_path / "out")).agrees


def test_the_card_tells_data_method_and_metrics(base: Path, tmp_path: Path):
    adapter = make_adapter(tmp_path / "run" / "step-00000004", base)
    run = {
        "step": 4,
        "method": "sft",
        "base": str(base),
        "metrics": {"step": 4, "bpb": 1.25, "ppl": 7.5},
        "data_folder": "/home/me",
        "data": {
            "files": ["/home/me/chats.jsonl"],
            "fingerprint": "f" * 64,
            "train": {"examples": 90, "tokens": 5000, "trained": 800, "bytes": 4000},
            "val": {"examples": 10, "tokens": 500, "trained": 80, "bytes": 400},
        },
        "config": {
            "seed": 5,
            "adapter": {"rank": 4, "alpha": 8.0, "dora": True},
            "train": {"batch_size": 2, "context": 80, "optimiser": "adamw", "lr": 1e-3, "schedule": "cosine"},
        },
    }
    (adapter / "langwright.json").write_text(json.dumps(run))
    rows = [{"event": "eval", "step": step, "val_bpb": bpb, "val_ppl": 9.0} for step, bpb in ((0, 2.5), (4, 1.25))]
    (tmp_path / "run" / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "run" / "last").symlink_to("step-00000004")
    export(str(tmp_path / "run"), tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    for said in (
        "# run",
        "tuned from base",
        "chats.jsonl: 90 examples (800 of 5,000 tokens learnt) to learn from, 10 examples",
        "sft of DoRA of rank 4, alpha 8.0: 4 steps of 2 rows of up to 80 tokens",
        "| bits per byte | 2.5000 | 1.2500 |",
        "not tested for safety",
        "Merged in float32",
    ):
        assert said in card
    about = read_json_object(tmp_path / "out" / "langwright.json")
    assert about["export"]["merge_difference"] < 1e-4
    assert "/home/me" not in card + json.dumps(about)


def test_what_is_there_stays_unless_forced(base: Path, tmp_path: Path):
    for target, format in ((tmp_path / "out", "hf"), (tmp_path / "m.gguf", "gguf")):
        kind: Any = format
        export(str(base), target, format=kind)
        before = certificate_path(target).read_bytes()
        with pytest.raises(UserError, match="already exists; add --force"):
            export(str(base), target, format=kind)
        assert isinstance(export(str(base), target, format=kind, dtype="float16", force=True), Exported)
        assert certificate_path(target).read_bytes() != before
        read_certificate(certificate_path(target))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "diary.txt").write_text("dear")
    with pytest.raises(UserError, match="did not write"):
        export(str(base), tmp_path / "mine", force=True)
    assert (tmp_path / "mine" / "diary.txt").exists()
    with pytest.raises(UserError, match="the model itself lies there"):
        export(str(base), base, force=True)
    with pytest.raises(UserError, match="the model itself lies there"):
        export(str(make_adapter(tmp_path / "adapter", base)), base, force=True)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--to", "out.gguf"], "hf writes a folder"),
        (["--to", "out", "--format", "gguf"], "give a name that ends in .gguf"),
        (["--to", "out", "--dtype", "q8_0"], "q8_0 is a format of GGUF files"),
        (["--to", "out", "--dtype", "int3"], "dtype"),
        (["--to", "out", "--format", "onnx"], "format"),
        (["--to", "out", "--format", "adapter", "--dtype", "float16"], "whole model and no adapter"),
        (["--max-difference", "-1", "--to", "out"], "max_difference"),
        ([], "to"),
    ],
)
def test_wrong_words_get_one_line(
    words: list[str], told: str, base: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(base.parent)
    assert main(["export", "base", *words]) == 2
    [line] = capsys.readouterr().err.strip().splitlines()
    assert re.search(told, line, re.IGNORECASE)
    assert sorted(path.name for path in base.parent.iterdir()) == ["base"]


def test_what_has_no_form_there_is_refused(base: Path, tmp_path: Path):
    encoder = make_folder(tmp_path / "labels", "sequence_classifier", n_labels=2)
    with pytest.raises(UserError, match=r"a model with a sequence_classifier head has no form in a GGUF file"):
        export(str(encoder), tmp_path / "m.gguf", format="gguf")
    odd = tmp_path / "odd"
    odd.mkdir()
    save_model(make(), odd)
    byte_tokenizer().save(odd)
    with pytest.raises(UserError, match="has no form in a GGUF file|has no merges"):
        export(str(odd), tmp_path / "m.gguf", format="gguf")
    adapter = make_adapter(tmp_path / "adapter", base, named="../nowhere")
    with pytest.raises(UserError, match=r"\.\./nowhere: no such file or folder"):
        export(str(adapter), tmp_path / "out")
    assert not (tmp_path / "m.gguf").exists()
    assert not (tmp_path / "out").exists()


def test_tokens_that_the_base_has_no_rows_for_are_refused(base: Path, tmp_path: Path):
    """Adapters train no embedding, so a larger vocabulary cannot be merged; it is told, and nothing is guessed."""
    adapter = make_adapter(tmp_path / "adapter", base)
    backend = tokenizers.Tokenizer.from_str(tokenizer().backend.to_str())
    backend.add_special_tokens(["<|new|>"])
    Tokenizer(backend, roles=tokenizer().roles).save(adapter)
    with pytest.raises(UserError, match=r"the tokenizer has ids up to \d+ and the model only \d+ embeddings"):
        export(str(adapter), tmp_path / "out")


def test_json_ends_with_one_object(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    adapter = make_adapter(tmp_path / "adapter", base)
    assert main(["export", str(adapter), "--to", str(tmp_path / "out"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (found["format"], found["dtype"], found["path"]) == ("hf", "float32", str(tmp_path / "out"))
    assert 0 <= found["merge_difference"] < 1e-4
    assert main(["export", str(adapter), "--to", str(tmp_path / "more")]) == 0
    assert "merged in float32: max logit difference" in capsys.readouterr().out
