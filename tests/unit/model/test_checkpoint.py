"""Checkpoint folders: what is written comes back, and whatever is wrong is named in one line."""

import json
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from langwright.core.errors import FormatError, UserError
from langwright.model.checkpoint.load import load_model, read_config
from langwright.model.checkpoint.save import save_model
from langwright.model.config import LayerSpec, Llama3Scaling, ModelConfig, Rope
from langwright.model.model import Model, build_model


def small(**changes: object) -> ModelConfig:
    values = {
        "family": "llama",
        "d_model": 16,
        "n_layers": 2,
        "n_heads": 4,
        "n_kv_heads": 2,
        "d_head": 8,
        "d_mlp": 24,
        "vocab_size": 40,
        "max_positions": 32,
        "bos_id": 1,
        "eos_ids": (2,),
    }
    return ModelConfig.model_validate(values | changes)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_model(build_model(small(), seed=3), tmp_path)
    return tmp_path


def same(a: Model, b: Model) -> bool:
    ours, theirs = dict(a.named_parameters()), dict(b.named_parameters())
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"tie_embeddings": False},
        {"family": "mistral", "layer_specs": {"full": LayerSpec(window=8, rope=Rope())}},
        {"qkv_bias": True, "o_bias": True, "mlp_bias": True},
        {
            "layer_specs": {
                "full": LayerSpec(
                    rope=Rope(
                        theta=5e5,
                        scaling=Llama3Scaling(factor=8, low_freq_factor=1, high_freq_factor=4, original_positions=16),
                    )
                )
            }
        },
    ],
    ids=["tied", "untied", "window", "biases", "llama3"],
)
def test_round_trip_is_the_identity(tmp_path: Path, changes: dict) -> None:
    model = build_model(small(**changes), seed=1)
    save_model(model, tmp_path)
    again = load_model(tmp_path)
    assert again.config == model.config
    assert same(model, again)
    assert not again.training


@pytest.mark.parametrize("family", ["vanilla", "langwright"])
def test_own_families_round_trip(tmp_path: Path, family: str) -> None:
    config = small(
        family=family,
        d_head=4,
        n_kv_heads=4,
        positions="sinusoidal",
        norm="layernorm",
        norm_bias=True,
        norm_slots=("attn_res", "mlp_res"),
        final_norm=False,
        gated=False,
        activation="relu",
        qkv_bias=True,
        o_bias=True,
        mlp_bias=True,
        tie_embeddings=False,
        head_bias=True,
        init="tutorial",
        layer_specs={"full": LayerSpec()},
    )
    model = build_model(config, seed=1)
    save_model(model, tmp_path)
    again = load_model(tmp_path)
    assert again.config == config
    assert same(model, again)


def test_shards_give_the_same_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from langwright.core import safetensors_file
    from langwright.model.checkpoint import save

    def in_shards(folder: Path, tensors: object) -> None:
        safetensors_file.write_weights(folder, tensors, shard_bytes=2000)  # type: ignore[arg-type]

    monkeypatch.setattr(save, "write_weights", in_shards)
    model = build_model(small(), seed=5)
    save_model(model, tmp_path)
    assert len(list(tmp_path.glob("model-*-of-*.safetensors"))) > 1
    assert same(model, load_model(tmp_path))


def test_dtype_and_new_head(folder: Path) -> None:
    model = load_model(folder, dtype=torch.bfloat16, head="sequence_classifier")
    assert model.dtype == torch.bfloat16
    assert model.fresh == ["head.proj.weight"]
    assert model(torch.tensor([[1, 2, 3]])).shape == (1, 2)
    with pytest.raises(UserError, match="no masked_lm head"):
        load_model(folder, head="masked_lm")


@pytest.mark.parametrize(
    ("values", "pooling"),
    [
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, "cls"),
        ({"pooling_mode_lasttoken": True}, "last"),
    ],
)
def test_pooling_of_sentence_transformers_is_read(folder: Path, values: dict, pooling: str) -> None:
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(values | {"word_embedding_dimension": 16}))
    assert load_model(folder, head="embedding").config.pooling == pooling
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_max_tokens": True}))
    with pytest.raises(UserError, match="pooling_mode_max_tokens is not supported"):
        load_model(folder, head="embedding")


