"""What must hold of every decoder, whatever its family: each way to compute a token gives the same logits."""

import functools

import pytest
import torch
from torch import Tensor

from langwright.model.attention import set_attention
from langwright.model.cache import GrowingLayer, KVCache
from langwright.model.config import DynamicScaling, LayerSpec, ModelConfig, Rope
from langwright.model.families import find_family
from langwright.model.model import Model, build_model
from tests.parity.draws import DRAWS, vanilla_config

LENGTH = 14
NAMES = [*DRAWS, "vanilla", "langwright", "modern"]


@functools.cache
def config_of(name: str) -> ModelConfig:
    if name == "vanilla":
        return vanilla_config()
    if name == "langwright":  # a combination that no family has
        changes = {"family": "langwright", "qk_norm": True, "activation": "relu2", "parallel_residual": True}
        return vanilla_config(**changes, positions="none", norm_slots=("attn_in", "attn_res", "mlp_out"))
    if name == "modern":  # layers that embed their tokens again, in turn with those that do not
        rope = Rope(theta=100.0)
        kinds = {"full": LayerSpec(rope=rope), "embed": LayerSpec(rope=rope, value_embed=True)}
        changes = {"positions": "rotary", "layer_specs": kinds, "layer_types": ("embed", "full", "embed")}
        return vanilla_config(family="langwright", n_layers=3, qk_norm=True, logit_softcap=3.0, **changes)
    return find_family(DRAWS[name]).config_from_hf(DRAWS[name])


def is_dynamic(name: str) -> bool:
    """Dynamic scaling turns a key by the length when it came, so only equally long calls agree."""
    specs = config_of(name).layer_specs.values()
    return any(spec.rope and isinstance(spec.rope.scaling, DynamicScaling) for spec in specs)


def has_windows(name: str) -> bool:
    return any(spec.window for spec in config_of(name).layer_specs.values())


EVERY = pytest.mark.parametrize("name", NAMES)
STEADY = pytest.mark.parametrize("name", [name for name in NAMES if not is_dynamic(name)])
KINDS = pytest.mark.parametrize("kind", ["growing", "static"])


@functools.cache
def model_of(name: str) -> Model:
    """Weights large enough for a wrong mask or position to show."""
    model = build_model(config_of(name), seed=0).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.15)
    return model


def ids_of(model: Model, rows: int = 2, length: int = LENGTH) -> Tensor:
    return torch.randint(0, model.config.vocab_size, (rows, length), generator=torch.Generator().manual_seed(2))


def new_cache(kind: str, model: Model, rows: int) -> KVCache:
    if kind == "growing":
        return KVCache.growing(model.config)
    return KVCache.static(model.config, rows, LENGTH, model.dtype, model.device)


def feed(model: Model, ids: Tensor, cache: KVCache, sizes: list[int]) -> Tensor:
    """Logits of ``ids`` given in pieces of ``sizes`` tokens."""
    return torch.cat([model(part, cache=cache) for part in ids.split(sizes, dim=1)], dim=1)


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, atol=2e-5, rtol=2e-5)


@STEADY
@KINDS
@pytest.mark.parametrize("sizes", [[1] * LENGTH, [9, 1, 1, 1, 1, 1], [5, 4, 5]], ids=["tokens", "prompt", "pieces"])
def test_cached_equals_uncached(name, kind, sizes):
    model = model_of(name)
    ids = ids_of(model)
    close(feed(model, ids, new_cache(kind, model, len(ids)), sizes), model(ids))


@EVERY
@pytest.mark.parametrize("sizes", [[LENGTH], [6] + [1] * 8, [2, 10, 2]], ids=["whole", "prompt", "pieces"])
def test_growing_equals_static(name, sizes):
    model = model_of(name)
    ids = ids_of(model)
    close(
        feed(model, ids, new_cache("growing", model, 2), sizes), feed(model, ids, new_cache("static", model, 2), sizes)
    )


@EVERY
@pytest.mark.parametrize("side", ["left", "right"])
def test_batched_equals_single(name, side):
    model = model_of(name)
    lengths = [LENGTH, 3, 8]
    rows = [ids_of(model, 1, length)[0] for length in lengths]
    ids = torch.zeros(3, LENGTH, dtype=torch.long)
    mask = torch.zeros(3, LENGTH, dtype=torch.bool)
    for number, (row, length) in enumerate(zip(rows, lengths, strict=True)):
        place = slice(LENGTH - length, None) if side == "left" else slice(0, length)
        ids[number, place], mask[number, place] = row, True
    if is_dynamic(name):
        lengths = lengths[:1]  # the batch is as long as its longest row
    together = model(ids, attention_mask=mask)
    assert together.isfinite().all()
    for number in range(len(lengths)):
        close(together[number, mask[number]], model(rows[number][None])[0])


