"""Opening a tokenizer: a Hugging Face folder, a tokenizer.json, older vocabulary files, or a GGUF file."""

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import tokenizers

from langwright.core.errors import FormatError, UserError
from langwright.core.gguf_file import GgufFile
from langwright.core.json_text import read_json_object
from langwright.tokenizer.gguf import tokenizer_from_gguf
from langwright.tokenizer.tokenizer import NAMED_TEMPLATES, ROLES, Tokenizer
from langwright.tokenizer.vocabulary import byte_level_from_files, read_text, word_pieces_from_file

MAX_ID = 1 << 22
MAX_TEMPLATE_BYTES = 1 << 20
SENTENCEPIECE = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model")
USUAL_ROLES = {
    "bos": ("<s>", "<bos>", "<|begin_of_text|>"),
    "eos": ("</s>", "<eos>", "<|end_of_text|>", "<|endoftext|>"),
    "pad": ("<pad>", "[PAD]", "<|pad|>", "<|padding|>"),
    "unk": ("<unk>", "[UNK]"),
    "mask": ("<mask>", "[MASK]"),
    "cls": ("[CLS]",),
    "sep": ("[SEP]",),
}
"""Spellings by which a special token's role is known where no settings file tells it."""

T = TypeVar("T")


def load_tokenizer(path: Path) -> Tokenizer:
    """Open a tokenizer: a folder, a tokenizer.json or a .gguf file.

    In a folder tokenizer.json counts before vocab.json + merges.txt, and those before vocab.txt. Raises `UserError`
    when nothing there can be read as a tokenizer, `FormatError` when a file is damaged or contradicts itself.
    """
    if path.suffix == ".gguf":
        with GgufFile.open(path) as file:
            return _blaming(path, lambda: tokenizer_from_gguf(file.metadata))
    if not path.exists():
        raise UserError(f"{path}: no such file or folder; give a folder, a tokenizer.json or a .gguf file")
    folder = path if path.is_dir() else path.parent
    settings = _read_settings(folder)
    if path.suffix == ".json" or (path / "tokenizer.json").is_file():
        source = path if path.suffix == ".json" else path / "tokenizer.json"
        backend = _blaming(source, lambda: _read_tokenizer_json(source))
    elif (path / "vocab.json").is_file() and (path / "merges.txt").is_file():
        source = path / "vocab.json"
        backend = _blaming(source, lambda: byte_level_from_files(source, path / "merges.txt", settings))
    elif (path / "vocab.txt").is_file():
        source = path / "vocab.txt"
        backend = _blaming(source, lambda: word_pieces_from_file(source, settings))
    elif path.suffix == ".model" or any((path / name).is_file() for name in SENTENCEPIECE):
        raise UserError(
            f"{path}: SentencePiece models are not read; with transformers, AutoTokenizer.from_pretrained(FOLDER)"
            ".save_pretrained(FOLDER) writes a tokenizer.json, and that is"
        )
    else:
        raise UserError(f"{path}: holds no tokenizer.json, no vocab.json with merges.txt and no vocab.txt")
    return _blaming(source, lambda: _with_settings(backend, settings, folder))


def holds_tokenizer(folder: Path) -> bool:
    """Whether ``folder`` has files of a tokenizer that `load_tokenizer` would open."""
    kinds = (("tokenizer.json",), ("vocab.json", "merges.txt"), ("vocab.txt",))
    return any(all((folder / name).is_file() for name in names) for names in kinds)


def _blaming(source: Path, make: Callable[[], T]) -> T:
    """What ``make`` returns; its errors name ``source``. The library raises plain exceptions and Rust panics."""
    try:
        return make()
    except UserError as error:
        raise type(error)(str(error) if str(source.parent) in str(error) else f"{source}: {error}") from None
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        raise FormatError(
            f"{source}: not a usable tokenizer: {(str(error) or repr(error)).splitlines()[0]:.200}"
        ) from None


def _read_tokenizer_json(path: Path) -> tokenizers.Tokenizer:
    document = read_json_object(path)
    model, added = document.get("model"), document.get("added_tokens", [])
    if not isinstance(model, dict) or not isinstance(added, list):
        raise FormatError(f"{path}: not a tokenizer.json (it has no model)")
    vocab = model.get("vocab")
    ids = (
        list(vocab.values()) if isinstance(vocab, dict) else list(range(len(vocab))) if isinstance(vocab, list) else []
    )
    if not ids:
        raise FormatError(f"{path}: the vocabulary is empty or missing")
    _check_ids(path, ids)
    if not all(isinstance(token, dict) and isinstance(token.get("content"), str) for token in added):
        raise FormatError(f"{path}: added_tokens should be a list of tokens")
    _check_ids(path, [token.get("id") for token in added])
    backend = tokenizers.Tokenizer.from_file(str(path))
    for token in added:
        if backend.token_to_id(token["content"]) != token["id"]:
            raise FormatError(f"{path}: the added token {token['content']!r:.60} cannot have the id {token['id']}")
    return backend


