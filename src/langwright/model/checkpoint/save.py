"""From a `Model` to a Hugging Face folder that `transformers`, vLLM and llama.cpp's converter read as it is."""

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from langwright.core.files import explained, write_atomic
from langwright.core.json_text import write_json
from langwright.core.safetensors_file import write_weights
from langwright.model.adapters.attach import is_plain
from langwright.model.families import FAMILIES
from langwright.model.model import Model
from langwright.model.rename import bind, join


def save_model(model: Model, folder: Path, *, dtype: torch.dtype | None = None) -> None:
    """Write ``config.json``, ``generation_config.json`` and the weights into ``folder``.

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
