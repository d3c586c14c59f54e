"""Masked models through the one loop: they learn, say what their figures are, and open elsewhere with equal logits."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from langwright.core.errors import UserError
from langwright.core.json_text import read_json_object
from langwright.data.loader import IGNORED, eval_windows, open_data
from langwright.infer.lm import load
from langwright.train.batches import Batches
from langwright.train.checkpoint import list_checkpoints
from langwright.train.config import TrainConfig, load_recipe
from langwright.train.objective import CAUSAL_LM, MASKED_LM, to_device
from langwright.train.pretraining import collect_facts
from langwright.train.run import train
from tests.unit.train.tiny import make_config, make_model, prepare_text, quiet, told

SMALL: dict[str, Any] = {
    "model": {"d_model": 16, "n_heads": 2, "d_mlp": 24},
    "train": {"max_steps": 3, "batch_size": 4, "context": 24, "warmup_steps": 0, "save_every": 0, "dtype": "float32"},
    "device": "cpu",
    "threads": 1,
}
FAMILIES = {
    "bert": ("encoder-tiny", {}),
    "roberta": ("encoder-tiny", {"model": {"family": "roberta", "n_types": 1, "position_offset": 1}}),
    "modernbert": ("encoder-laptop", {}),
}


def recipe(name: str, **more: Any) -> TrainConfig:
    base, changes = FAMILIES[name]
    config = load_recipe(base, SMALL)
    for part, values in {**changes, **more}.items():
        config = config.replace(**{part: getattr(config, part).replace(**values)})
    return config


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("text")
    return prepare_text(folder, words=60, documents=12, tokenizer="train", vocab_size=290, special_tokens="bert")


@pytest.mark.parametrize("name", FAMILIES)
def test_transformers_opens_it_with_equal_logits(name: str, data: Path, tmp_path: Path):
    result = train(recipe(name), data, tmp_path, console=quiet())
    theirs = transformers.AutoModelForMaskedLM.from_pretrained(result.checkpoint).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(result.checkpoint)
    ours = load(result.checkpoint, device="cpu")
    text = f"the cat {tokenizer.mask_token} on a mat"
    ids = tokenizer(text)["input_ids"]
    assert ids == ours.tokenizer.encode(text, add_special_tokens=True, allow_special=True)
    assert (ids[0], ids[-1]) == (tokenizer.cls_token_id, tokenizer.sep_token_id)
    with torch.no_grad():
        torch.testing.assert_close(ours.logits(ids), theirs(torch.tensor([ids])).logits[0], rtol=1e-5, atol=1e-5)
    assert ours.embed(["the cat"]).shape == (1, 16)


def test_figures_go_by_their_own_names(data: Path, tmp_path: Path):
    console = quiet()
    result = train(recipe("bert"), data, tmp_path, console=console)
    rows = [row for row in result.history if row["event"] == "eval"]
    assert all("val_bpb" not in row and 0 <= row["val_accuracy"] <= 1 for row in rows)
    assert rows[-1]["val_pseudo_ppl"] == result.val_ppl
    assert read_json_object(result.checkpoint / "langwright.json")["metrics"]["accuracy"] == result.score.accuracy
    card = (result.checkpoint / "README.md").read_text(encoding="utf-8")
    for text in (card, told(console)):
        assert f"{result.val_bpb:.4f} pseudo bits per byte" in text
    assert "AutoModelForMaskedLM" in card
    assert "fill-mask" in card


def test_validation_is_summed_by_hand(data: Path, tmp_path: Path):
    """Every window masked as its number says, whatever the size of a batch."""
    runs = [
        train(
            recipe("bert", train={"max_steps": 1, "micro_batch_size": size}),
            data,
            tmp_path / str(size),
            console=quiet(),
        )
        for size in (4, 1)
    ]
    for name in ("val_pseudo_bpb", "val_pseudo_ppl", "val_accuracy"):
        assert runs[0].history[0][name] == pytest.approx(runs[1].history[0][name], rel=1e-6)
    ours, opened = load(runs[0].checkpoint, device="cpu"), open_data(data)
    nll, count, right = 0.0, 0, 0
    for batch in Batches.of(recipe("bert"), opened).read(eval_windows(opened.val, context=24)):
        for ids, targets in zip(batch.ids, batch.targets, strict=True):
            log_p = ours.logits(ids.tolist()).log_softmax(-1)
            for place in (targets != IGNORED).nonzero()[0]:
                nll -= log_p[place, targets[place]].item()
                right += int(log_p[place].argmax() == targets[place])
                count += 1
    assert runs[0].score.ppl == pytest.approx(torch.tensor(nll / count).exp().item(), rel=1e-5)
    assert runs[0].score.accuracy == pytest.approx(right / count)
    per_token = opened.val.n_bytes / opened.val.n_tokens
    assert runs[0].score.bpb == pytest.approx(nll / count / 0.6931471805599453 / per_token, rel=1e-5)


def test_only_hidden_tokens_go_through_the_head_and_the_loss_is_the_same(data: Path):
    config = recipe("modernbert", train={"packing": "documents"})
    opened = open_data(data)
    batches = Batches.of(config, opened)
    batch = max(
        (batches(step) for step in range(20)), key=lambda each: -1 if each.documents is None else each.documents.max()
    )
    assert batch.documents is not None
    assert batch.documents.max() > 0
    model = make_model(config.replace(model=config.model.replace(family="langwright")), opened.train.vocab_size)
    piece = to_device(batch, torch.device("cpu"))
    torch.testing.assert_close(MASKED_LM.loss(model, piece), CAUSAL_LM.loss(model, piece))
    assert MASKED_LM.weight(batch) == (batch.targets != IGNORED).sum()


@pytest.mark.parametrize("workers", [0, 2])
def test_resumed_is_uninterrupted(workers: int, data: Path, tmp_path: Path):
    """What is hidden is a function of seed and step."""
    config = recipe("bert", train={"max_steps": 4, "save_every": 2, "log_every": 1, "loader_workers": workers})
    whole = train(config, data, tmp_path / "whole", console=quiet())
    first = list_checkpoints(tmp_path / "whole")[0]
    (tmp_path / "part").mkdir()
    first.rename(tmp_path / "part" / first.name)
    part = train(config, data, tmp_path / "part", resume=True, console=quiet())
    for file in ("model.safetensors", "optimizer.safetensors"):
        assert (part.checkpoint / file).read_bytes() == (whole.checkpoint / file).read_bytes()
    losses = {row["step"]: row["loss"] for row in whole.history if row["event"] == "step"}
    assert [losses[row["step"]] for row in part.history if row["event"] == "step"] == [
        row["loss"] for row in part.history if row["event"] == "step"
    ]


def test_refusals(data: Path, tmp_path: Path):
    opened, plain = open_data(data), open_data(prepare_text(tmp_path))
    cases = [
        (recipe("bert"), plain, r"no \[CLS\], \[SEP\] and \[MASK\], which masking needs; prepare the data again"),
        (recipe("bert", train={"sample_every": 2}), opened, r"train\.sample_every: a masked model"),
        (recipe("bert", train={"fim_rate": 0.5}), opened, r"train\.fim_rate: a model that sees both sides"),
        (make_config(model={"causal": False}), opened, "a llama config.json cannot say causal = False"),
        (recipe("bert", model={"causal": True}), opened, "a bert config.json cannot say causal = True"),
        (make_config(train={"fim_rate": 0.5}), opened, "has no <.fim_prefix.>"),
    ]
    for config, prepared, message in cases:
        with pytest.raises(UserError, match=message):
            collect_facts(config, prepared)
    with pytest.raises(UserError, match="mask_keep: and mask_random are more than 1 together"):
        load_recipe("encoder-tiny", {"train": {"mask_random": 0.7, "mask_keep": 0.4}})
