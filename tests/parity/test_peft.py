"""Adapters against the PEFT library: the same logits and gradients, and folders that go both ways."""

import copy
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification

from langwright.model.adapters import (
    AdapterConfig,
    adapter_config,
    adapter_parameters,
    add_adapters,
    fuse,
    load_adapter,
    save_adapter,
)
from langwright.model.adapters.names import name_parts
from tests.parity.draws import DRAWS
from tests.parity.reference import Pair, assert_close, make_pair, random_ids

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    peft = pytest.importorskip("peft", reason="the PEFT library is not installed")
pytestmark = pytest.mark.filterwarnings("ignore")  # theirs are not errors

KINDS: dict[str, dict[str, Any]] = {"lora": {}, "rslora": {"use_rslora": True}, "dora": {"use_dora": True}}
OURS = {"lora": {}, "rslora": {"rank_stabilised": True}, "dora": {"dora": True}}
EVERY = pytest.mark.parametrize("kind", KINDS)
# Of each, something that another lacks: biases, tied embeddings, a head size of its own, normed queries, soft-caps.
FAMILIES = pytest.mark.parametrize(
    "draw", ["llama", "llama-mha", "llama-mqa", "mistral", "qwen2", "qwen3", "gemma2", "gemma3"]
)
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
BERT = {
    "model_type": "bert",
    "vocab_size": 61,
    "hidden_size": 24,
    "intermediate_size": 37,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "max_position_embeddings": 20,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "num_labels": 3,
}


@torch.no_grad()
def shake(parameters: list[nn.Parameter], seed: int = 7) -> None:
    """Large enough that a mistake would show."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in parameters:
        parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.15)


def wrap(pair: Pair, kind: str, targets: list[str] | str = TARGETS, task: str = "CAUSAL_LM", **settings: Any) -> Any:
    """Their model under PEFT, with adapters that do something."""
    config = peft.LoraConfig(
        **{"r": 5, "lora_alpha": 7, "target_modules": targets, "task_type": task} | KINDS[kind] | settings
    )
    wrapped = peft.get_peft_model(pair.theirs, config)
    shake([parameter for parameter in wrapped.parameters() if parameter.requires_grad])
    return wrapped.eval()


def reopen(theirs: Any, folder: Path) -> Any:
    """Their model with the adapter in ``folder``; PEFT only warns of tensors that are missing."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        wrapped = peft.PeftModel.from_pretrained(theirs, str(folder))
    assert not [str(each.message) for each in told if "missing" in str(each.message)]
    return wrapped.eval()


@torch.no_grad()
def logits(model: Any, ids: Tensor) -> Tensor:
    out = model(ids)
    return out if isinstance(out, Tensor) else out.logits


@FAMILIES
@EVERY
def test_their_adapter_opens_here(draw: str, kind: str, tmp_path: Path):
    pair = make_pair(DRAWS[draw])
    ids = random_ids(pair.config, 2, 9)
    before = logits(pair.theirs, ids)
    wrapped = wrap(pair, kind, lora_dropout=0.1)
    wrapped.save_pretrained(tmp_path)
    expected = logits(wrapped, ids)
    ours = load_adapter(tmp_path, pair.ours).eval()
    assert_close(logits(ours, ids), expected)
    assert_close(logits(fuse(ours), ids), expected)
    assert float((before - expected).abs().max()) > 1e-2


@FAMILIES
@EVERY
def test_our_adapter_opens_there(draw: str, kind: str, tmp_path: Path):
    pair = make_pair(DRAWS[draw])
    ids = random_ids(pair.config, 2, 9)
    ours = add_adapters(pair.ours, AdapterConfig(rank=5, alpha=7, dropout=0.1, **OURS[kind]))
    shake([*adapter_parameters(ours).values()])
    save_adapter(ours, tmp_path, base="some/base")
    wrapped = reopen(pair.theirs, tmp_path)
    assert_close(logits(ours.eval(), ids), logits(wrapped, ids))
    assert_close(logits(wrapped.merge_and_unload(), ids), logits(fuse(ours), ids))
    held = wrapped.peft_config["default"]
    assert (held.r, held.lora_alpha, held.lora_dropout) == (5, 7, 0.1)


@EVERY
@pytest.mark.parametrize("targets", [["q_proj", "down_proj"], "all-linear", r".*\.(v|up)_proj"])
def test_some_projections_only(kind: str, targets: list[str] | str, tmp_path: Path):
    pair = make_pair(DRAWS["llama"])
    ids = random_ids(pair.config, 2, 9)
    wrapped = wrap(pair, kind, targets)
    wrapped.save_pretrained(tmp_path)
    assert_close(logits(load_adapter(tmp_path, pair.ours), ids), logits(wrapped, ids))


