"""How weights begin, and the parts of a model that only our own family has."""

import pytest
import torch

from langwright.core.errors import UserError
from langwright.model.checkpoint.load import load_model
from langwright.model.checkpoint.save import save_model
from langwright.model.config import LayerSpec, ModelConfig, Rope
from langwright.model.families import FAMILIES
from langwright.model.model import build_model, init_weights

ROPE = Rope(theta=100.0)


def small(**changes: object) -> ModelConfig:
    values = {"family": "langwright", "d_model": 24, "n_layers": 2, "n_heads": 2, "n_kv_heads": 1, "d_head": 12}
    sizes = {"d_mlp": 40, "vocab_size": 31, "max_positions": 32, "layer_specs": {"full": LayerSpec(rope=ROPE)}}
    return ModelConfig.parse(values | sizes | changes, "test")


def embedding_twice(**changes: object) -> ModelConfig:
    specs = {"full": LayerSpec(rope=ROPE), "embed": LayerSpec(rope=ROPE, value_embed=True)}
    return small(layer_specs=specs, layer_types=("embed", "full"), **changes)


def test_zero_init_makes_blocks_the_identity_and_the_head_uniform():
    model = build_model(small(zero_init=True, tie_embeddings=False))
    ids = torch.arange(10)[None]
    normed = model.backbone.final_norm(model.backbone.embed(ids, ids, None))
    assert torch.equal(model.backbone(ids), normed)
    assert not model(ids).any()
    tied = build_model(small(zero_init=True))
    assert tied.backbone.embed.tokens.weight.any()
    assert tied.backbone.layers[0].attn.q_proj.weight.any()


def test_scaled_init_of_what_goes_back_into_the_stream():
    model = build_model(small(d_model=128, n_heads=4, d_head=32, d_mlp=512))
    block = model.backbone.layers[0]
    assert block.mlp.up_proj.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert block.mlp.down_proj.weight.std().item() == pytest.approx(0.01, rel=0.05)  # 2 layers: sqrt(4)


def test_value_embeddings_are_added_to_the_values_of_their_layers_alone():
    model = build_model(embedding_twice()).eval()
    first, second = (layer.attn for layer in model.backbone.layers)
    assert first.value_embed.weight.shape == (31, 12)
    assert not hasattr(second, "value_embed")
    seen: list[torch.Tensor] = []
    ids = torch.tensor([[3, 7, 3]])
    with torch.no_grad():
        plain = model(ids)
        first.attend.register_forward_hook(lambda _module, args, _out: seen.append(args[2]))
        before = first.v_proj.register_forward_hook(lambda _module, _args, out: seen.append(out))
        assert torch.equal(model(ids), plain)
        before.remove()
        projected, values = seen
        torch.testing.assert_close(values[0, 0], projected[0] + first.value_embed.weight[ids[0]])
        first.value_embed.weight[7] += 1.0
        changed = model(ids)
    assert torch.equal(changed[:, 0], plain[:, 0])  # nothing before the token knows
    assert not torch.equal(changed[:, 2], plain[:, 2])


def test_value_embeddings_are_saved_and_read(tmp_path):
    model = build_model(embedding_twice(), seed=3)
    save_model(model, tmp_path)
    opened = load_model(tmp_path)
    assert opened.config == model.config
    assert all(torch.equal(a, b) for a, b in zip(opened.parameters(), model.parameters(), strict=True))


def test_a_family_without_value_embeddings_refuses_them():
    with pytest.raises(UserError, match="layer_types = .*write the model with family .langwright."):
        FAMILIES["llama"].config_to_hf(embedding_twice(family="llama"), "causal_lm")


def test_a_seed_decides_every_weight():
    first, again, other = (build_model(embedding_twice(), seed=seed) for seed in (1, 1, 2))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert not torch.equal(first.backbone.embed.tokens.weight, other.backbone.embed.tokens.weight)
    init_weights(other, 1)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), other.parameters(), strict=True))