@STEADY
@KINDS
def test_padded_generation_equals_single(name, kind):
    """A padded prompt, then tokens one by one, as a batch of different prompts is written on."""
    model = model_of(name)
    ids = ids_of(model)
    mask = torch.ones(2, 8, dtype=torch.bool)
    mask[1, :5] = False
    cache = new_cache(kind, model, 2)
    parts = [model(ids[:, :8], attention_mask=mask, cache=cache)]
    parts += [model(ids[:, i : i + 1], cache=cache) for i in range(8, LENGTH)]
    together = torch.cat(parts, dim=1)
    close(together[0], model(ids[:1])[0])
    close(together[1, 5:], model(ids[1:, 5:])[0])


@pytest.mark.parametrize("name", [name for name in NAMES if config_of(name).attn_softcap is None])
def test_eager_equals_sdpa(name):
    config = config_of(name)
    ids, mask = ids_of(model_of(name)), torch.ones(2, LENGTH, dtype=torch.bool)
    mask[1, 9:] = False
    model = build_model(config, seed=0).eval()
    model.load_state_dict(model_of(name).state_dict())
    expected, padded = model(ids), model(ids, attention_mask=mask)
    step = feed(model, ids, new_cache("static", model, 2), [LENGTH - 1, 1])
    set_attention(model, config, "eager")
    close(model(ids), expected)
    close(model(ids, attention_mask=mask)[mask], padded[mask])
    close(feed(model, ids, new_cache("static", model, 2), [LENGTH - 1, 1]), step)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        (name, kind)
        for name in NAMES
        for kind in ("growing", "static")
        if not is_dynamic(name) and not (kind == "growing" and has_windows(name))
    ],
)
def test_truncated_equals_never_seen(name, kind):
    model = model_of(name)
    ids = ids_of(model)
    cache = new_cache(kind, model, 2)
    feed(model, ids[:, :7].flip(0), cache, [4, 3])
    cache.truncate(0)
    feed(model, ids[:, :5], cache, [5])
    feed(model, ids[:, 8:12], cache, [2, 2])  # tokens that a draft got wrong
    cache.truncate(5)
    assert cache.length == 5
    close(feed(model, ids[:, 5:], cache, [3, 1, 5]), model(ids)[:, 5:])


@pytest.mark.parametrize("name", [name for name in NAMES if has_windows(name)])
def test_windowed_growing_cache_drops_what_nobody_sees(name):
    """Its memory is bounded by the window, and the full cache gives the same logits."""
    model = model_of(name)
    ids = ids_of(model)
    dropping, full = KVCache.growing(model.config), new_cache("static", model, 2)
    for start, stop in ((0, 9), *((i, i + 1) for i in range(9, LENGTH))):
        close(model(ids[:, start:stop], cache=dropping), model(ids[:, start:stop], cache=full))
        for layer, kind in zip(dropping.layers, model.config.layer_types, strict=True):
            assert isinstance(layer, GrowingLayer)
            keys = layer.keys
            assert keys is not None
            window = model.config.layer_specs[kind].window
            expected = stop if window is None else min(stop, window - 1)
            assert keys.shape[2] == expected
            row = keys.shape[1] * keys.shape[3] * keys.element_size() * 2
            assert keys.untyped_storage().nbytes() <= row * max(expected + 1, 2 * expected)


@EVERY
def test_last_only_is_the_last_column(name):
    model = model_of(name)
    ids = ids_of(model)
    close(model(ids, last_only=True), model(ids)[:, -1:])


@EVERY
def test_weights_are_a_function_of_the_seed(name):
    config = config_of(name)
    first, again, other = (build_model(config, seed=seed).state_dict() for seed in (5, 5, 6))
    assert all(torch.equal(first[key], again[key]) for key in first)
    drawn = [key for key in first if first[key].ndim == 2]
    assert all(not torch.equal(first[key], other[key]) for key in drawn)


@EVERY
def test_bf16_is_close(name):
    model = model_of(name)
    ids = ids_of(model)
    half = build_model(model.config, seed=None).to(torch.bfloat16).eval()
    half.load_state_dict(model.state_dict())
    exact, rough = model(ids), half(ids).float()
    assert rough.isfinite().all()
    assert (rough - exact).std() < 0.05 * exact.std()