@EVERY
def test_gradients(kind: str, tmp_path: Path):
    """Of A, B and DoRA's magnitude, in training, from the same direction of the logits."""
    pair = make_pair(DRAWS["qwen2"])
    ids = random_ids(pair.config, 2, 9)
    wrapped = wrap(pair, kind)
    wrapped.save_pretrained(tmp_path)
    ours = load_adapter(tmp_path, pair.ours).train()
    direction = torch.randn(2, 9, pair.config.vocab_size, generator=torch.Generator().manual_seed(1))
    (ours(ids) * direction).sum().backward()
    (wrapped.train()(ids).logits * direction).sum().backward()
    names = name_parts(ours)
    kinds = {"lora_a": "lora_A.default.weight", "lora_b": "lora_B.default.weight"}
    kinds["magnitude"] = "lora_magnitude_vector.default.weight"
    for name, parameter in adapter_parameters(ours).items():
        module, _, part = name.rpartition(".")
        theirs = wrapped.get_parameter(f"base_model.model.{names.modules[module]}.{kinds[part]}")
        assert parameter.grad is not None
        assert_close(parameter.grad, theirs.grad, name)


@EVERY
def test_dropout_draws_what_theirs_draws(kind: str, tmp_path: Path):
    """In the same order from the same generator, so that a training forward is the same too."""
    pair = make_pair(DRAWS["llama"])
    ids = random_ids(pair.config, 2, 9)
    wrapped = wrap(pair, kind, ["q_proj"], lora_dropout=0.4)
    wrapped.save_pretrained(tmp_path)
    ours = load_adapter(tmp_path, pair.ours).train()
    torch.manual_seed(11)
    found = logits(ours, ids)
    torch.manual_seed(11)
    expected = logits(wrapped.train(), ids)
    assert_close(found, expected)
    assert float((expected - logits(wrapped.eval(), ids)).abs().max()) > 1e-2


@pytest.mark.parametrize(
    ("values", "build", "task", "targets"),
    [
        (DRAWS["llama"] | {"num_labels": 4}, AutoModelForSequenceClassification, "SEQ_CLS", TARGETS),
        (DRAWS["qwen3"] | {"num_labels": 4}, AutoModelForTokenClassification, "TOKEN_CLS", TARGETS),
        (BERT, AutoModelForSequenceClassification, "SEQ_CLS", ["query", "value", "output.dense"]),
        (BERT, AutoModelForTokenClassification, "TOKEN_CLS", ["query", "key", "intermediate.dense"]),
    ],
    ids=["llama", "qwen3-tokens", "bert", "bert-tokens"],
)
def test_classifiers_with_their_heads(
    values: dict[str, Any], build: Any, task: str, targets: list[str], tmp_path: Path
):
    pair = make_pair(values, build=build.from_config)
    ids = random_ids(pair.config, 2, 9)
    plain = copy.deepcopy(pair.theirs)
    head = next(name for name in ("score", "classifier") if hasattr(plain, name))
    wrapped = wrap(pair, "lora", targets, task)
    wrapped.save_pretrained(tmp_path / "theirs")
    expected = logits(wrapped, ids)
    ours = load_adapter(tmp_path / "theirs", copy.deepcopy(pair.ours)).eval()
    assert_close(logits(ours, ids), expected)
    found = adapter_config(ours)
    assert found is not None
    assert found.train_head
    nn.init.zeros_(getattr(plain, head).weight)  # a head that the base does not have
    save_adapter(ours, tmp_path / "ours", base="some/base")
    assert_close(logits(reopen(plain, tmp_path / "ours"), ids), expected)


def test_their_names_that_mean_more_than_projections_are_refused(tmp_path: Path):
    """``dense`` is the pooler of BERT too, which is no projection of ours."""
    pair = make_pair(BERT, build=AutoModelForSequenceClassification.from_config)
    wrap(pair, "lora", ["dense"], "SEQ_CLS").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"pooler\.dense\.lora_A\.weight' belongs to nothing"):
        load_adapter(tmp_path, pair.ours)


def test_their_embeddings_are_refused(tmp_path: Path):
    pair = make_pair(DRAWS["llama"])
    wrap(pair, "lora", ["q_proj", "embed_tokens"]).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="belongs to nothing that can be adapted"):
        load_adapter(tmp_path, pair.ours)
