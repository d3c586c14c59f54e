"""From files to a `Model`: the destination is allocated once and every tensor is copied straight into it."""

from pathlib import Path

import torch
from torch import Tensor

from langwright.core.errors import FormatError, UserError
from langwright.core.json_text import read_json_object
from langwright.core.safetensors_file import Weights, open_weights
from langwright.model.checkpoint.fill import Pack, check_head, materialise, refuse_unknown
from langwright.model.checkpoint.gguf_model import load_gguf
from langwright.model.config import ModelConfig, Pooling
from langwright.model.families import find_family
from langwright.model.families.base import Family
from langwright.model.heads import HeadKind
from langwright.model.model import Model, allocate_model, default_head
from langwright.model.rename import Rule, bind

POOLING_WORDS: dict[Pooling, str] = {"mean": "mean_tokens", "cls": "cls_token", "last": "lasttoken"}
"""What the sentence-transformers library calls a way to pool, after ``pooling_mode_``."""


def load_model(
    path: Path,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    head: HeadKind | None = None,
    pack: Pack | None = None,
) -> Model:
    """A model from a Hugging Face folder or a ``.gguf`` file, in evaluation mode.

    ``dtype`` None keeps the stored one (a GGUF becomes float32). ``head`` None keeps the checkpoint's; another head
    begins with fresh weights, whose names are in ``model.fresh``. ``pack``: see `materialise`. Raises `UserError` or
    `FormatError` naming the file and what is wrong: missing, unknown or misshapen tensors, an unknown architecture or
    key.
    """
    if path.suffix == ".gguf":
        return load_gguf(path, dtype=dtype or torch.float32, device=device, head=head, pack=pack)
    if not path.is_dir():
        raise UserError(f"{path}: neither a checkpoint folder nor a .gguf file")
    if (path / "adapter_config.json").is_file() and not (path / "config.json").exists():
        raise UserError(f"{path}: holds an adapter, not a model; give its base here (langwright.load opens both)")
    family, config, stored = read_config(path)
    if (head or stored) == "embedding":
        config = config.replace(pooling=read_pooling(path) or config.pooling)
    with open_weights(path) as weights:
        return _fill(family, config, head or stored, stored, weights, path, dtype, device, pack)


def read_config(folder: Path) -> tuple[Family, ModelConfig, HeadKind]:
    """The family, the configuration and the head that a checkpoint folder declares."""
    source = folder / "config.json"
    values = read_json_object(source)
    family = find_family(values, str(source))
    config = family.config_from_hf(values, str(source))
    return family, config, family.head_of(values) or default_head(config)


def read_pooling(folder: Path) -> Pooling | None:
    """How a folder of the sentence-transformers library pools; None for other folders.

    Raises `UserError` for a kind of pooling that there is no head for: another one would give other vectors.
    """
    source = folder / "1_Pooling" / "config.json"
    if not source.is_file():
        return None
    chosen = sorted(
        key for key, value in read_json_object(source).items() if key.startswith("pooling_mode") and value is True
    )
    kinds: dict[tuple[str, ...], Pooling] = {(f"pooling_mode_{word}",): how for how, word in POOLING_WORDS.items()}
    if tuple(chosen) not in kinds:
        raise UserError(
            f"{source}: pooling by {', '.join(chosen) or 'nothing'} is not supported (mean, cls and last are)"
        )
    return kinds[tuple(chosen)]


def _fill(
    family: Family,
    config: ModelConfig,
    head: HeadKind,
    stored: HeadKind,
    weights: Weights,
    path: Path,
    dtype: torch.dtype | None,
    device: torch.device | str,
    pack: Pack | None,
) -> Model:
    check_head(family, head, path)
    model = allocate_model(config, head)
    names = list(dict(model.named_parameters()))
    there = set(weights.names)
    rules = bind(family.rules + family.heads[head], config, names)
    bare = bool(family.prefix) and not any(name.startswith(family.prefix) for name in there)

    def stored_name(item: Rule) -> str:
        name = item.theirs.removeprefix(family.prefix) if bare else item.theirs
        older = [name.removesuffix(now) + before for now, before in family.older.items() if name.endswith(now)]
        return next((known for known in older if name not in there and known in there), name)

    missing = [item for item in rules if stored_name(item) not in there]
    fresh = [name for item in missing for name in item.ours]
    if lost := [name for name in fresh if not name.startswith("head.") or head == stored]:
        item = next(item for item in missing if lost[0] in item.ours)
        raise FormatError(f"{path}: tensor {stored_name(item)!r} is missing, and {family.name} models need it")
    known = {stored_name(item) for item in rules}
    refuse_unknown(there - known, family, path)
    if dtype is None:
        dtype = weights.tensor(stored_name(rules[0])).dtype

    def fetch(item: Rule) -> Tensor:
        return weights.tensor(stored_name(item))

    def shape_of(item: Rule) -> tuple[int, ...]:
        return weights.info(stored_name(item)).shape

    kept = [item for item in rules if item not in missing]
    return materialise(model, kept, shape_of, fetch, fresh, path, dtype, device, pack)
