"""The fused head and loss, against its plain twin and by finite differences."""

import pytest
import torch
from torch import Tensor

from langwright.model.model import build_model
from langwright.train import linear_nll as module
from langwright.train.linear_nll import IGNORED, head_nll, linear_nll, linear_nll_naive
from tests.unit.train.tiny import make_config, make_model

V, D = 37, 12


def random_case(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Hidden states (3, 7, D), weight, bias, targets (3, 7) of which some are ignored."""
    generator = torch.Generator().manual_seed(0)
    hidden, weight, bias = (torch.randn(*size, generator=generator).to(dtype) for size in ((3, 7, D), (V, D), (V,)))
    targets = torch.randint(0, V, (3, 7), generator=generator)
    targets[0, :4] = IGNORED
    return hidden, weight, bias, targets


@pytest.mark.parametrize("rows", [1, 5, 512])
@pytest.mark.parametrize("cap", [None, 3.0])
@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_equals_its_plain_twin(
    dtype: torch.dtype, biased: bool, cap: float | None, rows: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(module, "FEWEST_ROWS", rows)
    monkeypatch.setattr(module, "CHUNK", 1)
    *inputs, targets = random_case(dtype)
    found, grads = [], []
    for function in (linear_nll, linear_nll_naive):
        hidden, weight, bias = (tensor.clone().requires_grad_() for tensor in inputs)
        loss = function(hidden, weight, bias if biased else None, targets, cap)
        assert loss.dtype == torch.float32
        (loss / 17).backward()
        found.append(loss.detach())
        grads.append([tensor.grad for tensor in (hidden, weight, *([bias] if biased else []))])
    loose = dtype == torch.bfloat16
    torch.testing.assert_close(*found, rtol=2e-3 if loose else 1e-6, atol=0)
    for ours, theirs in zip(*grads, strict=True):
        assert ours is not None
        assert theirs is not None
        assert ours.dtype == dtype
        gap = (ours.float() - theirs.float()).norm() / theirs.float().norm()
        assert gap < (0.02 if loose else 1e-6)
    assert grads[0][0] is not None
    assert not grads[0][0][0, :4].any()


def test_gradients_by_finite_differences():
    hidden, weight, bias, targets = random_case(torch.float64)
    hidden, weight, bias = (tensor[:1] if tensor.ndim == 3 else tensor for tensor in (hidden, weight, bias))
    step = 1e-3
    for which in range(3):
        inputs = [tensor.float().requires_grad_() for tensor in (hidden, weight, bias)]
        linear_nll(*inputs, targets[:1], 3.0).backward()
        direction = torch.randn(inputs[which].shape, generator=torch.Generator().manual_seed(which))
        ends = []
        for sign in (1, -1):
            moved = [tensor.double() for tensor in (hidden, weight, bias)]
            moved[which] = moved[which] + sign * step * direction
            logits = 3.0 * torch.tanh((moved[0] @ moved[1].T + moved[2]) / 3.0)
            log_p = torch.log_softmax(logits, -1)[0]
            ends.append(-sum(log_p[t, targets[0, t]] for t in range(7) if targets[0, t] != IGNORED))
        grad = inputs[which].grad
        assert grad is not None
        assert (grad * direction).sum().item() == pytest.approx(float(ends[0] - ends[1]) / (2 * step), rel=1e-3)


def test_only_what_learns_gets_a_gradient():
    hidden, weight, _, targets = random_case(torch.float32)
    hidden.requires_grad_()
    linear_nll(hidden, weight, None, targets).backward()
    assert hidden.grad is not None
    assert weight.grad is None


def test_extreme_logits_stay_finite():
    hidden = torch.tensor([[1e4, -1e4, 0.0]], requires_grad=True)
    loss = linear_nll(hidden, torch.eye(3), None, torch.tensor([1]))
    loss.backward()
    assert loss.item() == pytest.approx(2e4)
    torch.testing.assert_close(hidden.grad, torch.tensor([[1.0, -1.0, 0.0]]))


def test_uniform_logits_cost_log_vocab():
    loss = linear_nll(torch.zeros(2, 5, 4), torch.zeros(8, 4), None, torch.zeros(2, 5, dtype=torch.long))
    assert loss.item() == pytest.approx(10 * torch.tensor(8.0).log().item())


@pytest.mark.parametrize("family", [{}, {"logit_softcap": 2.0, "family": "langwright"}, {"head_bias": True}])
def test_a_causal_head_gives_what_its_logits_say(family: dict):
    model = make_model(make_config(model=family))
    ids = torch.arange(20).view(2, 10)
    targets = ids.roll(-1, 1)
    expected = torch.nn.functional.cross_entropy(model(ids).flatten(0, 1), targets.flatten(), reduction="sum")
    torch.testing.assert_close(head_nll(model.head, model.backbone(ids), targets), expected)


def test_a_masked_head_goes_through_its_transform():
    config = make_model(make_config()).config.replace(causal=False, family="langwright")
    model = build_model(config, "masked_lm")
    ids = torch.arange(20).view(2, 10)
    expected = torch.nn.functional.cross_entropy(model(ids).flatten(0, 1), ids.flatten(), reduction="sum")
    torch.testing.assert_close(head_nll(model.head, model.backbone(ids), ids), expected)


def test_a_head_without_token_logits_is_refused():
    model = build_model(make_model(make_config()).config, "embedding")
    with pytest.raises(ValueError, match="no token logits"):
        head_nll(model.head, torch.zeros(1, 1, 8), torch.zeros(1, 1, dtype=torch.long))
