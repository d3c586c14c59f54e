"""The whole of `prepare`: counts that agree, text that comes back, one folder or none, and clear refusals."""

import gzip
import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from langwright.core.errors import FormatError, UserError
from langwright.core.files import verify_folder
from langwright.data import encode as encode_module
from langwright.data.corpus import corpus_path
from langwright.data.loader import batch_at, eval_windows, open_data
from langwright.data.prepare import prepare
from langwright.data.shards import shard_name
from langwright.tokenizer.load import load_tokenizer

REAL = Path(__file__).resolve().parents[3] / "../shared/data/lm"


def corpus(path: Path, n_documents: int = 300) -> Path:
    """Many short documents, two of them equal, with special tokens spelled in the text."""
    poems = corpus_path("tang_poems").read_text(encoding="utf-8").split("\n\n")[: n_documents - 2]
    spelled = "a text with <|endoftext|> in it, and 🙂"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in [*poems, spelled, spelled]), encoding="utf-8")
    return path


def read_back(folder: Path) -> dict[str, list[str]]:
    """The documents of both sides, decoded."""
    data = open_data(folder)
    tokenizer = load_tokenizer(data.tokenizer_path)
    found: dict[str, list[str]] = {}
    for side, shards in (("train", data.train), ("val", data.val)):
        offsets = shards.documents.tolist()
        spans = [shards.tokens[a:b].tolist() for a, b in pairwise(offsets)]
        assert all(ids[-1] == shards.eos_id and ids.count(shards.eos_id) == 1 for ids in spans)
        found[side] = [tokenizer.decode(ids[:-1]) for ids in spans]
        assert sum(len(text.encode()) for text in found[side]) == shards.n_bytes
    return found


