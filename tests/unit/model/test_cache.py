"""Key-value caches: what they hold, where they end, and how they go back."""

import pytest
import torch

from langwright.core.errors import UserError
from langwright.model.cache import GrowingLayer, KVCache
from langwright.model.config import LayerSpec, ModelConfig, Rope


def make_config(window: int | None = None) -> ModelConfig:
    specs = {"full": LayerSpec(rope=Rope())}
    types = ("full", "full")
    if window:
        specs["sliding"] = LayerSpec(window=window, rope=Rope())
        types = ("full", "sliding")
    return ModelConfig(
        family="langwright",
        d_model=8,
        n_layers=2,
        n_heads=2,
        n_kv_heads=1,
        d_head=4,
        d_mlp=8,
        vocab_size=8,
        max_positions=32,
        layer_types=types,
        layer_specs=specs,
    )


def static(config: ModelConfig, rows: int = 2, capacity: int = 6) -> KVCache:
    return KVCache.static(config, rows, capacity, torch.float32, "cpu")


def keys_of(count: int, first: int = 0, rows: int = 2) -> torch.Tensor:
    """Keys whose values are their column number, (rows, 1, count, 4)."""
    return torch.arange(first, first + count).float()[None, None, :, None].expand(rows, 1, count, 4)


def columns(start: int, stop: int) -> torch.Tensor:
    return torch.arange(start, stop)[None]


@pytest.mark.parametrize("make", [KVCache.growing, static])
def test_layers_give_back_all_they_got(make):
    cache = make(make_config())
    for start, stop in ((0, 3), (3, 4), (4, 6)):
        assert cache.extend(columns(start, stop))["full"].tolist() == [list(range(stop))]
        for layer in cache.layers:
            new = keys_of(stop - start, start)
            keys, values = layer.update(new, new + 100)
            assert torch.equal(keys, keys_of(stop))
            assert torch.equal(values, keys_of(stop) + 100)
    assert cache.length == 6
    assert cache.bytes() == 2 * 2 * keys_of(6).numel() * 4


def test_a_full_cache_says_so():
    cache = static(make_config())
    cache.extend(columns(0, 5))
    with pytest.raises(UserError, match="room for 6 tokens and 7 were given"):
        cache.extend(columns(5, 7))
    assert cache.length == 5
    cache.extend(columns(5, 6))


def test_other_rows_than_the_cache_has_are_refused():
    cache = static(make_config(), rows=3)
    with pytest.raises(ValueError, match="3 rows and 1 were given"):
        cache.layers[0].update(keys_of(2, rows=1), keys_of(2, rows=1))


def test_numbering_goes_on_from_the_last_real_token():
    cache = KVCache.growing(make_config())
    assert cache.next_positions() is None
    cache.extend(torch.tensor([[0, 1, 2], [-1, -1, 0]]))
    assert cache.next_positions().tolist() == [3, 1]
    cache.extend(torch.tensor([[3, -1], [1, 2]]))
    assert cache.next_positions().tolist() == [4, 3]


def test_like_rows_join_unlike_ones():
    cache = KVCache.growing(make_config())
    cache.extend(columns(0, 2))
    seen = cache.extend(torch.tensor([[2], [-1]]))["full"]
    assert seen.tolist() == [[0, 1, 2], [0, 1, -1]]


@pytest.mark.parametrize("make", [KVCache.growing, static])
def test_truncate_forgets(make):
    cache = make(make_config())
    cache.extend(torch.tensor([[0, 1, 2, 3], [-1, 0, 1, 2]]))
    for layer in cache.layers:
        layer.update(keys_of(4), keys_of(4))
    cache.truncate(2)
    assert cache.length == 2
    assert cache.next_positions().tolist() == [2, 1]
    assert cache.extend(torch.tensor([[2], [1]]))["full"].tolist() == [[0, 1, 2], [-1, 0, 1]]
    keys, _ = cache.layers[0].update(keys_of(1, 50), keys_of(1, 50))
    assert keys[0, 0, :, 0].tolist() == [0, 1, 50]
    cache.truncate(0)
    assert cache.next_positions() is None
    assert cache.length == 0


def test_a_windowed_growing_cache_cannot_go_back_and_stays_whole():
    cache = KVCache.growing(make_config(window=3))
    cache.extend(columns(0, 4))
    for layer in cache.layers:
        layer.update(keys_of(4), keys_of(4))
    with pytest.raises(ValueError, match="use a static cache"):
        cache.truncate(2)
    assert cache.length == 4
    keys, _ = cache.layers[0].update(keys_of(1, 4), keys_of(1, 4))
    assert keys.shape[2] == 5


@pytest.mark.parametrize("window", [1, 2, 4])
def test_a_windowed_layer_keeps_what_the_next_query_sees(window):
    layer = GrowingLayer(window)
    for start, stop in ((0, 7), (7, 8), (8, 11), (11, 12)):
        keys, _ = layer.update(keys_of(stop - start, start), keys_of(stop - start, start))
        held = min(start, window - 1)
        assert keys[0, 0, :, 0].tolist() == list(range(start - held, stop))
        assert layer.keys is not None
        assert layer.keys.shape[2] == min(stop, window - 1)


def test_a_long_prompt_is_not_kept_alive_by_its_tail():
    layer = GrowingLayer(4)
    layer.update(keys_of(1000).contiguous(), keys_of(1000).contiguous())
    assert layer.keys is not None
    assert layer.keys.untyped_storage().nbytes() == 2 * 3 * 4 * 4


def test_padding_on_the_right_of_a_dropping_cache_is_refused():
    padded = torch.tensor([[0, 1, -1]])
    with pytest.raises(ValueError, match="pad on the left"):
        KVCache.growing(make_config(window=3)).extend(padded)
    KVCache.growing(make_config()).extend(padded)
    static(make_config(window=3), rows=1).extend(padded)
