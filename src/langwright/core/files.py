"""Files that are either wholly there or not there at all.

The commit protocol of a folder: unique temporary folder beside the target -> write -> fsync every file -> manifest with
SHA-256 last -> fsync the folder -> rename -> fsync the parent.
"""

import errno
import glob
import hashlib
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from langwright.core.errors import FormatError, UserError
from langwright.core.json_text import read_json_object, write_json

MANIFEST = "manifest.json"


def sha256(path: Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fsync(path: Path) -> None:
    """Flush a file or a folder to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _explain(error: OSError, target: Path, verb: str = "written") -> UserError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return UserError(f"{target}: the disk is full; free space or write elsewhere (nothing was left half-written)")
    if error.errno in (errno.EACCES, errno.EROFS, errno.EPERM):
        return UserError(f"{target}: cannot be {verb} ({error.strerror}); choose a place that you have the right to")
    return UserError(f"{target}: cannot be {verb}: {error.strerror or error}")


@contextmanager
def explained(target: Path, verb: str = "written") -> Iterator[None]:
    """Turn an `OSError` raised inside into one line for the user: ``target`` cannot be ``verb``."""
    try:
        yield
    except OSError as error:
        raise _explain(error, target, verb) from error


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write a file so that a reader sees the old content or the new, never a part; raises `UserError`."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.tmp")
    with explained(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with temporary.open("wb") as file:
                file.write(content.encode("utf-8") if isinstance(content, str) else content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
            fsync(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path to write a large file at; on success it becomes ``path``, on failure it is removed.

    It has the suffix of ``path``. Raises `UserError` when the disk is full or the place cannot be written.
    """
    temporary = path.with_name(f".{path.stem}.{uuid.uuid4().hex[:12]}.tmp{path.suffix}")
    with explained(path):
        try:
            yield temporary
            fsync(temporary)
            os.replace(temporary, path)
            fsync(path.parent)
        except UserError as error:
            error.args = (str(error).replace(str(temporary), str(path)),)
            raise
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def committed_folder(target: Path, *, manifest: bool = True) -> Iterator[Path]:
    """Yield a temporary folder to fill; on success it becomes ``target`` in one rename, on failure it is removed.

    An existing ``target`` must be empty or hold a manifest, so that no folder of another origin is ever lost; it is
    moved aside first, deleted only after the new one is in place, and put back when anything fails. Raises `UserError`
    when the disk is full, the place cannot be written, or ``target`` is not ours to replace.
    """
    target = target.resolve()  # replaces what a link points to, and gives "." a name
    mark = uuid.uuid4().hex[:12]
    temporary = target.with_name(f".{target.name}.{mark}.tmp")
    aside = target.with_name(f".{target.name}.{mark}.old")
    try:
        with explained(target):
            recover_folder(target)
            _refuse_foreign(target)
            temporary.mkdir(parents=True)
        try:
            yield temporary
        except OSError as error:
            if not _is_about(error, temporary):
                raise
            raise _explain(error, target) from error
        except UserError as error:
            error.args = (str(error).replace(str(temporary), str(target)),)
            raise
        with explained(target):
            _seal(temporary, manifest)
            _swap(temporary, target, aside)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    for stale in _asides(target):
        shutil.rmtree(stale, ignore_errors=True)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other processes that ask for the same lock out of ``folder``; raises `UserError` when one is in there.

    The system lets go of the lock when the process ends, however it ends. Where there are no locks (Windows, some
    network file systems) nothing is held.
    """
    try:
        import fcntl
    except ImportError:
        yield
        return
    with explained(folder):
        handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"{folder}: another process is at work there; wait for it, or choose another folder"
            ) from None
        except OSError:
            pass
        yield
    finally:
        os.close(handle)


def recover_folder(target: Path) -> None:
    """Put back a committed folder that a crash caught between being moved aside and being replaced."""
    if not target.exists() and (asides := _asides(target)):
        os.rename(asides[-1], target)


def verify_folder(folder: Path) -> None:
    """Check a committed folder against its manifest; raises `FormatError` naming the first file that differs."""
    with explained(folder, "read"):
        recover_folder(folder)
        for name, entry in _read_manifest(folder).items():
            path = folder / name
            if "\0" in name or not path.resolve().is_relative_to(folder.resolve()):
                raise FormatError(f"{folder / MANIFEST}: {name!r:.200} points outside its folder")
            if not path.is_file():
                raise FormatError(f"{path}: is named in the manifest and missing")
            if not isinstance(entry, dict):
                raise FormatError(f"{folder / MANIFEST}: says nothing of {name!r:.200}")
            if path.stat().st_size != entry.get("bytes") or sha256(path) != entry.get("sha256"):
                raise FormatError(f"{path}: does not match its manifest; the file is damaged")


def _seal(folder: Path, manifest: bool) -> None:
    """Flush every file, then write what they are, then flush every folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / MANIFEST)
    for path in files:
        fsync(path)
    if manifest:
        entries = {
            path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": sha256(path)}
            for path in files
        }
        (folder / MANIFEST).write_text(write_json({"files": entries}), encoding="utf-8")
        fsync(folder / MANIFEST)
    for below in sorted((path for path in folder.rglob("*") if path.is_dir()), reverse=True):
        fsync(below)
    fsync(folder)


def _swap(temporary: Path, target: Path, aside: Path) -> None:
    try:
        if target.exists():
            os.rename(target, aside)
        os.rename(temporary, target)
        fsync(target.parent)
    except BaseException:
        if not temporary.exists():
            os.rename(target, temporary)
        if aside.exists():
            os.rename(aside, target)
        raise


def _asides(target: Path) -> list[Path]:
    return sorted(target.parent.glob(f".{glob.escape(target.name)}.*.old"))


def _refuse_foreign(target: Path) -> None:
    if target.exists() and not target.is_dir():
        raise UserError(f"{target}: is a file; choose a folder")
    if target.is_dir() and any(target.iterdir()):
        try:
            _read_manifest(target)
        except UserError:
            raise UserError(f"{target}: holds files that Langwright did not write; choose another folder") from None


def _read_manifest(folder: Path) -> dict[str, Any]:
    manifest = folder / MANIFEST
    if not manifest.is_file():
        raise FormatError(f"{folder}: not a committed folder ({MANIFEST} is missing)")
    entries = read_json_object(manifest).get("files")
    if not isinstance(entries, dict):
        raise FormatError(f"{manifest}: holds no list of files")
    return entries


def _is_about(error: OSError, folder: Path) -> bool:
    """Whether an error concerns ``folder`` or its disk, and not something else that the code inside does."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
        return True
    return error.filename is not None and Path(os.fsdecode(error.filename)).is_relative_to(folder)
