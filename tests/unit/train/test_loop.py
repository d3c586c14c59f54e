"""Steps: what they change, when they are not taken, and that they learn."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from langwright.core.errors import UserError
from langwright.data.loader import batch_at
from langwright.data.shards import TokenShards
from langwright.model.model import Model
from langwright.train.compute import ComputeModel
from langwright.train.loop import MAX_SKIPPED, accumulate, step_seed, train_steps
from langwright.train.objective import CAUSAL_LM, IGNORED, Objective, Piece, count_targets, lm_loss
from tests.unit.train.tiny import (
    CONTEXT,
    advance,
    assert_same_tensors,
    make_batch,
    make_config,
    make_state,
    steps_of,
    tensors_of,
)


def test_step_is_plain_gradient_descent(shards: TokenShards):
    """One step of SGD against the same written out."""
    config = make_config(train={"optimiser": "sgd", "lr": 0.5, "weight_decay": 0.0, "grad_clip": 0.0, "max_steps": 1})
    state, plain = make_state(config), make_state(config).model
    [result] = advance(state, config, shards, 1)
    batch = batch_at(shards, seed=config.seed, step=0, batch_size=4, context=CONTEXT)
    logits = plain(torch.from_numpy(batch.ids))
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), torch.from_numpy(batch.targets).flatten())
    weights = list(plain.parameters())
    gradients = torch.autograd.grad(loss, weights)
    norm = torch.stack([gradient.norm() for gradient in gradients]).norm()
    assert result.loss == pytest.approx(loss.item(), rel=1e-6)
    assert result.grad_norm == pytest.approx(norm.item(), rel=1e-5)
    assert (result.step, result.lr, result.tokens, result.taken) == (1, 0.5, 4 * CONTEXT, True)
    for found, before, gradient in zip(state.model.parameters(), weights, gradients, strict=True):
        torch.testing.assert_close(found, before - 0.5 * gradient)
        assert found.grad is None


def test_clipping_limits_the_whole_gradient(shards: TokenShards):
    """With SGD at rate 1 the weights move by exactly the clipped norm."""
    train = {"optimiser": "sgd", "lr": 1.0, "weight_decay": 0.0, "grad_clip": 0.01, "schedule": "constant"}
    config = make_config(train=train)
    state = make_state(config)
    before = [p.detach().clone() for p in state.model.parameters()]
    [result] = advance(state, config, shards, 1)
    moved = torch.stack([(a - b).norm() for a, b in zip(before, state.model.parameters(), strict=True)]).norm()
    assert result.grad_norm > 0.1
    assert moved.item() == pytest.approx(0.01, rel=1e-3)


def test_state_counts(shards: TokenShards):
    config = make_config()
    state = make_state(config)
    results = advance(state, config, shards, 6)
    assert [result.step for result in results] == [1, 2, 3, 4, 5, 6]
    assert (state.step, state.tokens, state.skipped) == (6, 6 * 4 * CONTEXT, 0)
    assert state.seconds == pytest.approx(sum(result.seconds for result in results))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_overfits_a_short_text(dtype: str):
    """One batch of nonsense is known by heart after eighty steps: nothing but reading it from memory gives this."""
    config = make_config(
        model={"d_model": 32},
        train={"max_steps": 80, "lr": 1e-2, "warmup_steps": 5, "weight_decay": 0.0, "dtype": dtype},
    )
    state, batch = make_state(config), make_batch(rows=4)
    *_, last = train_steps(state, config, lambda _: batch, max_steps=80, steps_per_epoch=1)
    assert last.loss < 0.05


def test_bfloat16_curve_stays_close_to_float32(shards: TokenShards):
    curves = []
    for dtype in ("float32", "bfloat16"):
        config = make_config(train={"max_steps": 40, "dtype": dtype, "lr": 3e-3})
        curves.append([result.loss for result in advance(make_state(config), config, shards, 40)])
    assert curves[0] != curves[1]
    np.testing.assert_allclose(*curves, atol=0.02)
    assert curves[1][-1] < curves[1][0]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_nan_steps_are_not_taken_and_training_stops_with_the_fix(shards: TokenShards, dtype: str):
    config = make_config(train={"dtype": dtype, "max_steps": 20})
    state = make_state(config)
    advance(state, config, shards, 2)
    with torch.no_grad():
        state.model.get_parameter("backbone.layers.0.mlp.down_proj.weight")[0, 0] = math.nan
    before, seen = tensors_of(state), []
    with pytest.raises(UserError, match=r"lower train\.lr \(now 0\.01\), or set train\.dtype to float32"):
        seen.extend(steps_of(state, config, shards))
    assert [result.taken for result in seen] == [False] * MAX_SKIPPED
    assert (state.skipped, state.step) == (MAX_SKIPPED, 2 + MAX_SKIPPED)
    for name, value in tensors_of(state).items():
        assert torch.equal(torch.nan_to_num(value), torch.nan_to_num(before[name])), name


@pytest.mark.parametrize("bad", ["loss", "gradient"])
def test_one_bad_step_is_left_out_and_the_next_is_taken(shards: TokenShards, bad: str):
    """A NaN gradient may come with a finite loss: the square root's slope at 0 times 0."""

    def loss(model: Model, piece: Piece) -> Tensor:
        value = lm_loss(model, piece)
        if state.step != 1:
            return value
        return value * math.inf if bad == "loss" else value + (0 * value).sqrt()

    config = make_config(train={"max_steps": 4})
    state, objective = make_state(config), Objective(count_targets, loss)
    before = None
    for result in steps_of(state, config, shards, objective=objective):
        if result.step == 2:
            assert not result.taken
            assert math.isfinite(result.loss) == (bad == "gradient")
            assert before is not None
            assert all(torch.equal(value, before[name]) for name, value in tensors_of(state).items())
        else:
            assert result.taken
        before = tensors_of(state)
    assert (state.step, state.skipped, state.skipped_in_a_row) == (4, 1, 0)


def test_stopping_drops_the_step_at_hand(shards: TokenShards):
    """Asked after the first of two micro-batches: the state is that of the step before, to the last bit."""
    config = make_config(train={"micro_batch_size": 2})
    state, plain = make_state(config), make_state(config)
    advance(plain, config, shards, 3)
    answers = iter([False] * 7 + [True])
    results = list(steps_of(state, config, shards, stopping=lambda: next(answers)))
    assert len(results) == state.step == 3
    assert_same_tensors(state, plain)
    assert all(parameter.grad is None for parameter in state.model.parameters())


def test_batch_without_targets_is_an_error():
    batch = make_batch()
    batch.targets[:] = IGNORED
    with pytest.raises(UserError, match="no token to learn from"):
        accumulate(ComputeModel(make_state(make_config()).model, torch.float32), batch, CAUSAL_LM, None)


def test_finished_run_has_no_steps_left(shards: TokenShards):
    config = make_config(train={"max_steps": 2})
    state = make_state(config)
    assert len(advance(state, config, shards, 9)) == 2
    assert advance(state, config, shards, 9) == []


def test_step_seeds_are_all_different():
    seeds = {step_seed(seed, step) for seed in range(20) for step in range(200)}
    assert len(seeds) == 20 * 200
    assert step_seed(1, 2) == step_seed(1, 2)
