"""The loss, against torch's own and by finite differences."""

import pytest
import torch

from langwright.train import objective
from langwright.train.objective import CAUSAL_LM, IGNORED, Piece, count_targets, summed_nll, summed_nll_naive
from tests.unit.train.tiny import make_batch, make_config, make_model


def random_case(dtype: torch.dtype, vocab: int = 37) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = (torch.randn(3, 7, vocab, generator=generator) * 4).to(dtype)
    targets = torch.randint(0, vocab, (3, 7), generator=generator)
    targets[0, :4] = IGNORED
    return logits, targets


@pytest.mark.parametrize("chunk", [1, 100, 1 << 20])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_equals_its_plain_twin(dtype: torch.dtype, chunk: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(objective, "CHUNK", chunk)
    logits, targets = random_case(dtype)
    ours, plain = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    found, expected = summed_nll(ours, targets), summed_nll_naive(plain, targets)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected)
    (found / 17).backward()
    (expected / 17).backward()
    assert ours.grad is not None
    assert ours.grad.dtype == dtype
    torch.testing.assert_close(ours.grad, plain.grad)
    assert not ours.grad[0, :4].any()


def test_extreme_logits_stay_finite():
    logits = torch.tensor([[1e4, -1e4, 0.0]], requires_grad=True)
    loss = summed_nll(logits, torch.tensor([1]))
    loss.backward()
    assert loss.item() == pytest.approx(2e4)
    torch.testing.assert_close(logits.grad, torch.tensor([[1.0, -1.0, 0.0]]))


def test_uniform_logits_cost_log_vocab():
    loss = summed_nll(torch.zeros(2, 5, 8), torch.zeros(2, 5, dtype=torch.long))
    assert loss.item() == pytest.approx(10 * torch.tensor(8.0).log().item())


def test_causal_lm_scores_the_next_token():
    model, batch = make_model(make_config()), make_batch()
    piece = Piece(torch.from_numpy(batch.ids), torch.from_numpy(batch.targets))
    log_p = torch.log_softmax(model(piece.ids), -1)
    expected = -sum(log_p[b, t, piece.targets[b, t]] for b in range(6) for t in range(piece.ids.shape[1]))
    torch.testing.assert_close(CAUSAL_LM.loss(model, piece), expected)


def test_ignored_targets_do_not_count():
    batch = make_batch()
    assert count_targets(batch) == batch.targets.size
    batch.targets[:2] = IGNORED
    assert count_targets(batch) == batch.targets.size * 4 // 6
