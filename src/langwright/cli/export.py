"""``langwright export``: a model as a Hugging Face folder, a GGUF file, an adapter alone, or for Ollama."""

from pathlib import Path

from pydantic import Field
from pydantic_settings import CliPositionalArg
from rich.console import Console

from langwright.apps.export import Exported, Format, export
from langwright.cli.command import Command, Json, print_json, settings
from langwright.model.checkpoint.gguf_save import Stored


class Export(Command):
    """Write a model for other programs. An adapter is merged into its base in float32, and the result is compared."""

    model_config = settings("export")

    model: CliPositionalArg[str]
    """The model: a folder (of a run, of an adapter), a .gguf file, a catalogue name or a hub id."""
    to: Path
    """Where to: a folder, or with --format gguf a file that ends in .gguf."""
    format: Format = "hf"
    """hf: a Hugging Face folder; gguf: a file for llama.cpp; adapter: an adapter alone, in PEFT's format; ollama: a
    GGUF file with a Modelfile."""
    dtype: Stored = "float32"
    """float32, float16, bfloat16, or for GGUF files q8_0."""
    force: bool = False
    """Replace what stands there."""
    max_difference: float | None = Field(default=None, ge=0)
    """How far a logit may be off, in merging and in writing; default: 1e-4 of the largest logit (sums in another order
    differ by 1e-5, mistakes by 1e-2), for 16 and 8 bits as much as their rounding explains."""
    json_output: Json = False
    """End with one JSON object."""


def run(argv: list[str]) -> int:
    """The verb."""
    command = Export.read(argv)
    console = Console(stderr=True)
    done = export(
        command.model,
        command.to,
        format=command.format,
        dtype=command.dtype,
        force=command.force,
        max_difference=command.max_difference,
        stage=lambda what: console.status(what),
    )
    if command.json_output:
        print_json(to_json(done))
        return 0
    if done.merge_difference is not None:
        print(
            f"merged in float32: max logit difference {done.merge_difference:.2g} between base + adapter and the result"
        )
    if done.format != "adapter":
        print(f"written as {done.dtype}: max logit difference {done.difference:.2g} (allowed {done.allowed:.2g})")
    for note in done.notes:
        print(note)
    file = done.path / "model.gguf" if done.format == "ollama" else done.path
    print(f"{done.format} export is in {done.path}; next: langwright verify {file}")
    return 0


def to_json(done: Exported) -> dict:
    """For programs."""
    return vars(done) | {"path": str(done.path)}
