"""GGUF files of every architecture, against the folder they were converted from and against transformers' reader."""

from pathlib import Path

import gguf
import pytest
import torch
import transformers

from langwright.core.errors import UserError
from langwright.model.checkpoint.load import load_model
from langwright.model.checkpoint.save import save_model
from langwright.model.config import LayerSpec, ModelConfig, Rope
from langwright.model.model import Model, build_model
from tests.parity.gguf_converter import convert

GEMMA = {
    "norm": "gemma_rmsnorm",
    "norm_slots": ("attn_in", "attn_out", "mlp_in", "mlp_out"),
    "activation": "gelu_tanh",
    "embed_scale": 32**0.5,
    "d_head": 256,  # transformers' reader takes this for granted
}
TWO_TYPES = {
    "layer_types": ("sliding", "full"),
    "layer_specs": {"full": LayerSpec(rope=Rope()), "sliding": LayerSpec(window=4, rope=Rope())},
}
CONFIGS = {
    "llama": {},
    "qwen2": {"qkv_bias": True, "n_kv_heads": 4},
    "qwen3": {"qk_norm": True, "tie_embeddings": False, "d_head": 128},
    "gemma2": GEMMA | TWO_TYPES | {"attn_softcap": 50.0, "logit_softcap": 30.0},
    "gemma3": GEMMA
    | {
        "qk_norm": True,
        "n_layers": 6,
        "layer_types": ("sliding",) * 5 + ("full",),
        "layer_specs": {"full": LayerSpec(rope=Rope(theta=1e6)), "sliding": LayerSpec(window=4, rope=Rope())},
    },
    "gpt2": {
        "n_kv_heads": 4,
        "positions": "learned",
        "norm": "layernorm",
        "norm_bias": True,
        "activation": "gelu_tanh",
        "gated": False,
        "qkv_bias": True,
        "o_bias": True,
        "mlp_bias": True,
        "layer_specs": {"full": LayerSpec()},
    },
}


def fresh(family: str) -> Model:
    """A small model whose every parameter is random, so that no mix-up goes unseen."""
    values = {
        "family": family,
        "d_model": 32,
        "n_layers": 2,
        "n_heads": 4,
        "n_kv_heads": 2,
        "d_head": 8,
        "d_mlp": 64,
        "vocab_size": 96,
        "max_positions": 64,
        "bos_id": 1,
        "eos_ids": (2,),
    }
    model = build_model(ModelConfig.model_validate(values | CONFIGS[family]), seed=0)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.empty(parameter.shape).normal_(0, 0.2, generator=generator))
    return model.eval()


@torch.no_grad()
@pytest.mark.parametrize("family", CONFIGS)
def test_gguf_is_the_folder_it_came_from(family: str, tmp_path: Path) -> None:
    model = fresh(family)
    save_model(model, tmp_path)
    convert(tmp_path, tmp_path / "model.gguf")
    ids = torch.randint(96, (2, 12), generator=torch.Generator().manual_seed(1))
    ours = load_model(tmp_path / "model.gguf")(ids)
    assert (ours - model(ids)).abs().max() <= 1e-6 * model(ids).abs().max()


@torch.no_grad()
@pytest.mark.parametrize("kind", ["F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"])
def test_quantised_weights_agree_with_transformers(kind: str, tmp_path: Path) -> None:
    save_model(fresh("llama"), tmp_path)
    convert(tmp_path, tmp_path / "model.gguf", gguf.GGMLQuantizationType[kind])
    ids = torch.randint(96, (2, 12), generator=torch.Generator().manual_seed(1))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="model.gguf", dtype=torch.float32)
    ours = load_model(tmp_path / "model.gguf")(ids)
    assert (ours - theirs.eval()(ids).logits).abs().max() <= 1e-5 * ours.abs().max()


@torch.no_grad()
@pytest.mark.parametrize("family", [name for name in CONFIGS if name != "gpt2"])
def test_agrees_with_transformers_reader(family: str, tmp_path: Path) -> None:
    save_model(fresh(family), tmp_path)
    convert(tmp_path, tmp_path / "model.gguf")
    ids = torch.randint(96, (2, 12), generator=torch.Generator().manual_seed(1))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="model.gguf", dtype=torch.float32)
    ours = load_model(tmp_path / "model.gguf")(ids)
    assert (ours - theirs.eval()(ids).logits).abs().max() <= 1e-5 * ours.abs().max()


def test_unknown_architecture_and_metadata_are_named(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "a.gguf", "falcon")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(UserError, match="'falcon' is not supported"):
        load_model(tmp_path / "a.gguf")
