"""From paths to documents: which files of a folder hold text, and the stream of what they hold."""

import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from langwright.core.errors import UserError
from langwright.core.files import explained, sha256
from langwright.data.description import SourceEntry
from langwright.data.formats import PACKINGS, Document, SourceFile, kind_of, read_file

__all__ = ["Document", "Found", "describe_sources", "find_files", "read_documents"]

FORMATS = (".txt", ".md", ".jsonl", ".parquet")
LANGUAGES = {
    ".asm": "assembly", ".awk": "awk", ".bash": "shell", ".c": "c", ".cc": "c++", ".clj": "clojure", ".cmake": "cmake",
    ".cpp": "c++", ".cs": "c#", ".css": "css", ".cu": "cuda", ".cxx": "c++", ".dart": "dart", ".el": "emacs-lisp",
    ".erl": "erlang", ".ex": "elixir", ".f90": "fortran", ".go": "go", ".h": "c", ".hpp": "c++", ".hs": "haskell",
    ".html": "html", ".java": "java", ".jl": "julia", ".js": "javascript", ".jsx": "javascript", ".kt": "kotlin",
    ".lisp": "lisp", ".lua": "lua", ".m": "objective-c", ".mjs": "javascript", ".ml": "ocaml", ".nim": "nim",
    ".php": "php", ".pl": "perl", ".proto": "protobuf", ".py": "python", ".pyi": "python", ".r": "r", ".rb": "ruby",
    ".rs": "rust", ".rst": "restructuredtext", ".s": "assembly", ".scala": "scala", ".scm": "scheme", ".sh": "shell",
    ".sql": "sql", ".swift": "swift", ".tex": "tex", ".toml": "toml", ".ts": "typescript", ".tsx": "typescript",
    ".v": "verilog", ".vue": "vue", ".yaml": "yaml", ".yml": "yaml", ".zig": "zig",
}  # fmt: skip
NAMES = {"Dockerfile": "dockerfile", "Makefile": "makefile", "CMakeLists.txt": "cmake"}
JUNK_FOLDERS = frozenset({"__pycache__", "node_modules", "bower_components", "site-packages"})


@dataclass(frozen=True, slots=True)
class Found:
    """The files that the paths stand for, path by path, and what was passed over and why."""

    files: dict[Path, list[SourceFile]]
    skipped: Counter[str] = field(default_factory=Counter)


def read_documents(
    paths: Iterable[str | Path],
    *,
    text_field: str = "text",
    follow_links: bool = False,
    exclude: Path | None = None,
    skipped: Counter[str] | None = None,
) -> Iterator[Document]:
    """Stream the documents of files and folders, in the order given, folders sorted by name.

    A .txt, .md or source-code file is one document (a file of more than 32 MiB is cut at line ends into several); a row
    of .jsonl or .parquet is one, its text in ``text_field``. Everything but .parquet may be packed as .gz or .zst.
    Text is taken as it is, apart from a byte-order mark. What was passed over is counted by reason in ``skipped``.

    Raises `UserError` when a path is missing, text is not UTF-8, a field is absent or there is no text at all, and
    `FormatError` when a file is damaged.
    """
    paths = [Path(path) for path in paths]
    found = find_files(paths, follow_links=follow_links, exclude=exclude)
    tally: Counter[str] = Counter() if skipped is None else skipped
    tally.update(found.skipped)
    empty = True
    for files in found.files.values():
        for file in files:
            for document in read_file(file, text_field, tally):
                empty = False
                yield document
    if empty:
        why = ", ".join(f"{count} {reason}" for reason, count in sorted(tally.items()))
        why = f" (passed over: {why})" if why else ""
        named = ", ".join(str(path) for path in paths[:3]) + (" ..." if len(paths) > 3 else "")
        raise UserError(f"{named or 'input'}: holds no text{why}; give files with text")


