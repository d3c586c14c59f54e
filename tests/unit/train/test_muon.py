"""Muon: orthogonal updates, AdamW for the rest, the same state after saving."""

import subprocess
import sys

import pytest
import torch
from torch import nn

from langwright.train.muon import Muon, even_rows, orthogonalise


def noise(*size: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("size", [(3, 16, 16), (2, 48, 16), (2, 16, 64), (1, 1, 5)])
def test_singular_values_come_near_one(size: tuple[int, int, int]):
    given = noise(*size) * torch.tensor([1e-4, 1.0, 1e3])[: size[0], None, None]
    found = orthogonalise(given)
    assert found.shape == given.shape
    for before, after in zip(given, found, strict=True):
        u, _, v = torch.linalg.svd(before, full_matrices=False)
        inner = u.T @ after @ v.T  # diagonal, with the new singular values
        values = inner.diagonal()
        assert values.min() > 0.3
        assert values.max() < 1.3
        assert (inner - torch.diag(values)).abs().max() < 1e-3


def test_a_batch_is_its_matrices_one_by_one():
    given = noise(5, 12, 20)
    single = torch.cat([orthogonalise(one[None]) for one in given])
    torch.testing.assert_close(orthogonalise(given), single, atol=1e-5, rtol=1e-4)


def test_a_zero_gradient_gives_a_zero_update():
    assert not orthogonalise(torch.zeros(1, 4, 6)).any()


def test_rows_are_evened_and_length_kept():
    update = noise(2, 6, 8) * torch.tensor([9.0, 1, 1, 1, 1, 1])[None, :, None]
    second = torch.zeros(2, 6, 1)
    evened = even_rows(update, second, 0.9)
    torch.testing.assert_close(evened.norm(dim=(1, 2)), update.norm(dim=(1, 2)))
    lengths = evened.norm(dim=2)
    torch.testing.assert_close(lengths, lengths.mean(1, keepdim=True).expand_as(lengths))
    torch.testing.assert_close(second, 0.1 * update.square().mean(2, keepdim=True))


def test_other_parameters_take_adamws_step():
    ours, theirs = (nn.Parameter(noise(7, 3)) for _ in range(2))
    muon = Muon([{"params": [ours], "kind": "adamw", "weight_decay": 0.1}], lr=0.01, betas=(0.8, 0.9))
    adamw = torch.optim.AdamW([theirs], lr=0.01, betas=(0.8, 0.9), weight_decay=0.1)
    for step in range(3):
        for parameter, optimiser in ((ours, muon), (theirs, adamw)):
            parameter.grad = noise(7, 3, seed=step + 1)
            optimiser.step()
    torch.testing.assert_close(ours, theirs)


def test_a_linear_map_is_learned_and_decay_shrinks():
    target, x = noise(10, 6, seed=2), noise(64, 6, seed=3)
    torch.manual_seed(0)
    layer = nn.Linear(6, 10, bias=False)
    optimiser = Muon([{"params": [layer.weight], "kind": "muon"}], lr=0.05)
    for step in range(150):
        optimiser.param_groups[0]["lr"] = 0.05 * (1 - step / 150)
        loss = (layer(x) - x @ target.T).square().mean()
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
    assert loss.item() < 1e-2
    decayed = nn.Parameter(noise(4, 4))
    before = decayed.detach().clone()
    decayed.grad = torch.zeros(4, 4)
    Muon([{"params": [decayed], "kind": "muon", "weight_decay": 0.5}], lr=0.1).step()
    torch.testing.assert_close(decayed.detach(), before * 0.95)


def test_groups_are_checked():
    with pytest.raises(ValueError, match="muon or adamw"):
        Muon([{"params": [nn.Parameter(noise(2, 2))], "kind": "sgd"}], lr=0.1)
    with pytest.raises(ValueError, match="matrices alone"):
        Muon([{"params": [nn.Parameter(noise(2))], "kind": "muon"}], lr=0.1)


def test_training_with_muon_starts_without_torchs_compiler() -> None:
    code = """
import sys
from torch import nn
from langwright.train.config import load_recipe
from langwright.train.optimiser import build_optimiser
from langwright.model.model import build_model
config = load_recipe("speedrun")
model = build_model(config.model.build(vocab_size=8, context=8), seed=0)
optimiser = build_optimiser(model, config.train)
for parameter in model.parameters():
    parameter.grad = parameter.detach().clone()
optimiser.step()
optimiser.zero_grad()
optimiser.load_state_dict(optimiser.state_dict())
sys.exit("torch._dynamo" in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