def _check_ids(path: Path, ids: Iterable[Any]) -> None:
    ids = list(ids)
    if wrong := [index for index in ids if not isinstance(index, int) or not 0 <= index < MAX_ID]:
        raise FormatError(f"{path}: {wrong[0]!r:.60} is not a token id")
    if len(set(ids)) < len(ids):
        raise FormatError(f"{path}: two tokens have the same id")


def _read_settings(folder: Path) -> dict[str, Any]:
    """tokenizer_config.json, over special_tokens_map.json, with the ids of generation_config.json's EOS."""
    settings: dict[str, Any] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        if (folder / name).is_file():
            settings |= read_json_object(folder / name)
    if (folder / "generation_config.json").is_file():
        settings["eos_token_id"] = read_json_object(folder / "generation_config.json").get("eos_token_id")
    return settings


def _with_settings(backend: tokenizers.Tokenizer, settings: Mapping[str, Any], folder: Path) -> Tokenizer:
    _add_declared_tokens(backend, settings.get("added_tokens_decoder"))
    templates = _read_templates(settings.get("chat_template"), folder)
    length = settings.get("model_max_length")
    ends = settings.get("eos_token_id")
    ends = ends if isinstance(ends, list) else [] if ends is None else [ends]
    _check_ids(folder / "generation_config.json", ends)
    return Tokenizer(
        backend,
        roles=_find_roles(backend, settings),
        eos_ids=ends,
        chat_template=templates.pop("default", None),
        named_templates=templates,
        max_length=int(length) if isinstance(length, int | float) and 0 < length < 1e9 else None,
    )


def _add_declared_tokens(backend: tokenizers.Tokenizer, declared: Any) -> None:
    """Tokens that tokenizer_config.json declares and the vocabulary file lacks, at the ids it gives them."""
    if not isinstance(declared, dict):
        return
    known = {token.content for token in backend.get_added_tokens_decoder().values()}
    for index, token in sorted((int(index), token) for index, token in declared.items()):
        if token["content"] not in known:
            flags = {
                name: bool(token.get(name)) for name in ("lstrip", "rstrip", "single_word", "normalized", "special")
            }
            backend.add_tokens([tokenizers.AddedToken(token["content"], **flags)])
        if backend.token_to_id(token["content"]) != index:
            raise FormatError(
                f"tokenizer_config.json gives {token['content']!r:.60} the id {index}, which is not its own"
            )


def _find_roles(backend: tokenizers.Tokenizer, settings: Mapping[str, Any]) -> dict[str, str]:
    roles = {}
    for role in ROLES:
        token = settings.get(f"{role}_token")
        if isinstance(token, dict):
            token = token.get("content")
        if isinstance(token, str):
            roles[role] = token
    if any(f"{role}_token" in settings for role in ROLES):
        return roles
    special = {token.content for token in backend.get_added_tokens_decoder().values() if token.special}
    for role, usual in USUAL_ROLES.items():
        if found := [token for token in usual if token in special]:
            roles[role] = found[0]
    return roles


def _read_templates(given: Any, folder: Path) -> dict[str, str]:
    """Chat templates by name; files in the folder count before tokenizer_config.json."""
    templates: dict[str, str] = {}
    if isinstance(given, str):
        templates["default"] = given
    elif isinstance(given, list):
        templates = {entry["name"]: entry["template"] for entry in given}
    if (folder / "chat_template.jinja").is_file():
        templates["default"] = read_text(folder / "chat_template.jinja", MAX_TEMPLATE_BYTES)
    for path in sorted((folder / NAMED_TEMPLATES).glob("*.jinja")):
        templates[path.stem] = read_text(path, MAX_TEMPLATE_BYTES)
    if wrong := [name for name in templates if not re.fullmatch(r"[\w-]{1,64}", name)]:
        raise FormatError(f"the chat template name {wrong[0]!r:.80} is not a plain word")  # it becomes a file name
    return templates
