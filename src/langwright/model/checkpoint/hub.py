"""From what a user types to a folder or a ``.gguf`` file on this machine."""

import difflib
import os
import re
from pathlib import Path

from langwright.core.errors import UserError
from langwright.core.safetensors_file import PICKLES, pickle_refusal
from langwright.model.checkpoint.catalogue import Progress, list_models, pull

# What a checkpoint is made of. Pickle is not fetched, nor the copies that a repository keeps for other programs.
PATTERNS = [
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "model-*-of-*.safetensors",
    "model.safetensors.index.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "modules.json",
    "sentence_bert_config.json",
    "1_Pooling/config.json",
    "adapter_config.json",
    "adapter_model.safetensors",
]
_REPOSITORY = re.compile(r"[\w.\-]+/[\w.\-]+", re.ASCII)


def resolve(ref: str, progress: Progress | None = None) -> Path:
    """The checkpoint folder or ``.gguf`` file that ``ref`` means, fetched first where needed.

    In this order: a path that exists (of a training run's folder, its ``last``), a name of the catalogue, an
    ``org/name`` of the Hugging Face Hub (``org/name@revision`` pins it). Raises `UserError` with names that come near.
    """
    path = os.path.expanduser(ref)
    if os.path.isdir(path):
        last = Path(path, "last")
        return last if last.exists() and not Path(path, "config.json").exists() else Path(path)
    if os.path.isfile(path):
        if path.endswith(".gguf"):
            return Path(path)
        if path.endswith(PICKLES):
            raise pickle_refusal(Path(path))
        raise UserError(f"{ref}: not a model; give a .gguf file or the folder that holds config.json")
    names = [entry.name for entry in list_models()]
    if ref in names:
        return pull(ref, progress)
    repository, _, revision = ref.partition("@")
    if _REPOSITORY.fullmatch(repository):
        return hub_folder(repository, revision or None)
    near = difflib.get_close_matches(ref.lower(), names, n=3, cutoff=0.4) or names
    raise UserError(f"{ref}: no such file or folder here, and no such name; did you mean {' or '.join(near)}?")


def hub_folder(repo_id: str, revision: str | None = None) -> Path:
    """The local snapshot of a repository of the Hugging Face Hub, downloaded when it is not in the cache.

    ``HF_HOME`` and ``HF_HUB_OFFLINE`` are honoured, as huggingface_hub reads them. Raises `UserError` in one line.
    """
    from huggingface_hub import errors, snapshot_download

    where = f"{repo_id} on the Hugging Face Hub"
    try:
        folder = Path(snapshot_download(repo_id, revision=revision, allow_patterns=PATTERNS))
    except errors.GatedRepoError:
        raise UserError(f"{where}: accept its licence on its page there, then log in with: hf auth login") from None
    except errors.RevisionNotFoundError:
        raise UserError(f"{where}: has no revision {revision!r}") from None
    except errors.RepositoryNotFoundError:
        raise UserError(
            f"{where}: no such repository, nor a folder of that name here (if private: hf auth login)"
        ) from None
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled):
        raise UserError(
            f"{where}: not on this machine (nor a folder of that name), and the Hub cannot be reached; "
            "try again with a connection and without HF_HUB_OFFLINE"
        ) from None
    except Exception as error:  # the library's other errors share no base, and change from version to version
        raise UserError(f"{where}: cannot be fetched: {' '.join(str(error).split()):.300}") from error
    if not any(folder.glob("*model*.safetensors")):
        raise UserError(f"{where}: has no safetensors weights (pickle is never loaded); choose another repository")
    return folder
