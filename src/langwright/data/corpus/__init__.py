"""Two small public-domain corpora that ship in the package; `LICENSE.md` beside them says where they come from."""

from importlib.resources import files
from pathlib import Path

from langwright.core.errors import UserError

CORPORA = ("shakespeare", "tang_poems")


def corpus_path(name: str) -> Path:
    """The text file of a shipped corpus; raises `UserError` when there is none of that name."""
    if name not in CORPORA:
        raise UserError(f"no corpus named {name!r} ships with langwright; use one of {', '.join(CORPORA)}")
    return Path(str(files("langwright.data.corpus") / f"{name}.txt"))
