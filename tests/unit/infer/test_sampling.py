"""Each sampling step against transformers' own, the penalties against their formulas, and the draw."""

import math
from typing import Any

import pytest
import torch
from transformers.generation import logits_process as reference

from langwright.core.errors import UserError
from langwright.infer.filters import build_warps, draw, draw_among_first, keep_min_p, keep_top_k, keep_top_p, scale
from langwright.infer.sampling import (
    Sampler,
    SamplingConfig,
    check_bias,
    penalise_frequency,
    penalise_presence,
    penalise_repetition,
)

V = 300
NO_IDS: Any = None
"""What transformers' filters never look at."""


def random_logits(rows: int = 5, seed: int = 0, spread: float = 3.0) -> torch.Tensor:
    return torch.randn(rows, V, generator=torch.Generator().manual_seed(seed)) * spread


def refused(**settings) -> str:
    with pytest.raises(UserError) as caught:
        SamplingConfig.parse(settings, "sampling")
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("spread", [0.5, 3.0, 20.0])
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [(keep_top_k(k), reference.TopKLogitsWarper(k)) for k in (1, 7, V, 10 * V)]
    + [(keep_top_p(p), reference.TopPLogitsWarper(p)) for p in (0.01, 0.5, 0.9, 0.999)]
    + [(keep_min_p(p), reference.MinPLogitsWarper(p)) for p in (0.001, 0.1, 0.9, 1.0)],
)
def test_filters_equal_transformers(ours, theirs, spread):
    logits = random_logits(spread=spread)
    torch.testing.assert_close(ours(logits), theirs(NO_IDS, logits), rtol=0, atol=0)


@pytest.mark.parametrize("temperature", [0.1, 0.7, 1.0, 5.0])
def test_temperature_gives_the_distribution_of_transformers(temperature):
    logits = random_logits()
    theirs = reference.TemperatureLogitsWarper(temperature)(NO_IDS, logits)
    torch.testing.assert_close(scale(temperature)(logits).softmax(-1), theirs.softmax(-1))


def test_tiny_temperature_does_not_overflow():
    probs = scale(1e-5)(random_logits(spread=1e4)).softmax(-1)
    assert probs.isfinite().all()
    torch.testing.assert_close(probs.amax(-1), torch.ones(5))


def test_all_steps_together_equal_transformers_in_its_order():
    logits = ours = random_logits()
    for warp in build_warps(temperature=0.8, top_k=50, top_p=0.9, min_p=0.05):
        ours = warp(ours)
    theirs = reference.LogitsProcessorList(
        [
            reference.TemperatureLogitsWarper(0.8),
            reference.TopKLogitsWarper(50),
            reference.TopPLogitsWarper(0.9),
            reference.MinPLogitsWarper(0.05),
        ]
    )(NO_IDS, logits)
    torch.testing.assert_close(ours.softmax(-1), theirs.softmax(-1))


