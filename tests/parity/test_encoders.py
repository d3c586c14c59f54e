"""Encoders against the reference library in float32: every layer's hidden states, every head, every gradient."""

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch.nn import functional as F
from transformers import BertModel, PreTrainedConfig

from langwright.model.checkpoint.catalogue import cached_path
from langwright.model.checkpoint.load import load_model
from langwright.model.checkpoint.save import save_model
from langwright.model.families import FAMILIES
from langwright.model.heads import EmbeddingHead, HeadKind
from langwright.model.rename import bind, join
from tests.parity.encoder_reference import (
    CLASSES,
    Batch,
    Pair,
    farthest,
    gradient_gaps,
    make_batch,
    pair_up,
    random_config,
    reference_model,
)

CLOSE = 1e-5
NAMES = ("bert", "roberta", "modernbert")
STYLES = ("plain", "right", "left", "positions")
HEADS: tuple[HeadKind, ...] = ("masked_lm", "sequence_classifier", "token_classifier")
DRAWS = range(6)


def make_pair(name: str, head: HeadKind, seed: int, config: PreTrainedConfig | None = None) -> Pair:
    return pair_up(reference_model(config or random_config(name, seed), CLASSES[name, head], seed), head)


def backbone_gap(pair: Pair, batch: Batch) -> float:
    """Largest difference of the hidden states of real tokens, final norm included."""
    with torch.no_grad():
        _, theirs, our_states, their_states = batch.run(pair)
        last = pair.ours.backbone(
            batch.ids, attention_mask=batch.attention_mask, positions=batch.positions, type_ids=batch.type_ids
        )
    assert len(our_states) == len(their_states) == pair.ours.config.n_layers + 1
    pairs = [*zip(our_states, their_states, strict=True), (last, theirs.last_hidden_state)]
    return max(farthest(ours[batch.real], theirs[batch.real]) for ours, theirs in pairs)


@pytest.mark.parametrize("seed", DRAWS)
@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("name", NAMES)
def test_hidden_states_of_every_layer(name: str, style: str, seed: int):
    pair = make_pair(name, "embedding", seed)
    assert backbone_gap(pair, make_batch(pair, style, seed)) <= CLOSE


@pytest.mark.parametrize("seed", DRAWS)
@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("name", NAMES)
def test_heads_and_gradients(name: str, head: HeadKind, style: str, seed: int):
    pair = make_pair(name, head, seed)
    batch = make_batch(pair, style, seed)
    ours, theirs, _, _ = batch.run(pair)
    theirs = theirs.logits
    assert ours.shape == theirs.shape
    if head != "sequence_classifier":
        ours, theirs = ours[batch.real], theirs[batch.real]
    else:
        if style == "left":  # where the reference would classify the padding
            theirs = torch.cat([row.run(pair)[1].logits for row in batch.rows()])
        assert ours.shape == (len(batch.ids), pair.theirs.config.num_labels)
    assert farthest(ours, theirs) <= CLOSE
    direction = torch.randn(ours.shape, generator=torch.Generator().manual_seed(seed))
    (ours * direction).sum().backward()
    (theirs * direction).sum().backward()
    gaps = gradient_gaps(pair)
    assert max(gaps.values()) <= CLOSE, gaps


@pytest.mark.parametrize("labels", [1, 3])
@pytest.mark.parametrize("name", NAMES)
def test_losses_of_regression_single_and_multi_label(name: str, labels: int):
    """The logits have the shape that each of the reference's three losses wants."""
    config = random_config(name, 0, num_labels=labels)
    pair = make_pair(name, "sequence_classifier", 0, config)
    batch = make_batch(pair, "right", 0)
    mask = batch.real.long()
    targets = {
        "regression": torch.rand(3) if labels == 1 else torch.rand(3, labels),
        "single_label_classification": torch.arange(3) % labels,
        "multi_label_classification": torch.eye(3)[:, :labels],
    }
    logits = pair.ours(batch.ids, attention_mask=batch.attention_mask)
    losses = {
        "regression": F.mse_loss(logits.squeeze(-1) if labels == 1 else logits, targets["regression"]),
        "single_label_classification": F.cross_entropy(logits, targets["single_label_classification"]),
        "multi_label_classification": F.binary_cross_entropy_with_logits(logits, targets["multi_label_classification"]),
    }
    for kind, ours in losses.items():
        pair.theirs.config.problem_type = kind
        theirs = pair.theirs(
            batch.ids, attention_mask=mask, position_ids=batch.their_positions, labels=targets[kind]
        ).loss
        assert abs(ours.item() - theirs.item()) <= CLOSE * max(1, abs(theirs.item())), kind


