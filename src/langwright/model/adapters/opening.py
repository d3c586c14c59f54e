"""An adapter's folder as a model: the base is found, loaded, adapted and fused."""

import os
from pathlib import Path

import torch
from torch import nn

from langwright.core.errors import UserError
from langwright.core.safetensors_file import INDEX, WEIGHTS
from langwright.model.adapters.attach import CLASSIFIERS
from langwright.model.adapters.merge import fold
from langwright.model.adapters.names import name_parts
from langwright.model.adapters.peft_config import CONFIG, TASKS, read_peft_config
from langwright.model.adapters.peft_folder import load_adapter, open_adapter
from langwright.model.checkpoint.hub import resolve
from langwright.model.checkpoint.load import load_model, read_pooling
from langwright.model.heads import EmbeddingHead, HeadKind
from langwright.model.model import Model


def is_adapter(path: Path) -> bool:
    """Whether ``path`` is a folder with an adapter; raises `UserError` when it holds a whole model too."""
    if not (path / CONFIG).is_file():
        return False
    if whole := [name for name in (WEIGHTS, INDEX) if (path / name).exists()]:
        raise UserError(f"{path}: holds an adapter ({CONFIG}) and a whole model ({whole[0]}); remove one of them")
    return True


def find_base(folder: Path) -> Path:
    """The checkpoint folder or ``.gguf`` file that an adapter belongs to, fetched first where needed.

    ``base_model_name_or_path`` is a path seen from the adapter's folder, or whatever
    `langwright.model.checkpoint.hub.resolve` takes. Raises `UserError` when there is none or it is an adapter itself.
    """
    given, source = read_peft_config(folder), folder / CONFIG
    if not given.base:
        raise UserError(f"{source}: base_model_name_or_path is empty; write there which model the adapter is for")
    beside, here = folder / given.base, os.path.exists(os.path.expanduser(given.base))
    if os.path.isdir(beside) or (beside.suffix == ".gguf" and os.path.isfile(beside)):
        path = beside
    elif given.base.startswith((".", "/", "~")) and not here:  # a path, so not to be asked for at a hub
        raise UserError(f"{source}: base_model_name_or_path: {given.base}: no such file or folder; write where it is")
    else:
        pinned = given.revision is not None and "/" in given.base and not here
        try:
            path = resolve(f"{given.base}@{given.revision}" if pinned else given.base)
        except UserError as error:
            raise UserError(f"{source}: base_model_name_or_path: {error}") from None
    if (path / CONFIG).is_file():
        raise UserError(f"{source}: the base, {path}, is itself an adapter; fuse that one first and name the result")
    return path


def load_adapted(
    folder: Path,
    base: Path,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    fuse: bool = True,
) -> Model:
    """The model in ``base`` with the adapter in ``folder`` fused into it, or beside it, in evaluation mode.

    The head is that of the adapter's task, else the base's. ``dtype`` and what is raised: `load_model`, `load_adapter`.
    """
    task = read_peft_config(folder).task
    head: HeadKind | None = next((kind for kind, name in TASKS.items() if name == task), None)
    if task is not None and head is None:
        raise UserError(f"{folder / CONFIG}: task_type {task!r:.60} is not supported ({', '.join(TASKS.values())} are)")
    model = load_model(base, dtype=dtype, device=device, head=head)
    if model.head_kind in CLASSIFIERS:
        _fit_labels(model, folder)
    load_adapter(folder, model)
    if isinstance(model.head, EmbeddingHead) and (pooling := read_pooling(folder)):
        model.head.pooling = pooling
        model.config = model.backbone.config = model.config.replace(pooling=pooling)
    return (fold(model) if fuse else model).eval()


def _fit_labels(model: Model, folder: Path) -> None:
    """Give a classifier as many labels as the adapter's head has: the base may never have been one."""
    stored = name_parts(model).head["head.proj.weight"]
    with open_adapter(folder) as file:
        shapes = [file.info(name).shape for name in file.names if name.endswith(f".{stored}")]
    old = model.head.proj
    assert isinstance(old, nn.Linear)
    # The file holds as many numbers as its header says, so this allocates no more than that; another width is not ours.
    if shapes and len(shapes[0]) == 2 and shapes[0][1] == old.in_features and shapes[0][0] != old.out_features:
        rows = shapes[0][0]
        model.head.proj = nn.Linear(old.in_features, rows, bias=old.bias is not None).to(old.weight)
        model.config = model.backbone.config = model.config.replace(n_labels=rows)
        model.fresh = sorted({*model.fresh, *(f"head.proj.{name}" for name, _ in old.named_parameters())})