@pytest.mark.parametrize("spread", [0.1, 3.0, 10.0])
@pytest.mark.parametrize("first", [1, 8, 100, V, 2 * V])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"temperature": 0.6},
        {"top_k": 5},
        {"top_k": V},
        {"top_p": 0.7},
        {"min_p": 0.1},
        {"min_p": 1e-30},
        {"temperature": 1.5, "top_k": 40, "top_p": 0.9, "min_p": 0.02},
        {"temperature": 0.5, "top_k": 200, "top_p": 0.999999},
    ],
    ids=str,
)
def test_a_draw_among_the_first_tokens_is_a_draw_among_all(settings, first, spread):
    logits = random_logits(rows=400, spread=spread)
    uniforms = torch.rand(400, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    chosen, certain = draw_among_first(logits, uniforms, **settings, first=first)
    for warp in build_warps(**settings):
        logits = warp(logits)
    assert torch.equal(chosen[certain], draw(logits, uniforms)[certain])
    if first >= V or 0 < settings.get("top_k", 0) < V:
        assert certain.all()
    elif first == 100 and spread == 10.0 and settings != {"min_p": 1e-30}:
        assert certain.float().mean() > 0.9


def test_ties_beyond_the_first_tokens_are_not_certain():
    logits = torch.zeros(1, V)
    cases: list[dict[str, Any]] = [{"top_k": 4}, {"top_p": 0.01}, {"min_p": 0.5}]
    for settings in cases:
        assert draw_among_first(logits, torch.tensor([0.5]), **settings, first=8)[1].tolist() == [False]
    assert draw_among_first(logits, torch.tensor([7.5 / V]), first=8)[1].tolist() == [True]
    assert draw_among_first(logits, torch.tensor([8.5 / V]), first=8)[1].tolist() == [False]


def test_a_sampler_draws_alike_however_flat_the_distribution():
    config = SamplingConfig(temperature=0.9, top_p=0.98, seed=1)
    flat = torch.randn(3, 2000, generator=torch.Generator().manual_seed(4)) * 0.1
    sampler = Sampler(config, [[1]] * 3, [1, 2, 3], 2000)
    generators = [torch.Generator().manual_seed(seed) for seed in (1, 2, 3)]
    for _ in range(5):
        warped = flat
        for warp in build_warps(temperature=0.9, top_p=0.98):
            warped = warp(warped)
        uniforms = torch.stack([torch.rand((), generator=own, dtype=torch.float64) for own in generators])
        assert torch.equal(sampler(flat), draw(warped, uniforms))


def test_top_p_keeps_ties_and_never_less_than_one():
    logits = torch.log(torch.tensor([[0.4, 0.2, 0.2, 0.2]]))
    assert keep_top_p(0.5)(logits).isfinite().tolist() == [[True, True, True, True]]
    assert keep_top_p(0.3)(logits).isfinite().tolist() == [[True, False, False, False]]
    assert keep_top_p(1e-9)(logits).isfinite().sum() == 1


@pytest.mark.parametrize("penalty", [0.5, 1.2, 3.0])
def test_repetition_penalty_is_ctrls(penalty):
    logits = random_logits()
    ids: Any = torch.randint(V, (5, 20), generator=torch.Generator().manual_seed(1))
    ids[:, 10:] = ids[:, :10]
    ours = penalise_repetition(logits, ids, penalty)
    theirs = reference.RepetitionPenaltyLogitsProcessor(penalty)(ids, logits)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    value, token = float(logits[0, ids[0, 0]]), ids[0, 0]
    assert float(ours[0, token]) == pytest.approx(value / penalty if value > 0 else value * penalty)


def test_presence_and_frequency_penalties_are_openais():
    logits, ids = torch.ones(1, 4), torch.tensor([[1, 2, 2, 2]])
    # mu[j] - c[j] * alpha_frequency - float(c[j] > 0) * alpha_presence
    torch.testing.assert_close(penalise_presence(logits, ids, 0.5), torch.tensor([[1.0, 0.5, 0.5, 1.0]]))
    torch.testing.assert_close(penalise_frequency(logits, ids, 0.25), torch.tensor([[1.0, 0.75, 0.25, 1.0]]))
    assert penalise_presence(logits, ids[:, :0], 0.5).equal(logits)


def test_sampler_counts_the_answer_for_presence_and_the_prompt_too_for_repetition():
    config = SamplingConfig(temperature=0, repetition_penalty=2.0, presence_penalty=1.0, frequency_penalty=0.5)
    sampler = Sampler(config, [[3, 3]], [0], 8)
    flat = torch.full((1, 8), 4.0)
    torch.testing.assert_close(sampler.adjust(flat)[0], torch.tensor([4.0, 4, 4, 2, 4, 4, 4, 4]))
    sampler.answer = torch.tensor([[5, 5]])
    torch.testing.assert_close(sampler.adjust(flat)[0], torch.tensor([4.0, 4, 4, 2, 4, 0, 4, 4]))


@pytest.mark.parametrize("temperature", [0, 1e-9])
def test_temperature_zero_is_greedy(temperature):
    logits = random_logits()
    sampler = Sampler(SamplingConfig(temperature=temperature), [[1]] * 5, [0] * 5, V)
    for _ in range(3):
        assert sampler(logits).tolist() == logits.argmax(-1).tolist()


def test_bias_bars_and_prefers_tokens():
    logits = random_logits(rows=1)
    best = int(logits.argmax())
    sampler = Sampler(SamplingConfig(temperature=0, logit_bias={best: -100, 7: 50}), [[1]], [0], V)
    assert sampler(logits).tolist() == [7]


def test_ids_that_no_token_uses_are_never_chosen():
    logits = torch.zeros(1, V)
    logits[0, 250:] = 50.0
    for temperature in (0, 1):
        sampler = Sampler(SamplingConfig(temperature=temperature, seed=1), [[1]], [1], V, known_ids=250)
        assert all(int(sampler(logits)) < 250 for _ in range(20))


def test_end_tokens_wait_for_min_new_tokens():
    logits = torch.zeros(1, V)
    logits[0, 9] = 50.0
    sampler = Sampler(SamplingConfig(temperature=0, min_new_tokens=2), [[1]], [0], V, end_ids=[9])
    assert [int(sampler(logits)) == 9 for _ in range(4)] == [False, False, True, True]


def test_draws_follow_the_distribution():
    probs = torch.tensor([0.5, 0.25, 0.125, 0.0, 0.125])
    uniforms = (torch.arange(8000).double() + 0.5) / 8000
    drawn = draw(probs.log().expand(8000, -1), uniforms).bincount(minlength=5) / 8000
    torch.testing.assert_close(drawn.float(), probs, atol=2e-4, rtol=0)


def test_the_borders_of_the_unit_interval_draw_possible_tokens():
    logits = torch.tensor([[float("-inf"), 0.0, 0.0, float("-inf")]]).expand(2, -1)
    uniforms = torch.tensor([0.0, 1.0 - 2**-53], dtype=torch.float64)
    assert draw(logits, uniforms).tolist() == draw_among_first(logits, uniforms)[0].tolist() == [1, 2]


def test_a_rows_draws_do_not_depend_on_its_company():
    logits = random_logits(rows=1)
    config = SamplingConfig(top_p=0.95)
    alone = Sampler(config, [[1]], [11], V)
    among = Sampler(config, [[1]] * 4, [5, 6, 11, 7], V)
    for _ in range(30):
        assert int(alone(logits)) == int(among(logits.expand(4, -1))[2])


def test_equal_seeds_draw_alike_and_others_do_not():
    logits = random_logits(rows=1)
    runs = []
    for seed in (1, 1, 2, -1):
        sampler = Sampler(SamplingConfig(), [[1]], [seed], V)
        runs.append([int(sampler(logits)) for _ in range(20)])
    assert runs[0] == runs[1]
    assert len({tuple(run) for run in runs}) == 3


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_logits_that_are_not_finite_are_reported(value):
    logits = random_logits(rows=1)
    logits[0, 3] = value
    with pytest.raises(UserError, match="not finite"):
        Sampler(SamplingConfig(), [[1]], [0], V)(logits)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -0.1),
        ("temperature", math.nan),
        ("temperature", math.inf),
        ("temperature", 1e9),
        ("top_k", -1),
        ("top_k", 10**30),
        ("top_k", 1.5),
        ("top_p", 0),
        ("top_p", 1.01),
        ("top_p", math.nan),
        ("min_p", -0.1),
        ("min_p", 1.1),
        ("repetition_penalty", 0),
        ("repetition_penalty", -1),
        ("repetition_penalty", math.inf),
        ("presence_penalty", 2.5),
        ("frequency_penalty", math.nan),
        ("logit_bias", {-1: 1.0}),
        ("logit_bias", {3: 1000.0}),
        ("logit_bias", {3: math.nan}),
        ("logit_bias", {"three": 1.0}),
        ("seed", 2**63),
        ("seed", "lucky"),
        ("stop", [""]),
        ("stop", ["x"] * 65),
        ("stop", 7),
        ("max_new_tokens", -1),
        ("max_new_tokens", 10**9),
        ("min_new_tokens", 300),
        ("logprobs", 21),
        ("logprobs", -1),
        ("temprature", 1.0),
    ],
)
def test_unreasonable_settings_are_refused_by_name(field, value):
    assert field in refused(**{field: value})


def test_a_biased_id_outside_the_vocabulary_is_refused():
    with pytest.raises(UserError, match=r"logit_bias names token id 300; .* 0 to 299"):
        check_bias(SamplingConfig(logit_bias={5: 1.0, V: 1.0}), V)


def test_one_stop_string_may_stand_alone():
    for given, kept in (("END", ("END",)), (None, ()), (["a", "b"], ("a", "b"))):
        assert SamplingConfig.parse({"stop": given}, "sampling").stop == kept


def test_defaults_leave_the_distribution_alone():
    config = SamplingConfig()
    assert build_warps(config.temperature, config.top_k, config.top_p, config.min_p) == []
    assert Sampler(config, [[1]], [0], V).adjust(logits := random_logits(rows=1)) is logits
