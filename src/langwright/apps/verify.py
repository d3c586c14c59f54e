"""Replaying a parity certificate through every way in which a model can be computed here."""

import io
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, redirect_stderr
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch

from langwright.core.errors import UserError
from langwright.core.files import MANIFEST, verify_folder
from langwright.core.gguf_file import GgufFile
from langwright.infer.certificate import (
    EXACT,
    Certificate,
    Comparison,
    certificate_path,
    certify,
    compare,
    encode_golden,
    read_certificate,
)
from langwright.infer.engines import Engine, Unavailable, open_llama_cpp, open_transformers, run_cached, run_whole
from langwright.infer.lm import LM, load
from langwright.model.adapters import has_adapters, quantise_base
from langwright.model.adapters.merge import fold
from langwright.model.adapters.opening import find_base, is_adapter
from langwright.model.checkpoint.hub import resolve

INT8, ROUNDED = 0.1, 0.1
"""Tolerances, as shares of the largest logit. ``INT8``: weights rounded to 255 levels a row. ``ROUNDED``: llama.cpp on
a file of 8 or 16 bits, which rounds what flows between the matrices too."""
LLAMA_CPP = 1e-3
"""llama.cpp on a float32 file: its activations come from tables of float16 in some families."""

Stage = Callable[[str], Any]
"""Makes a context manager that shows what is being done."""


@dataclass(frozen=True)
class Row:
    """One engine's verdict; ``difference`` is the largest of a logit and ``allowed`` what it may be."""

    engine: str
    verdict: Literal["ok", "FAILED", "skipped"]
    difference: float | None = None
    allowed: float | None = None
    token: str = ""
    """The first greedy or prompt token that differs."""
    place: str = ""
    """The first place in the model that differs."""
    note: str = ""


@dataclass(frozen=True)
class Report:
    """``certificate`` is the file that was replayed, None where this engine's own results of now were taken."""

    model: str
    certificate: Path | None
    rows: list[Row]

    @property
    def agrees(self) -> bool:
        """Whether nothing failed."""
        return all(row.verdict != "FAILED" for row in self.rows)

    def to_json(self) -> dict[str, Any]:
        """For programs."""
        path = None if self.certificate is None else str(self.certificate)
        rows = [asdict(row) | {"difference": _finite(row.difference)} for row in self.rows]
        return {"model": self.model, "certificate": path, "verified": self.agrees, "engines": rows}


def verify(ref: str, stage: Stage = lambda _: nullcontext()) -> Report:
    """Replay the certificate of ``ref``; without one, engines are compared with our own uncached forward of now.

    Everything is computed in float32 on the CPU; other engines where they are installed. Raises `UserError` for a model
    that cannot be opened, and a certificate that is damaged or another model's.
    """
    path = resolve(ref)
    file = certificate_path(path)
    rows: list[Row] = []
    if path.is_dir() and (path / MANIFEST).is_file():
        rows.append(_files(path))
    with stage("loading"):
        lm = load(path, device="cpu", dtype=torch.float32, fuse=False)
    known = read_certificate(file) if file.is_file() else None
    if known is None:
        with stage("computing the golden prompts"):
            certificate = certify(lm.model, lm.tokenizer)
    else:
        known.check_fits(lm.model, file)
        certificate = known
    room = max(len(golden.sequence) for golden in certificate.goldens)
    for name, tolerance, make in _engines(path, lm, room):
        with stage(name):
            rows.append(_row(name, tolerance, make, certificate, lm))
    return Report(ref, None if known is None else file, rows)


def _files(folder: Path) -> Row:
    try:
        verify_folder(folder)
    except UserError as error:
        return Row("files", "FAILED", note=str(error))
    return Row("files", "ok", note="as their manifest says")


def _engines(path: Path, lm: LM, room: int) -> Iterator[tuple[str, float, Callable[[], Engine]]]:
    """Name, tolerance and how to open, in an order that needs one model of ours in memory: it is changed in between."""
    model, adapter = lm.model, path if is_adapter(path) else None

    def ours(run: Callable[..., Any]) -> Engine:
        return Engine(partial(run, model), lambda prompt: encode_golden(prompt, lm.tokenizer, model))

    if has_adapters(model):
        yield "base and adapter", EXACT, lambda: ours(run_whole)
        fold(model)
    yield "merged" if adapter else "as loaded", EXACT, lambda: ours(run_whole)
    if model.head_kind == "causal_lm":
        yield "with cache", EXACT, lambda: ours(run_cached)
    base = path if adapter is None else find_base(adapter)
    yield "transformers" if adapter is None else "transformers + peft", EXACT, lambda: _theirs(base, model, adapter)
    if path.suffix == ".gguf":
        yield "llama.cpp", _llama_tolerance(path), lambda: open_llama_cpp(path, room)

    def quantised() -> Engine:
        quantise_base(model, "int8")
        return ours(run_whole)

    yield "int8", INT8, quantised


def _theirs(path: Path, model: Any, adapter: Path | None) -> Engine:
    try:
        return open_transformers(path, model, adapter)
    except (Unavailable, KeyboardInterrupt):
        raise
    except Exception as error:
        if path.suffix == ".gguf":  # of those it reads only some, and none of ours is lost thereby
            raise Unavailable(f"does not read this file: {_line(error)}") from None
        raise


def _llama_tolerance(path: Path) -> float:
    with GgufFile.open(path) as file:
        return LLAMA_CPP if {tensor.type for tensor in file.tensors.values()} == {"F32"} else ROUNDED


def _row(name: str, tolerance: float, make: Callable[[], Engine], certificate: Certificate, lm: LM) -> Row:
    try:
        with _quiet():
            engine = make()
            found = [
                compare(golden, engine.run(golden.sequence, len(golden.ids) - 1), certificate.places, tolerance)
                for golden in certificate.goldens
            ]
            wrong = _reading(engine, certificate, name)
    except Unavailable as reason:
        return Row(name, "skipped", note=str(reason))
    except UserError:
        raise
    except Exception as error:  # another program's, of whatever kind
        return Row(name, "FAILED", note=_line(error))
    return _judge(name, found, wrong)


def _judge(name: str, found: list[Comparison], wrong: str) -> Row:
    worst = max(found, key=lambda each: each.difference / each.allowed)
    failed = next((each for each in found if not each.agrees), None)
    agrees = failed is None and not wrong
    token, place = ("", "") if failed is None else (failed.token, failed.place)
    return Row(name, "ok" if agrees else "FAILED", worst.difference, worst.allowed, wrong or token, place)


def _reading(engine: Engine, certificate: Certificate, name: str) -> str:
    """The first token of a prompt that the engine's own tokenizer or template makes otherwise."""
    for number, golden in enumerate(certificate.goldens):
        if engine.encode is None or (name == "llama.cpp" and golden.text is None):
            continue
        found = engine.encode(golden.prompt)
        if found[: len(golden.ids)] == list(golden.ids):
            continue
        pairs = zip([*found, None], golden.ids, strict=False)
        at, got = next((at, one) for at, (one, other) in enumerate(pairs) if one != other)
        return f"prompt {number}, token {at} is read as {got}, not {golden.ids[at]}"
    return ""


@contextmanager
def _quiet() -> Iterator[None]:
    """Other programs' warnings and progress bars are not ours to show."""
    with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split()):.200}"


def _finite(value: float | None) -> float | None:
    return value if value is not None and abs(value) < float("inf") else None
