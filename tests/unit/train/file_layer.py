"""A layer between a program and the file system that counts every change and lets a chosen one go wrong.

A change is one mkdir, rmdir, rename, replace, symlink, unlink, fsync, opening for writing, or write to a file. What is
to happen instead of change number ``nth`` (from 1) is one of `FAULTS`:

- ``kill``: the process ends there, as after kill -9; the first half of a write is done.
- ``power``: the process ends, and the disk forgets what nobody flushed: of what was written to a file since its last
  fsync half is gone, and renames in folders without an fsync since are undone. Deletions stay: the worst order.
- ``EIO``, ``ENOSPC``, ...: the change raises that `OSError` once; the first half of a write is done.
"""

import builtins
import errno
import io
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import pytest
import safetensors.torch

FAULTS = ("kill", "power", "EIO", "ENOSPC")
KILLED = 9
CHANGES = ("mkdir", "rmdir", "rename", "replace", "symlink", "unlink", "remove", "fsync")


class FileLayer:
    """Installed by `file_layer`; ``log`` has a line for every change, ``nth`` None lets all pass."""

    def __init__(self, nth: int | None, fault: str):
        self.nth, self.fault, self.log = nth, fault, list[str]()
        self._lock = threading.RLock()
        self._real: dict[str, Callable[..., Any]] = {name: getattr(os, name) for name in CHANGES}
        self._unflushed: dict[int, str] = {}  # inode: the path under which it was written
        self._safe: dict[int, int] = {}  # inode: bytes that a flush has made last
        self._undo: list[tuple[str, Callable[[], object]]] = []  # renames, with the folder whose fsync makes them last

    def changed(self, name: str, args: tuple[Any, ...]) -> bool:
        """Count a change; True when it is the one that goes wrong."""
        self.log.append(f"{name} {' '.join(str(arg) for arg in args)}")
        return len(self.log) == self.nth

    def fail(self) -> NoReturn:
        """What happens at the change that goes wrong."""
        if self.fault == "power":
            for _, undo in reversed(self._undo):
                undo()
            for inode, path in self._unflushed.items():
                if os.path.isfile(path) and os.stat(path).st_ino == inode:
                    os.truncate(path, (self._safe.get(inode, 0) + os.path.getsize(path)) // 2)
        if self.fault in ("kill", "power"):
            os._exit(KILLED)
        code = getattr(errno, self.fault)
        raise OSError(code, os.strerror(code))

    def call(self, name: str, *args: Any, **options: Any) -> Any:
        """Stands for ``os.name``."""
        with self._lock:
            if self.changed(name, args):
                self.fail()
            undo = self._undo_of(name, args) if name in ("rename", "replace", "symlink") else None
            result = self._real[name](*args, **options)
            if undo is not None:
                self._undo.append((os.path.dirname(os.fspath(args[1])), undo))
            if name in ("rename", "replace"):
                self._moved(*(os.fspath(arg) for arg in args))
            if name == "fsync":
                self._flushed(args[0])
            return result

    def open(self, file: Any, mode: str = "r", *args: Any, **options: Any) -> Any:
        """Stands for ``open``: what is opened for writing counts its writes."""
        if not set(mode) & set("wax+") or isinstance(file, int):
            return _open(file, mode, *args, **options)
        with self._lock:
            if self.changed(f"open[{mode}]", (file,)):
                self.fail()
            raw = _CountedFile(self, os.fspath(file), mode.replace("b", "").replace("t", ""))
        buffered = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
        if "b" in mode:
            return buffered
        keys = ("encoding", "errors", "newline")
        given = dict(zip(keys, args[1:], strict=False)) | options
        return io.TextIOWrapper(buffered, **{key: given[key] for key in keys if key in given})

    def save_file(self, tensors: dict[str, Any], path: Any, metadata: dict[str, str] | None = None) -> None:
        """Stands for safetensors' ``save_file``, which writes where Python does not see it; the bytes are the same."""
        with self.open(path, "wb") as file:
            file.write(safetensors.torch.save(tensors, metadata))

    def wrote(self, file: io.FileIO) -> None:
        """The file has content that may be lost."""
        self._unflushed[os.fstat(file.fileno()).st_ino] = str(file.name)

    def _flushed(self, handle: int) -> None:
        file = os.fstat(handle)
        self._unflushed.pop(file.st_ino, None)
        self._safe[file.st_ino] = file.st_size
        folder = os.readlink(f"/proc/self/fd/{handle}")
        self._undo = [(where, undo) for where, undo in self._undo if os.path.realpath(where) != folder]

    def _moved(self, source: str, target: str) -> None:
        for inode, path in self._unflushed.items():
            if path == source or path.startswith(source + "/"):
                self._unflushed[inode] = target + path[len(source) :]

    def _undo_of(self, name: str, args: tuple[Any, ...]) -> Callable[[], object]:
        source, target = (os.fspath(arg) for arg in args[:2])
        link = os.readlink(target) if os.path.islink(target) else None
        content = Path(target).read_bytes() if link is None and os.path.isfile(target) else None

        def undo() -> None:
            if not os.path.lexists(target):
                return  # deleted since
            if name == "symlink" or not os.path.isdir(os.path.dirname(source)):
                self._real["unlink"](target)
                return
            self._real["rename"](target, source)
            if link is not None:
                self._real["symlink"](link, target)
            elif content is not None:
                with _open(target, "wb") as file:
                    file.write(content)

        return undo


class _CountedFile(io.FileIO):
    def __init__(self, layer: FileLayer, path: str, mode: str):
        super().__init__(path, mode)
        self._layer = layer

    def write(self, data: Any) -> int:
        layer = self._layer
        with layer._lock:
            if layer.changed("write", (self.name, len(data))):
                super().write(memoryview(data)[: len(data) // 2])
                layer.wrote(self)
                layer.fail()
            layer.wrote(self)
            return super().write(data)


_open = builtins.open


@contextmanager
def file_layer(nth: int | None = None, fault: str = "kill") -> Iterator[FileLayer]:
    """Within the block all changes go through the layer."""
    layer = FileLayer(nth, fault)
    with pytest.MonkeyPatch.context() as patch:
        for name in CHANGES:
            patch.setattr(os, name, lambda *args, _name=name, **options: layer.call(_name, *args, **options))
        patch.setattr(io, "open", layer.open)
        patch.setattr(builtins, "open", layer.open)
        patch.setattr(safetensors.torch, "save_file", layer.save_file)
        yield layer


def in_child(work: Callable[[], object]) -> int:
    """Run ``work`` in a forked copy of this process, which may be killed; returns its exit code."""
    child = os.fork()
    if child == 0:
        try:
            work()
            os._exit(0)
        except BaseException:
            import traceback

            traceback.print_exc()
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
