"""`vanilla` against the model of PyTorch's language-modelling tutorial: `torch.nn.TransformerEncoder` and sinusoids."""

import math

import pytest
import torch
from torch import Tensor, nn

from langwright.model.checkpoint.load import load_model
from langwright.model.checkpoint.save import save_model
from langwright.model.families import FAMILIES
from langwright.model.model import Model, build_model, count_parameters
from langwright.model.rename import bind
from tests.parity.draws import vanilla_config
from tests.parity.reference import assert_close, assert_gradients_close, carry, randomise

_SIZES = vanilla_config()
VOCAB, WIDTH, HEADS, HIDDEN = _SIZES.vocab_size, _SIZES.d_model, _SIZES.n_heads, _SIZES.d_mlp
LAYERS, LONGEST = _SIZES.n_layers, _SIZES.max_positions


class Tutorial(nn.Module):
    """The tutorial's equations, batch first: scaled embedding, added sinusoids, post-norm encoder, linear decoder."""

    def __init__(self, final_norm: bool):
        super().__init__()
        layer = nn.TransformerEncoderLayer(WIDTH, HEADS, HIDDEN, dropout=0.2, batch_first=True)
        norm = nn.LayerNorm(WIDTH) if final_norm else None
        self.transformer_encoder = nn.TransformerEncoder(layer, LAYERS, norm, enable_nested_tensor=False)
        self.embedding = nn.Embedding(VOCAB, WIDTH)
        self.linear = nn.Linear(WIDTH, VOCAB)
        table = torch.zeros(LONGEST, WIDTH)
        position = torch.arange(LONGEST).unsqueeze(1)
        rate = torch.exp(torch.arange(0, WIDTH, 2) * (-math.log(10000.0) / WIDTH))
        table[:, 0::2] = torch.sin(position * rate)
        table[:, 1::2] = torch.cos(position * rate)
        self.table = table

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embedding(ids) * math.sqrt(WIDTH) + self.table[: ids.shape[1]]
        mask = nn.Transformer.generate_square_subsequent_mask(ids.shape[1])
        return self.linear(self.transformer_encoder(x, mask, is_causal=True))


def _pair(final_norm: bool):
    theirs = Tutorial(final_norm).eval()
    randomise(theirs, seed=3)
    ours = Model(vanilla_config(final_norm=final_norm)).eval()
    family = FAMILIES["vanilla"]
    parameters = dict(ours.named_parameters())
    rules = bind(family.rules + family.heads["causal_lm"], ours.config, parameters)
    for name, part in carry(theirs.state_dict(), rules, ours).items():
        parameters[name].data.copy_(part)
    return theirs, ours, rules


@pytest.mark.parametrize("final_norm", [False, True])
@pytest.mark.parametrize("length", [1, 17, LONGEST])
def test_logits(final_norm, length):
    theirs, ours, _ = _pair(final_norm)
    ids = torch.randint(0, VOCAB, (3, length), generator=torch.Generator().manual_seed(0))
    assert_close(ours(ids), theirs(ids))


@pytest.mark.parametrize("final_norm", [False, True])
def test_gradients(final_norm):
    theirs, ours, rules = _pair(final_norm)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, VOCAB, (2, 19), generator=generator)
    weights = torch.randn(2, 19, VOCAB, generator=generator)
    (theirs(ids) * weights).sum().backward()
    (ours(ids) * weights).sum().backward()
    expected = carry({name: p.grad for name, p in theirs.named_parameters() if p.grad is not None}, rules, ours)
    assert_gradients_close(ours, expected)


@pytest.mark.parametrize("final_norm", [False, True])
def test_parameter_count(final_norm):
    ours = build_model(vanilla_config(final_norm=final_norm))
    assert count_parameters(ours) == count_parameters(Tutorial(final_norm))


def test_initial_weights_are_drawn_as_torch_draws_them():
    """The same bounds tensor by tensor: the largest weight lies just under the bound in both."""
    torch.manual_seed(0)
    theirs, ours = Tutorial(False), build_model(vanilla_config(), seed=0)
    with torch.no_grad():  # the tutorial's own init_weights
        theirs.embedding.weight.uniform_(-0.1, 0.1)
        theirs.linear.weight.uniform_(-0.1, 0.1)
        theirs.linear.bias.zero_()
    rules = bind(FAMILIES["vanilla"].rules + FAMILIES["vanilla"].heads["causal_lm"], ours.config, _names(ours))
    for name, reference in carry(theirs.state_dict(), rules, ours).items():
        mine = ours.get_parameter(name)
        assert mine.abs().max().item() == pytest.approx(reference.abs().max().item(), rel=0.15), name


def _names(model: nn.Module) -> list[str]:
    return [name for name, _ in model.named_parameters()]


def test_the_folder_has_the_tutorials_names(tmp_path):
    _, ours, rules = _pair(True)
    save_model(ours, tmp_path)
    assert {item.theirs for item in rules} == set(_names(Tutorial(True)))
    opened = load_model(tmp_path)
    assert opened.config == ours.config
    ids = torch.randint(0, VOCAB, (2, 9), generator=torch.Generator().manual_seed(0))
    assert torch.equal(opened(ids), ours(ids))