def edit(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    values = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in values.items() if value is not ...}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "lama"}, r"'lama' is not supported; did you mean 'llama'"),
        ({"model_type": ...}, r"architecture None is not supported"),
        ({"ffn_multiplier": 3}, r"'ffn_multiplier' \(= 3\) is unknown"),
        ({"hidden_act": "softsign"}, r"hidden_act.*'softsign'"),
        ({"hidden_size": "16"}, r"'hidden_size' should be int"),
        ({"hidden_size": ...}, r"'hidden_size' is missing"),
        ({"num_attention_heads": 0}, r"n_heads"),
        ({"num_key_value_heads": 3}, r"must divide n_heads"),
        ({"num_hidden_layers": -1}, r"n_layers"),
        ({"rope_parameters": {"rope_type": "longrope", "factor": 2.0}}, r"'longrope' is not supported"),
        ({"rope_parameters": {"rope_type": "linear", "factor": 2.0, "extra": 1}}, r"'extra'"),
        ({"num_hidden_layers": 3}, r"'model\.layers\.2\..*' is missing"),
        ({"num_hidden_layers": 1}, r"'model\.layers\.1\..*' is not part of"),
        ({"vocab_size": 41}, r"'model.embed_tokens.weight' is \(40, 16\), the configuration needs \(41, 16\)"),
        ({"tie_word_embeddings": False}, r"'lm_head.weight' is missing"),
    ],
)
def test_bad_configs_are_named(folder: Path, changes: dict, message: str) -> None:
    edit(folder, **changes)
    with pytest.raises(UserError, match=message) as caught:
        load_model(folder)
    assert "\n" not in str(caught.value)
    assert "config.json" in str(caught.value) or str(folder) in str(caught.value)


def test_absurd_sizes_take_no_memory(folder: Path) -> None:
    """A lying config is caught by the tensors' shapes before anything of its size is allocated."""
    edit(folder, hidden_size=1 << 20, intermediate_size=1 << 24, head_dim=1 << 10)
    with pytest.raises(UserError, match="the configuration needs"):
        load_model(folder)


def test_missing_pieces(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="config.json: no such file"):
        load_model(tmp_path)
    with pytest.raises(UserError, match="neither a checkpoint folder nor"):
        load_model(tmp_path / "nowhere")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(FormatError, match="not valid JSON"):
        read_config(tmp_path)


def test_pickle_is_refused(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(UserError, match="pytorch_model.bin"):
        load_model(folder)


def test_damaged_weights_are_refused_or_whole(folder: Path) -> None:
    """Whatever byte of the header is flipped, loading raises our error or gives tensors of the right shapes."""
    path = folder / "model.safetensors"
    good = path.read_bytes()
    header = 8 + struct.unpack("<Q", good[:8])[0]
    generator = torch.Generator().manual_seed(0)
    for _ in range(300):
        where = int(torch.randint(header, (1,), generator=generator))
        bit = int(torch.randint(8, (1,), generator=generator))
        path.write_bytes(good[:where] + bytes([good[where] ^ 1 << bit]) + good[where + 1 :])
        try:
            model = load_model(folder)
        except UserError as error:
            assert "\n" not in str(error)
        else:
            assert model(torch.tensor([[1, 2]])).shape == (1, 2, 40)
    for cut in range(0, len(good), 97):
        path.write_bytes(good[:cut])
        with pytest.raises(UserError):
            load_model(folder)


def test_loading_does_not_wait_for_torchs_compiler(folder: Path) -> None:
    """Allocating or drawing weights on the meta device would import it, which takes longer than the load itself."""
    code = (
        "import sys; from pathlib import Path; from langwright.model.checkpoint.load import load_model\n"
        "load_model(Path(sys.argv[1])); print(*{'sympy', 'torch._dynamo', 'torch._inductor'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