def find_files(paths: Iterable[Path], *, follow_links: bool = False, exclude: Path | None = None) -> Found:
    """The files to read for each path; raises `UserError` for a path that is missing or of a kind that is not read.

    In folders, hidden and unknown files, symbolic links (unless ``follow_links``) and the folder ``exclude`` are passed
    over and counted. A file that was met already is not read twice.
    """
    found = Found({})
    seen: set[Path] = set()
    for path in paths:
        with explained(path, "read"):
            is_folder, is_file, exists = path.is_dir(), path.is_file(), path.exists()
        if is_folder:
            candidates = _walk(path, follow_links, exclude.resolve() if exclude else None, found.skipped)
        elif is_file:
            candidates = iter([_named_file(path)])
        elif exists:
            raise UserError(f"{path}: not a regular file, and the text is read more than once; save it to a file")
        else:
            raise UserError(f"{path}: no such file or folder; check the path")
        files = found.files.setdefault(path, [])
        for file in candidates:
            real = file.path.resolve()
            if real in seen:
                found.skipped["met twice"] += 1
            else:
                seen.add(real)
                files.append(file)
    return found


def describe_sources(found: Found, role: Literal["input", "val"]) -> list[SourceEntry]:
    """Size and SHA-256 of each path: of the file's bytes, or for a folder of its files' names and SHA-256s in order."""
    sources = []
    for path, files in found.files.items():
        total = sum(file.path.stat().st_size for file in files)
        if path.is_file():
            digest = sha256(path)
        else:
            lines = (f"{file.path.relative_to(path).as_posix()} {sha256(file.path)}\n" for file in files)
            digest = hashlib.sha256("".join(lines).encode("utf-8", "surrogateescape")).hexdigest()
        sources.append(SourceEntry(path=str(path), role=role, files=len(files), bytes=total, sha256=digest))
    return sources


def _named_file(path: Path) -> SourceFile:
    if not _is_known(path):
        raise UserError(
            f"{path}: not a kind of file that is read; give {', '.join(FORMATS)} (packed as .gz or .zst), "
            "source code, or a folder of these"
        )
    return SourceFile(path, _language(path))


def _is_known(path: Path) -> bool:
    if kind_of(path) == ".parquet":
        return path.suffix.lower() not in PACKINGS
    return kind_of(path) in FORMATS or _language(path) is not None


def _language(path: Path) -> str | None:
    return NAMES.get(path.name) or LANGUAGES.get(kind_of(path))


def _walk(folder: Path, follow_links: bool, exclude: Path | None, skipped: Counter[str]) -> Iterator[SourceFile]:
    entered = {folder.resolve()}
    for place, folders, names in os.walk(folder, followlinks=follow_links, onerror=_raise):
        here = Path(place)
        keep = []
        for name in sorted(folders):
            below = here / name
            reason = _folder_fault(below, follow_links, exclude)
            if reason is None and follow_links and below.is_symlink() and below.resolve() in entered:
                reason = "symbolic link"  # a loop, or a folder that is read anyway
            if reason:
                skipped[reason] += 1
            else:
                entered.add(below.resolve())
                keep.append(name)
        folders[:] = keep
        for name in sorted(names):
            reason = _file_fault(here / name, follow_links)
            if reason:
                skipped[reason] += 1
            else:
                yield SourceFile(here / name, _language(here / name), found=True)


def _raise(error: OSError) -> None:
    raise UserError(f"{error.filename}: cannot be read: {error.strerror}")


def _folder_fault(folder: Path, follow_links: bool, exclude: Path | None) -> str | None:
    """Why a folder is passed over, or None."""
    if folder.name.startswith("."):
        return "hidden"
    if folder.name in JUNK_FOLDERS or (folder / "pyvenv.cfg").exists():
        return "junk folder"
    if folder.is_symlink() and not follow_links:
        return "symbolic link"
    return "the output folder" if folder.resolve() == exclude else None


def _file_fault(file: Path, follow_links: bool) -> str | None:
    """Why a file met in a folder is passed over, or None."""
    if file.name.startswith("."):
        return "hidden"
    if file.is_symlink() and not follow_links:
        return "symbolic link"
    if not file.is_file():
        return "not a regular file"
    return None if _is_known(file) else "unknown kind"
