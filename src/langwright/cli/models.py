"""``langwright models``: what can be fetched by name."""

from typing import Literal

from pydantic_settings import CliPositionalArg
from rich.console import Console
from rich.table import Table

from langwright.cli.command import Command, Json, print_json, settings
from langwright.cli.progress import byte_progress
from langwright.core.errors import UserError
from langwright.model.checkpoint.catalogue import list_models, pull
from langwright.model.checkpoint.hub import resolve


class Models(Command):
    """List the models that are known by name, or fetch one so that it works offline."""

    model_config = settings("models")

    action: CliPositionalArg[Literal["list", "pull"]]
    """list, or pull."""
    name: CliPositionalArg[str | None] = None
    """With pull: a name from the list, or a hub id such as org/name."""
    json_output: Json = False
    """Print JSON."""


def run(argv: list[str]) -> int:
    """The verb."""
    command = Models.read(argv)
    if command.action == "list":
        return show(command.json_output)
    if command.name is None:
        raise UserError("langwright models pull: name the model to fetch; `langwright models list` shows them")
    names = {entry.name for entry in list_models()}
    with byte_progress() as progress:
        path = (
            pull(command.name, progress=lambda done, total: progress(f"fetching {command.name}", done, total or 0))
            if command.name in names
            else resolve(command.name)
        )
    if command.json_output:
        print_json({"name": command.name, "path": str(path)})
    else:
        print(f"{command.name} is at {path}")
    return 0


def show(as_json: bool) -> int:
    """The catalogue, as a table or as JSON."""
    entries = list_models()
    if as_json:
        print_json({"models": [entry.model_dump(mode="json") | {"installed": entry.installed} for entry in entries]})
        return 0
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("name", "kind", "parameters", "download", "licence", "here"):
        table.add_column(title, justify="right" if title in ("parameters", "download") else "left", no_wrap=True)
    for entry in entries:
        sizes = f"{entry.parameters / 1e6:.0f}M", f"{entry.bytes / 1e6:.0f} MB"
        table.add_row(entry.name, entry.kind, *sizes, entry.licence, "yes" if entry.installed else "no")
    Console().print(table)
    print("`langwright models pull NAME` fetches one; loading it by name does so too.")
    return 0
