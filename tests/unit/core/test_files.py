"""Files and folders are wholly there or not there at all, whatever breaks at whatever step."""

import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from langwright.core.errors import FormatError, UserError
from langwright.core.files import MANIFEST, committed_folder, explained, sha256, verify_folder, write_atomic


def fill(target: Path, text: str = "new") -> None:
    with committed_folder(target) as folder:
        (folder / "a.txt").write_text(text)
        (folder / "below").mkdir()
        (folder / "below" / "b.txt").write_text(text * 2)


def content(target: Path) -> str:
    verify_folder(target)
    return (target / "a.txt").read_text()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


class Broken:
    """Replaces a function of `os`: the ``nth`` call raises, the others pass."""

    def __init__(self, real: Callable[..., Any], nth: int, error: BaseException):
        self.real, self.nth, self.error = real, nth, error
        self.calls = 0

    def __call__(self, *args: Any) -> Any:
        self.calls += 1
        if self.calls == self.nth:
            raise self.error
        return self.real(*args)


# write_atomic


@pytest.mark.parametrize("text", ["plain", "héllo 你好", b"\0\xff"])
def test_write_atomic_makes_folders_and_replaces(tmp_path: Path, text: str | bytes) -> None:
    path = tmp_path / "new" / "file"
    write_atomic(path, "old")
    write_atomic(path, text)
    assert path.read_bytes() == (text.encode() if isinstance(text, str) else text)
    assert names(path.parent) == ["file"]


@pytest.mark.parametrize("function", ["fsync", "replace"])
def test_write_atomic_keeps_the_old_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: str) -> None:
    path = tmp_path / "file"
    write_atomic(path, "old")
    monkeypatch.setattr(
        os, function, Broken(getattr(os, function), 1, OSError(errno.ENOSPC, "No space left on device"))
    )
    with pytest.raises(UserError, match=r"file: the disk is full; free"):
        write_atomic(path, "new")
    assert path.read_text() == "old"
    assert names(tmp_path) == ["file"]


def test_write_atomic_explains_what_is_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        write_atomic(tmp_path / "file" / "below", "")
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match="folder: cannot be written"):
        write_atomic(tmp_path / "folder", "")
    assert names(tmp_path) == ["file", "folder"]


@pytest.mark.parametrize(
    ("code", "what"),
    [(errno.ENOSPC, "disk is full"), (errno.EDQUOT, "disk is full"), (errno.EROFS, "right to"), (errno.EIO, "Input")],
)
def test_explained_names_the_target(tmp_path: Path, code: int, what: str) -> None:
    with pytest.raises(UserError, match=what) as caught, explained(tmp_path):
        raise OSError(code, os.strerror(code))
    assert str(tmp_path) in str(caught.value)
    with pytest.raises(UserError, match="cannot be read"), explained(tmp_path, "read"):
        raise OSError("no number")


# committed_folder


def test_a_folder_appears_whole_with_its_manifest(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "target"
    with committed_folder(target) as folder:
        (folder / "a.txt").write_text("a")
        (folder / MANIFEST).write_text("not ours")
        assert not target.exists()
        assert folder.parent == target.parent  # one disk, so that the rename is atomic
    verify_folder(target)
    files = json.loads((target / MANIFEST).read_text())["files"]
    assert files == {"a.txt": {"bytes": 1, "sha256": sha256(target / "a.txt")}}
    assert names(target.parent) == ["target"]


def test_without_a_manifest(tmp_path: Path) -> None:
    with committed_folder(tmp_path / "target", manifest=False) as folder:
        (folder / "a.txt").write_text("a")
    assert names(tmp_path / "target") == ["a.txt"]


def test_a_folder_of_ours_or_an_empty_one_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "target").mkdir()
    for text in ("one", "two"):
        fill(tmp_path / "target", text)
        assert content(tmp_path / "target") == text
    assert names(tmp_path) == ["target"]


@pytest.mark.parametrize("manifest", [None, "{}", "[]", "broken", '{"manifest_version": 3}'])
def test_a_folder_of_another_origin_is_never_replaced(tmp_path: Path, manifest: str | None) -> None:
    """`--out .` must not cost anyone their documents; a web project has a manifest.json too."""
    target = tmp_path / "documents"
    target.mkdir()
    (target / "thesis.txt").write_text("years of work")
    if manifest is not None:
        (target / MANIFEST).write_text(manifest)
    with pytest.raises(UserError, match="holds files that Langwright did not write; choose another folder"):
        fill(target)
    assert (target / "thesis.txt").read_text() == "years of work"
    assert names(tmp_path) == ["documents"]


def test_a_file_is_never_replaced_by_a_folder(tmp_path: Path) -> None:
    (tmp_path / "target").write_text("a file")
    with pytest.raises(UserError, match="is a file; choose a folder"):
        fill(tmp_path / "target")
    assert (tmp_path / "target").read_text() == "a file"


