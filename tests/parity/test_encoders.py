"""Encoders against the reference library in float32: every layer's hidden states, every head, every gradient."""

import pytest
import torch
from torch.nn import functional as F
from transformers import PreTrainedConfig

from langwright.model.heads import HeadKind
from langwright.model.rename import join
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
FAMILIES = ("bert", "roberta", "modernbert")
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
@pytest.mark.parametrize("name", FAMILIES)
def test_hidden_states_of_every_layer(name: str, style: str, seed: int):
    pair = make_pair(name, "embedding", seed)
    assert backbone_gap(pair, make_batch(pair, style, seed)) <= CLOSE


@pytest.mark.parametrize("seed", DRAWS)
@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("name", FAMILIES)
def test_heads_and_gradients(name: str, head: HeadKind, style: str, seed: int):
    pair = make_pair(name, head, seed)
    batch = make_batch(pair, style, seed)
    ours, theirs, _, _ = batch.run(pair)
    theirs = theirs.logits
    assert ours.shape == theirs.shape
    if head != "sequence_classifier":
        ours, theirs = ours[batch.real], theirs[batch.real]
    elif style == "left" and (pair.ours.config.pooling or "cls") == "cls":
        pytest.skip("with padding on the left the reference classifies the padding")
    else:
        assert ours.shape == (len(batch.ids), pair.theirs.config.num_labels)
    assert farthest(ours, theirs) <= CLOSE
    direction = torch.randn(ours.shape, generator=torch.Generator().manual_seed(seed))
    (ours * direction).sum().backward()
    (theirs * direction).sum().backward()
    gaps = gradient_gaps(pair)
    assert max(gaps.values()) <= CLOSE, gaps


@pytest.mark.parametrize("labels", [1, 3])
@pytest.mark.parametrize("name", FAMILIES)
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
@pytest.mark.parametrize("name", FAMILIES)
def test_what_we_write_the_reference_reads_and_back(name: str, head: HeadKind, recwarn: pytest.WarningsRecorder):
    """config.json is read by the reference, the tensors fit it exactly, and reading ours again gives the same config."""
    for seed in DRAWS:
        theirs = reference_model(random_config(name, seed), CLASSES[name, head], seed)
        pair = pair_up(theirs, head)
        family = __import__("langwright.model.families", fromlist=["FAMILIES"]).FAMILIES[name]
        values = family.config_to_hf(pair.ours.config, head)
        assert family.config_from_hf(values) == pair.ours.config
        again = type(theirs)(type(theirs.config).from_dict(dict(values))).eval()
        tensors = {rule.theirs: join(rule, pair.parts(rule), pair.ours.config) for rule in pair.rules}
        missing, unexpected = again.load_state_dict(tensors, strict=False)
        assert not unexpected
        expected = theirs.state_dict()
        assert all(torch.equal(tensor, expected[rule]) for rule, tensor in tensors.items())
        tied = {"decoder.weight", "decoder.bias"}
        assert all(n.rsplit(".", 2)[-2:] and (".".join(n.split(".")[-2:]) in tied or "pooler" in n) for n in missing)
