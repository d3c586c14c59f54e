"""A small model with a tokenizer that GGUF has words for, and an adapter for it."""

from functools import cache
from pathlib import Path
from typing import Any

import torch

from langwright.model.adapters import AdapterConfig, adapter_parameters, add_adapters, save_adapter
from langwright.model.checkpoint.load import load_model
from langwright.model.checkpoint.save import save_model
from langwright.model.config import LayerSpec, ModelConfig, Rope
from langwright.model.heads import HeadKind
from langwright.model.model import Model, build_model
from langwright.tokenizer.tokenizer import Tokenizer
from langwright.tokenizer.training import CHAT_AND_FIM, END, train_bpe
from tests.unit.tokenizer.conftest import CHATML, TEXTS


@cache
def tokenizer() -> Tokenizer:
    trained = train_bpe(TEXTS, 300, special_tokens=(END, *CHAT_AND_FIM))
    return Tokenizer(trained.backend, roles=trained.roles, chat_template=CHATML)


def make(head: HeadKind | None = None, **changes: Any) -> Model:
    """Four Llama layers of width 32."""
    values = {
        "family": "llama",
        "d_model": 32,
        "n_layers": 4,
        "n_heads": 4,
        "n_kv_heads": 2,
        "d_head": 8,
        "d_mlp": 64,
        "vocab_size": tokenizer().vocab_size,
        "max_positions": 256,
        "layer_specs": {"full": LayerSpec(rope=Rope())},
        "init_std": 0.15,
        "bos_id": 0,
        "eos_ids": (0,),
    }
    return build_model(ModelConfig.model_validate(values | changes), head, seed=3).eval()


def make_folder(folder: Path, head: HeadKind | None = None, **changes: Any) -> Path:
    """A checkpoint of it."""
    folder.mkdir(parents=True)
    save_model(make(head, **changes), folder)
    tokenizer().save(folder)
    return folder


def make_adapter(folder: Path, base: Path, *, named: str | None = None, **settings: Any) -> Path:
    """An adapter of the model in ``base`` that changes something; ``named`` is what it calls its base."""
    model = add_adapters(load_model(base, dtype=torch.float32), AdapterConfig(rank=4, **settings), seed=1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in adapter_parameters(model).values():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    save_adapter(model, folder, base=named or str(base))
    return folder