def test_the_working_folder_and_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "real").mkdir()
    os.symlink("real", tmp_path / "link")
    fill(tmp_path / "link", "through the link")
    assert content(tmp_path / "real") == "through the link"
    assert (tmp_path / "link").is_symlink()
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    fill(Path(), "here")
    assert content(tmp_path / "here") == "here"


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("existing", [False, True])
@pytest.mark.parametrize(("function", "count"), [("fsync", 6), ("rename", 2)])
def test_a_failure_at_any_step_changes_nothing(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    function: str,
    count: int,
    existing: bool,
    error: BaseException,
) -> None:
    target = tmp_path / "target"
    real = getattr(os, function)
    if existing:
        fill(target, "old")
    steps = count if existing or function == "fsync" else 1
    for step in range(1, steps + 1):
        monkeypatch.setattr(os, function, Broken(real, step, error))
        with pytest.raises((UserError, KeyboardInterrupt)):
            fill(target)
        assert names(tmp_path) == (["target"] if existing else [])
        assert not existing or content(target) == "old"
    last = Broken(real, steps + 1, error)
    monkeypatch.setattr(os, function, last)
    fill(target)
    assert last.calls == steps, "this test must break every step there is"
    assert content(target) == "new"


def test_what_the_code_inside_raises(tmp_path: Path) -> None:
    target = tmp_path / "target"
    with pytest.raises(ZeroDivisionError), committed_folder(target):
        raise ZeroDivisionError
    with pytest.raises(ConnectionError), committed_folder(target):  # not about this folder: not explained as if it were
        raise ConnectionError("the network")
    with pytest.raises(FileNotFoundError), committed_folder(target):
        (tmp_path / "absent input").read_bytes()
    with pytest.raises(UserError, match="target: the disk is full"), committed_folder(target):
        raise OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(UserError, match="target: cannot be written: No such file"), committed_folder(target) as folder:
        (folder / "absent" / "file").write_text("")
    with pytest.raises(UserError, match=r"target/x+: cannot be written"), committed_folder(target) as folder:
        write_atomic(folder / ("x" * 300), "")
    assert names(tmp_path) == []


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        fill(tmp_path / "file" / "target")


@pytest.mark.parametrize("step", [1, 2, 3])
def test_a_killed_process_loses_nothing(tmp_path: Path, step: int) -> None:
    """The process ends at a rename (1: aside, 2: into place) or at the last flush, with no chance to tidy."""
    target = tmp_path / "target"
    fill(target, "old")
    script = f"""
import os, sys
from pathlib import Path
from langwright.core import files
real, calls = os.rename, 0
def rename(*args):
    global calls
    calls += 1
    if calls == {step}:
        os._exit(9)
    real(*args)
os.rename = rename
fsync = files.fsync
files.fsync = lambda path: os._exit(9) if {step} == 3 and calls == 2 else fsync(path)
with files.committed_folder(Path(sys.argv[1])) as folder:
    (folder / "a.txt").write_text("new")
"""
    assert subprocess.run([sys.executable, "-c", script, str(target)], check=False).returncode == 9
    assert content(target) == ("new" if step == 3 else "old")
    fill(target, "next")
    assert content(target) == "next"
    assert not list(tmp_path.glob(".target.*.old"))


# verify_folder


def test_verify_finds_a_flipped_byte_and_a_missing_file(tmp_path: Path) -> None:
    target = tmp_path / "target"
    fill(target)
    path = target / "below" / "b.txt"
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)
    with pytest.raises(FormatError, match=r"b\.txt: does not match its manifest"):
        verify_folder(target)
    path.write_bytes(raw[:-1])
    with pytest.raises(FormatError, match=r"b\.txt: does not match its manifest"):
        verify_folder(target)
    path.unlink()
    with pytest.raises(FormatError, match=r"b\.txt: is named in the manifest and missing"):
        verify_folder(target)


@pytest.mark.parametrize(
    ("manifest", "what"),
    [
        ('{"files": {"../outside": {"bytes": 1, "sha256": ""}}}', "points outside"),
        ('{"files": {"/etc/passwd": {"bytes": 1, "sha256": ""}}}', "points outside"),
        ('{"files": {"link/outside": {"bytes": 1, "sha256": ""}}}', "points outside"),
        ('{"files": {"a\\u0000b": {"bytes": 1, "sha256": ""}}}', "points outside"),
        ('{"files": {"a.txt": 7}}', "says nothing of 'a.txt'"),
        ('{"files": {"a.txt": {}}}', "does not match"),
        ('{"files": {"%s": {}}}' % ("x" * 300), "cannot be read: File name too long"),
        ('{"files": []}', "no list of files"),
        ("{}", "no list of files"),
        ('{"files": {}, "files": {}}', "stands twice"),
    ],
)
def test_verify_believes_no_manifest(tmp_path: Path, manifest: str, what: str) -> None:
    target = tmp_path / "target"
    fill(target)
    (tmp_path / "outside").write_text("x")
    os.symlink(tmp_path, target / "link")
    (target / MANIFEST).write_text(manifest)
    with pytest.raises(UserError, match=what):
        verify_folder(target)


def test_verify_wants_a_committed_folder(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "absent"):
        with pytest.raises(FormatError, match="not a committed folder"):
            verify_folder(folder)
