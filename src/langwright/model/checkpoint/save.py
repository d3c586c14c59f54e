"""From a `Model` to a Hugging Face folder that `transformers`, vLLM and llama.cpp's converter read as it is."""

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from langwright.core.files import explained, write_atomic
from langwright.core.json_text import write_json
from langwright.core.safetensors_file import write_weights
from langwright.model.adapters.attach import is_plain
from langwright.model.checkpoint.load import POOLING_WORDS
from langwright.model.config import ModelConfig, Pooling
from langwright.model.families import FAMILIES
from langwright.model.heads import EmbeddingHead
from langwright.model.model import Model
from langwright.model.rename import bind, join


def save_model(model: Model, folder: Path, *, dtype: torch.dtype | None = None) -> None:
    """Write ``config.json``, ``generation_config.json``, the weights and how texts are embedded into ``folder``.

    ``dtype`` None keeps the model's. For a folder that appears whole or not at all, fill a
    `core.files.committed_folder`. Raises `UserError` when the disk is full, or when the configuration
    has no form in its family; ValueError for a model with adapters or quantised weights, which has to be fused first.
    """
    if not is_plain(model):
        raise ValueError("the model has adapters or a quantised base; use save_adapter, or save what fuse gives")
    family = FAMILIES[model.config.family]
    kept = dtype or model.dtype
    values = family.config_to_hf(model.config, model.head_kind) | {"dtype": str(kept).removeprefix("torch.")}
    parameters = dict(model.named_parameters())
    rules = bind(family.rules + family.heads[model.head_kind], model.config, parameters)
    bare = model.head_kind == "embedding"

    def tensors() -> Iterator[tuple[str, Tensor]]:
        for item in rules:
            name = item.theirs.removeprefix(family.prefix) if bare else item.theirs
            parts = [parameters[ours].detach().to("cpu", kept) for ours in item.ours]
            yield name, join(item, parts, model.config)

    with explained(folder):
        folder.mkdir(parents=True, exist_ok=True)
    write_weights(folder, tensors())
    write_atomic(folder / "config.json", write_json(values))
    ids = {"bos_token_id": values["bos_token_id"], "eos_token_id": values["eos_token_id"]}
    ids["pad_token_id"] = values["pad_token_id"]
    write_atomic(folder / "generation_config.json", write_json({k: v for k, v in ids.items() if v is not None}))
    if isinstance(model.head, EmbeddingHead):
        save_pooling(model.head.pooling, model.config, folder)


def save_pooling(pooling: Pooling, config: ModelConfig, folder: Path) -> None:
    """What the sentence-transformers library wants beside a model to embed as we do: pooled, and of length 1."""
    stages = (("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize"))
    modules = [
        {"idx": number, "name": str(number), "path": path, "type": f"sentence_transformers.models.{name}"}
        for number, (path, name) in enumerate(stages)
    ]
    modes = {f"pooling_mode_{word}": how == pooling for how, word in POOLING_WORDS.items()}
    values = {"word_embedding_dimension": config.d_model, **modes, "pooling_mode_max_tokens": False}
    with explained(folder):
        (folder / "1_Pooling").mkdir(exist_ok=True)
    write_atomic(folder / "1_Pooling" / "config.json", write_json(values))
    write_atomic(folder / "modules.json", write_json(modules))
    write_atomic(
        folder / "sentence_bert_config.json",
        write_json({"max_seq_length": config.max_positions, "do_lower_case": False}),
    )