def refusal(*args, **options) -> str:
    with pytest.raises(UserError) as caught:
        prepare(*args, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def leftovers(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name.startswith("."))


@pytest.mark.parametrize("tokenizer", ["train", "char"])
def test_every_document_comes_back_on_one_side(tmp_path, tokenizer):
    path = corpus(tmp_path / "in.jsonl")
    report = prepare([path], tmp_path / "out", tokenizer=tokenizer, vocab_size=600, val_fraction=0.1, shard_tokens=1000)
    found = read_back(tmp_path / "out")
    texts = [json.loads(line)["text"] for line in path.read_text(encoding="utf-8").splitlines()]
    assert sorted(found["train"] + found["val"]) == sorted(texts)
    assert not set(found["train"]) & set(found["val"])
    assert report.description.split.rule == "documents"
    assert report.sample.equal
    assert report.sample.original == found["train"][0][:200]
    for side in (report.description.train, report.description.val):
        assert side.unknown_tokens == 0
        assert side.bytes_per_token == pytest.approx(side.bytes / side.tokens, abs=1e-4)
    verify_folder(tmp_path / "out")
    assert (tmp_path / "out" / "train" / shard_name(2)).exists()
    assert leftovers(tmp_path) == []


def test_the_same_text_gives_the_same_folder(tmp_path):
    path = corpus(tmp_path / "in.jsonl")
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    first = prepare([path], tmp_path / "a", vocab_size=500).description
    again = prepare([path], tmp_path / "b", vocab_size=500, shard_tokens=777).description
    assert again == first
    path.write_text("".join(lines[:-1]) + '{"text": "another"}\n', encoding="utf-8")
    assert prepare([path], tmp_path / "c", vocab_size=500).description.fingerprint != first.fingerprint


def test_order_of_documents_does_not_move_them_over(tmp_path):
    path = corpus(tmp_path / "in.jsonl")
    prepare([path], tmp_path / "a", tokenizer="char")
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    path.write_text("".join(reversed(lines)), encoding="utf-8")
    prepare([path], tmp_path / "b", tokenizer="char")
    a, b = read_back(tmp_path / "a"), read_back(tmp_path / "b")
    assert a["val"] == list(reversed(b["val"]))


def test_tiny_shakespeare_is_split_as_nanogpt_does(tmp_path):
    path = corpus_path("shakespeare")
    report = prepare([path], tmp_path / "out", tokenizer="char", val_fraction=0.1)
    assert report.description.split.rule == "tail"
    text = path.read_text(encoding="utf-8")
    found = read_back(tmp_path / "out")
    assert found == {"train": [text[:1_003_854]], "val": [text[1_003_854:]]}
    assert report.description.train.tokens == 1_003_854 + 1
    spans = open_data(tmp_path / "out").val.spread(20_000)
    assert all(span.n_tokens == span.n_bytes for span in spans)
    assert 20_000 <= sum(span.n_tokens for span in spans) < 60_000


def test_long_documents_give_the_same_tokens_in_pieces(tmp_path, monkeypatch):
    path = tmp_path / "in.txt"
    path.write_text(corpus_path("shakespeare").read_text(encoding="utf-8")[:150_000], encoding="utf-8")
    report = prepare([path], tmp_path / "a", vocab_size=700)
    (first,) = open_data(tmp_path / "a").train.spread(100)
    assert first.n_tokens < report.description.train.tokens
    monkeypatch.setattr("langwright.data.prepare.cuts_cleanly", lambda *_: False)
    whole = prepare([path], tmp_path / "b", tokenizer=str(tmp_path / "a")).description
    first, second = (open_data(tmp_path / name).train.tokens[:] for name in "ab")
    assert np.array_equal(first, second)
    assert open_data(tmp_path / "b").train.spread(100)[0].n_tokens == whole.train.tokens


def test_batches_do_not_change_the_result(tmp_path, monkeypatch):
    path = corpus(tmp_path / "in.jsonl")
    first = prepare([path], tmp_path / "a", vocab_size=400).description
    monkeypatch.setattr(encode_module, "BATCH_CHARS", 100)
    assert prepare([path], tmp_path / "b", vocab_size=400).description == first


def test_progress_reaches_the_end_of_every_stage(tmp_path):
    path = corpus(tmp_path / "in.jsonl")
    calls = []
    report = prepare([path], tmp_path / "out", vocab_size=400, progress=lambda *call: calls.append(call))
    total = report.description.train.bytes + report.description.val.bytes
    assert list(dict.fromkeys(call[0] for call in calls)) == [
        "reading", "training the tokenizer", "encoding",
    ]  # fmt: skip
    assert calls[-1] == ("encoding", total, total)
    for stage in ("reading", "encoding"):  # the same bytes, whatever is left out
        done = [call[1] for call in calls if call[0] == stage]
        assert done == sorted(done)
        assert done[-1] == total


def test_a_small_sample_is_taken_from_all_over(tmp_path):
    path = corpus(tmp_path / "in.jsonl")
    read = []
    prepare(
        [path],
        tmp_path / "out",
        vocab_size=400,
        sample_bytes=5_000,
        progress=lambda stage, done, _: read.append((stage, done)),
    )
    taken = max(done for stage, done in read if stage == "training the tokenizer")
    assert 3_500 < taken < 6_000


def test_validation_files(tmp_path):
    path = corpus(tmp_path / "in.jsonl")
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    (tmp_path / "val.jsonl").write_text("".join(lines[:7]), encoding="utf-8")
    report = prepare([path], tmp_path / "out", tokenizer="char", val=(tmp_path / "val.jsonl",))
    found = read_back(tmp_path / "out")
    assert len(found["val"]) == 7
    assert len(found["train"]) == len(lines) - 7  # what validates does not train
    assert report.description.split.rule == "files"
    assert [source.role for source in report.description.sources] == ["input", "val"]
    assert report.description.skipped == {"also in validation": 7}
    assert "every training document also stands" in refusal(
        [tmp_path / "val.jsonl"], tmp_path / "no", val=(tmp_path / "val.jsonl",)
    )


def test_a_tokenizer_from_a_folder(tmp_path):
    path = corpus(tmp_path / "in.jsonl")
    first = prepare([path], tmp_path / "a", vocab_size=500).description
    second = prepare([path], tmp_path / "b", tokenizer=str(tmp_path / "a")).description
    assert (second.train, second.val) == (first.train, first.val)
    assert second.fingerprint == first.fingerprint


def test_skipped_files_and_sources_are_on_record(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    corpus(folder / "a.jsonl")
    (folder / "photo.jpg").write_bytes(b"\xff")
    described = prepare([folder], folder / "out", tokenizer="char").description
    assert described.skipped == {"unknown kind": 1}
    assert described.sources[0].files == 1
    again = prepare([folder], folder / "out", tokenizer="char").description  # does not read what it wrote
    assert again.fingerprint == described.fingerprint
    assert again.skipped == {"unknown kind": 1, "the output folder": 1}


# Bad input ------------------------------------------------------------------------------------------------------------


def test_an_output_that_is_something_else_is_kept(tmp_path):
    path = corpus(tmp_path / "in.jsonl")
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.txt").write_text("years of work")
    assert "holds no prepared data" in refusal([path], out, tokenizer="char")
    assert "is a file" in refusal([path], path)
    (out / "thesis.txt").rename(tmp_path / "thesis.txt")
    prepare([path], out, tokenizer="char")
    (tmp_path / "thesis.txt").rename(out / "thesis.txt")
    assert "thesis.txt, which prepare did not write" in refusal([path], out, tokenizer="char")
    assert "lies in the output folder" in refusal([out / "thesis.txt"], out, tokenizer="char")
    assert (out / "thesis.txt").read_text() == "years of work"


def test_a_failure_leaves_the_old_folder_as_it_was(tmp_path):
    path = corpus(tmp_path / "in.jsonl")
    prepare([path], tmp_path / "out", tokenizer="char")
    before = (tmp_path / "out" / "manifest.json").read_bytes()
    with path.open("ab") as file:
        file.write(b'{"text": "caf\xe9"}\n')
    assert "not UTF-8" in refusal([path], tmp_path / "out", tokenizer="char")
    assert (tmp_path / "out" / "manifest.json").read_bytes() == before
    assert leftovers(tmp_path) == []


def test_a_full_disk_is_named_and_leaves_nothing(tmp_path, monkeypatch):
    path = corpus(tmp_path / "in.jsonl")

    def full(*_, **__):
        raise OSError(28, "No space left on device", str(next(tmp_path.glob(".out.*"))))

    monkeypatch.setattr("langwright.data.shards.ShardWriter.add", full)
    assert "the disk is full" in refusal([path], tmp_path / "out", tokenizer="char")
    assert not (tmp_path / "out").exists()
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"val_fraction": 0.0}, "val_fraction"),
        ({"val_fraction": 1.5}, "val_fraction"),
        ({"val_fraction": float("nan")}, "val_fraction"),
        ({"vocab_size": 3}, "vocab_size"),
        ({"pre_tokenizer": "bert"}, "pre_tokenizer"),
        ({"split": "random"}, "split"),
        ({"seed": -1}, "seed"),
        ({"vocabulary": 300}, "vocabulary: unknown key"),
        ({"tokenizer": "no/such/folder"}, "no/such/folder"),
        ({"text_field": "body"}, "no field 'body'"),
    ],
)
def test_wrong_options(tmp_path, options, told):
    assert told in refusal([corpus(tmp_path / "in.jsonl")], tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_too_little_text(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("a")
    assert "training side of the split is empty" in refusal([path], tmp_path / "out", tokenizer="char")
    path.write_text("")
    assert "holds no text" in refusal([path], tmp_path / "out")
    assert "holds no text" in refusal([], tmp_path / "out")
    path.write_text("a short line of text, which is enough\n")
    assert prepare([path], tmp_path / "out", tokenizer="char").description.split.rule == "tail"


def test_opening_what_is_not_or_no_longer_prepared(tmp_path):
    with pytest.raises(UserError, match="not a folder of prepared data"):
        open_data(tmp_path)
    prepare([corpus(tmp_path / "in.jsonl")], tmp_path / "out", tokenizer="char")
    prepare([corpus(tmp_path / "in.jsonl", 200)], tmp_path / "other", tokenizer="char")
    data = tmp_path / "out" / "data.json"
    good = data.read_text(encoding="utf-8")
    for bad in (
        "",
        "[]",
        "{}",
        good[:-30],
        good.replace('"version": 1', '"version": 2'),
        good.replace('"tokens"', '"t"'),
    ):
        data.write_text(bad, encoding="utf-8")
        with pytest.raises(UserError, match=r"data\.json"):
            open_data(tmp_path / "out")
    data.write_text((tmp_path / "other" / "data.json").read_text(encoding="utf-8"), encoding="utf-8")
    with pytest.raises(FormatError, match="does not belong"):
        open_data(tmp_path / "out")
    data.write_text(good, encoding="utf-8")
    open_data(tmp_path / "out")
    with (tmp_path / "out" / "tokenizer.json").open("a") as file:
        file.write(" ")
    with pytest.raises(FormatError, match="not the tokenizer"):
        open_data(tmp_path / "out")


def test_an_old_format_is_not_taken_for_damage(tmp_path):
    out = tmp_path / "out"
    prepare([corpus(tmp_path / "in.jsonl")], out, tokenizer="char")
    (out / "train" / "documents.idx").unlink()
    with pytest.raises(FormatError, match=r"documents\.idx"):
        open_data(out)


# Real text ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["en/state_of_union.dev.jsonl.gz", "zh/vue_docs_zh.jsonl.gz"])
def test_real_text(tmp_path, name):
    if not (REAL / name).exists():
        pytest.skip("needs ../shared/data")
    report = prepare([REAL / name], tmp_path / "out", vocab_size=1000)
    assert report.sample.equal
    data = open_data(tmp_path / "out")
    with gzip.open(REAL / name, "rt", encoding="utf-8") as file:
        n_bytes = sum(len(json.loads(line)["text"].encode()) for line in file)
    assert data.train.n_bytes + data.val.n_bytes == n_bytes
    batch = batch_at(data.train, seed=0, step=3, batch_size=4, context=64)
    assert batch.ids.shape == (4, 64)
    covered = sum(batch.targets.size for batch in eval_windows(data.val, context=64, batch_size=8))
    assert covered == data.val.n_tokens


@pytest.mark.parametrize("tokenizer", ["train", "char"])
def test_special_tokens_of_a_new_vocabulary(tmp_path, tokenizer):
    """They are control tokens that no text becomes; [SEP] ends a document where there is no end-of-text token."""
    path, made = corpus(tmp_path / "in.jsonl"), {}
    for name in ("text", "fim", "bert"):
        out = tmp_path / name
        prepare([path], out, tokenizer=tokenizer, vocab_size=400, val_fraction=0.1, special_tokens=name)
        made[name] = load_tokenizer(out)
        assert open_data(out).train.eos_id == made[name].id("[SEP]" if name == "bert" else "<|endoftext|>")
    assert made["text"].id("<|fim_middle|>") is None
    assert {
        made["fim"].id(token) for token in ("<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|pad|>")
    } <= set(made["fim"].controls)
    found = made["bert"]
    roles = {role: found.id(f"[{role.upper()}]") for role in ("pad", "cls", "sep", "mask")}
    assert (found.pad_id, found.mask_id) == (roles["pad"], roles["mask"])
    assert not set(roles.values()) & set(found.encode("[CLS] [MASK] [SEP] [PAD]"))
    framed = found.encode("ab", add_special_tokens=True)
    assert (framed[0], framed[-1]) == (roles["cls"], roles["sep"])
    assert framed[1:-1] == found.encode("ab")


def test_special_tokens_are_not_added_to_a_loaded_tokenizer(tmp_path):
    path = corpus(tmp_path / "in.jsonl")
    prepare([path], tmp_path / "first", vocab_size=400, val_fraction=0.1)
    told = refusal([path], tmp_path / "out", tokenizer=str(tmp_path / "first"), special_tokens="fim", val_fraction=0.1)
    assert told.startswith("--special-tokens fim is for a new vocabulary, not ")
    assert not (tmp_path / "out").exists()