@pytest.mark.parametrize("head", ["embedding", *HEADS])
@pytest.mark.parametrize("name", NAMES)
def test_folders_go_both_ways(name: str, head: HeadKind, tmp_path: Path):
    """Their folder opens here and ours opens there, with the same configuration and bit-identical weights."""
    for seed in DRAWS:
        theirs = reference_model(random_config(name, seed), CLASSES[name, head], seed)
        theirs.save_pretrained(tmp_path / f"theirs{seed}")
        ours = load_model(tmp_path / f"theirs{seed}")
        assert ours.head_kind == head
        assert not ours.fresh
        (tmp_path / f"ours{seed}").mkdir()
        save_model(ours, tmp_path / f"ours{seed}")
        again, report = type(theirs).from_pretrained(tmp_path / f"ours{seed}", output_loading_info=True)
        # The pooler of a bare backbone is the only thing that we do not keep.
        assert not [name for name in report["missing_keys"] if not name.startswith("pooler.")]
        assert not report["unexpected_keys"]
        expected = theirs.state_dict()
        for key, tensor in again.state_dict().items():
            assert key.startswith("pooler.") or torch.equal(tensor, expected[key]), key
        # A folder says how it pools, the default too.
        told = {"pooling": ours.head.pooling} if isinstance(ours.head, EmbeddingHead) else {}
        assert load_model(tmp_path / f"ours{seed}").config == ours.config.replace(**told)


@pytest.mark.parametrize(
    ("stored", "head"),
    [
        ("embedding", "masked_lm"),
        ("embedding", "sequence_classifier"),
        ("embedding", "token_classifier"),
        ("masked_lm", "embedding"),
        ("masked_lm", "sequence_classifier"),
        ("masked_lm", "token_classifier"),
        ("sequence_classifier", "embedding"),
    ],
)
@pytest.mark.parametrize("name", NAMES)
def test_another_head_begins_where_the_reference_begins(name: str, stored: HeadKind, head: HeadKind, tmp_path: Path):
    """Opened with a new head, the same tensors are taken from the file and the same ones are new as over there."""
    theirs = reference_model(random_config(name, 0), CLASSES[name, stored], 0)
    theirs.save_pretrained(tmp_path)
    ours = load_model(tmp_path, head=head)
    again, report = CLASSES[name, head].from_pretrained(tmp_path, output_loading_info=True)
    family = FAMILIES[name]
    rules = bind(family.rules + family.heads[head], ours.config, dict(ours.named_parameters()))
    weights, state = dict(ours.named_parameters()), again.state_dict()
    prefix = family.prefix if head == "embedding" else ""
    fresh = {rule.theirs.removeprefix(prefix) for rule in rules if set(rule.ours) <= set(ours.fresh)}
    used = {rule.theirs.removeprefix(prefix) for rule in rules}
    assert fresh == report["missing_keys"] & used
    assert all(any(re.fullmatch(key, name) for key in family.unused) for name in report["missing_keys"] - used)
    for rule in rules:
        key = rule.theirs.removeprefix(prefix)
        if key not in fresh:
            assert torch.equal(join(rule, [weights[mine] for mine in rule.ours], ours.config), state[key])
    assert all(weight.isfinite().all() for weight in weights.values())


@pytest.mark.parametrize("head", ["embedding", "masked_lm"])
def test_norms_under_their_older_names(head: HeadKind, tmp_path: Path):
    """bert-base-uncased was published with LayerNorm.gamma and LayerNorm.beta."""
    theirs = reference_model(random_config("bert", 0), CLASSES["bert", head], 0)
    theirs.save_pretrained(tmp_path)
    expected = dict(load_model(tmp_path).named_parameters())
    file = tmp_path / "model.safetensors"
    older = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
    renamed = {}
    for name, tensor in load_file(file).items():
        end = next((end for end in older if name.endswith(end)), None)
        renamed[name if end is None else name.removesuffix(end) + older[end]] = tensor
    save_file(renamed, file, {"format": "pt"})
    found = dict(load_model(tmp_path).named_parameters())
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


@pytest.mark.slow
def test_minilm_sentence_embeddings():
    """The published model: the vectors that mean pooling and normalising give on the reference's hidden states."""
    folder = cached_path("all-minilm-l6-v2")
    if folder is None:
        pytest.skip("needs all-minilm-l6-v2: langwright models pull all-minilm-l6-v2")
    texts = [
        "The weather is lovely today.",
        "It's so sunny outside!",
        "He drove to the stadium.",
        "中文句子和 emoji 🙂 too.",
        " ".join(["A long sentence goes on and on, clause after clause."] * 20),
    ]
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.enable_padding(pad_id=0)
    encoded = tokenizer.encode_batch(texts)
    ids, mask = (torch.tensor([getattr(row, part) for row in encoded]) for part in ("ids", "attention_mask"))
    ours, theirs = load_model(folder), BertModel.from_pretrained(folder, attn_implementation="eager").eval()
    assert ours.head_kind == "embedding"
    with torch.no_grad():
        vectors = ours(ids, attention_mask=mask.bool())
        hidden = theirs(ids, attention_mask=mask).last_hidden_state
    expected = F.normalize((hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True), dim=-1)
    assert float((vectors - expected).abs().max()) <= CLOSE
    for text, vector in zip(texts, vectors, strict=True):
        alone = torch.tensor([[i for i in tokenizer.encode(text).ids if i != 0]])
        with torch.no_grad():
            assert float((ours(alone)[0] - vector).abs().max()) <= CLOSE
    # As the sentence-transformers documentation prints them for these three sentences.
    published = torch.tensor([[1.0000, 0.6660, 0.1046], [0.6660, 1.0000, 0.1411], [0.1046, 0.1411, 1.0000]])
    assert float((vectors[:3] @ vectors[:3].T - published).abs().max()) <= 1e-4
