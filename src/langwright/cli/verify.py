"""``langwright verify``: does every engine give what the model's certificate says?"""

from pydantic_settings import CliPositionalArg
from rich.console import Console
from rich.table import Table
from rich.text import Text

from langwright.apps.verify import Report, verify
from langwright.cli.command import Command, Json, print_json, settings

TITLES = ("engine", "max |logit difference|", "allowed", "first divergent token", "first divergent place", "verdict")
STYLES = {"ok": "green", "FAILED": "bold red", "skipped": "dim"}


class Verify(Command):
    """Replay a model's parity certificate: uncached, cached, merged, quantised, in transformers and llama.cpp.

    Exit code 1 when one of them gives something else. Without a certificate they are compared with each other.
    """

    model_config = settings("verify")

    model: CliPositionalArg[str]
    """The model: a folder, a .gguf file, a catalogue name or a hub id."""
    json_output: Json = False
    """Print one JSON object instead of a table."""


def run(argv: list[str]) -> int:
    """The verb."""
    command = Verify.read(argv)
    console = Console(stderr=True)
    report = verify(command.model, lambda what: console.status(what))
    if command.json_output:
        print_json(report.to_json())
    else:
        show(report)
    return 0 if report.agrees else 1


def show(report: Report) -> None:
    """A table."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for number, title in enumerate(TITLES):
        table.add_column(title, justify="right" if number in (1, 2) else "left", no_wrap=number == 0, overflow="fold")
    for row in report.rows:
        sizes = ("-" if size is None else f"{size:.2g}" for size in (row.difference, row.allowed))
        verdict = Text(row.verdict, STYLES[row.verdict])
        table.add_row(row.engine, *sizes, row.token or "-", row.place or "-", verdict)
    Console().print(table)
    for row in report.rows:
        if row.note:
            print(f"{row.engine}: {row.note}")
    if report.certificate is None:
        print("There is no certificate beside the model; engines were compared with this one, uncached, as it is now.")
    print("verified" if report.agrees else "NOT verified")
