"""Attention against plain loops in float64."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from langwright.model.attention import SDPA, Eager, LayerContext, build_context, build_mask
from langwright.model.config import LayerSpec, ModelConfig, Rope


def attend(q, k, v, queries, keys, *, causal, window, softcap, scale):
    """softmax(q k / sqrt(d)) v, one query, one key and one head at a time; positions of -1 are padding."""
    B, H, T, E = q.shape
    group = H // k.shape[1]
    out = np.full((B, H, T, E), np.nan)
    pattern = np.zeros((B, H, T, k.shape[2]))
    for b in range(B):
        for h in range(H):
            for t in range(T):
                if queries[b][t] < 0:
                    continue  # padding asks nothing
                scores = []
                for s, key in enumerate(keys[b]):
                    distance = queries[b][t] - key
                    hidden = key < 0 or (causal and distance < 0) or (window is not None and abs(distance) >= window)
                    score = sum(q[b, h, t, e] * k[b, h // group, s, e] for e in range(E)) * scale
                    if softcap is not None:
                        score = softcap * math.tanh(score / softcap)
                    scores.append(-math.inf if hidden else score)
                top = max(scores)
                weights = [math.exp(score - top) for score in scores]
                total = sum(weights)
                pattern[b, h, t] = [weight / total for weight in weights]
                out[b, h, t] = sum(pattern[b, h, t, s] * v[b, h // group, s] for s in range(len(scores)))
    return out, pattern


@st.composite
def problems(draw):
    kv_heads, group = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    B, S, E = draw(st.integers(1, 3)), draw(st.integers(1, 9)), draw(st.integers(1, 6))
    T = draw(st.integers(1, S))
    padding = [draw(st.integers(0, S - 1)) for _ in range(B)]
    side = draw(st.sampled_from(["none", "left", "right"]))
    keys = []
    for count in padding:
        real = list(range(S - count if side != "none" else S))
        blank = [-1] * (S - len(real))
        keys.append(real + blank if side == "right" else blank + real)
    return {
        "shape": (B, kv_heads * group, kv_heads, T, S, E),
        "keys": keys,
        "causal": draw(st.booleans()),
        "window": draw(st.none() | st.integers(1, 5)),
        "softcap": draw(st.none() | st.floats(0.5, 3.0)),
        "scale": draw(st.floats(0.05, 2.0)),
        "seed": draw(st.integers(0, 2**16)),
    }


def _config(problem, E, H, K) -> ModelConfig:
    return ModelConfig(
        family="langwright",
        d_model=8,
        n_layers=1,
        n_heads=H,
        n_kv_heads=K,
        d_head=E,
        d_mlp=8,
        vocab_size=8,
        max_positions=16,
        causal=problem["causal"],
        positions="none",
        attn_scale=problem["scale"],
        attn_softcap=problem["softcap"],
        layer_specs={"full": LayerSpec(window=problem["window"])},
    )


@settings(max_examples=120, deadline=None)
@given(problems())
def test_kernels_agree_with_loops(problem):
    B, H, K, T, S, E = problem["shape"]
    generator = torch.Generator().manual_seed(problem["seed"])
    q, k, v = (torch.randn(B, n, length, E, generator=generator) for n, length in ((H, T), (K, S), (K, S)))
    keys = torch.tensor(problem["keys"])
    queries = keys[:, S - T :]
    config = _config(problem, E, H, K)
    spec = config.layer_specs["full"]
    ctx = LayerContext(build_mask(config, spec, queries, keys), False, None, None)
    expected, weights = attend(
        *(x.double().numpy() for x in (q, k, v)),
        queries.tolist(),
        keys.tolist(),
        causal=problem["causal"],
        window=problem["window"],
        softcap=problem["softcap"],
        scale=problem["scale"],
    )
    real = (queries >= 0)[:, None].expand(B, H, T)
    eager = Eager(problem["scale"], 0.0, problem["softcap"])
    out, _, pattern = eager.attend(q, k, v, ctx)
    torch.testing.assert_close(out[real].double(), torch.tensor(expected)[real], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(pattern[real].double(), torch.tensor(weights)[real], atol=1e-5, rtol=1e-5)
    assert out.isfinite().all()
    if problem["softcap"] is None:
        fused = SDPA(problem["scale"], 0.0)(q, k, v, ctx)
        torch.testing.assert_close(fused[real].double(), torch.tensor(expected)[real], atol=1e-5, rtol=1e-5)
        assert fused.isfinite().all()


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(("T", "window"), [(1, None), (7, None), (7, 7), (7, 3), (7, 1)])
def test_the_mask_left_to_the_kernel_is_the_built_one(causal, T, window):
    """A context says the same whether or not it may leave the mask out."""
    config = ModelConfig(
        family="langwright",
        d_model=8,
        n_layers=1,
        n_heads=2,
        n_kv_heads=1,
        d_head=4,
        d_mlp=8,
        vocab_size=8,
        max_positions=16,
        causal=causal,
        layer_specs={"full": LayerSpec(window=window, rope=Rope())},
    )
    positions = torch.arange(T)[None]
    bare = build_context(config, positions, positions, None, plain=True)["full"]
    built = build_context(config, positions, positions, None, plain=False)["full"]
    assert built.mask is not None
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, n, T, 4, generator=generator) for n in (2, 1, 1))
    eager = Eager(0.5, 0.0)
    torch.testing.assert_close(eager(q, k, v, bare), eager(q, k, v, built))
