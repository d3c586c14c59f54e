"""``langwright quickstart``: the first four minutes."""

import sys
from pathlib import Path
from typing import Literal

from rich.console import Console

from langwright.apps.quickstart import CORPORA, PRETRAINED, quickstart
from langwright.cli.command import Command, Json, print_json, settings
from langwright.train.interrupt import Interrupted


class Quickstart(Command):
    """Train a small model on text that ships with Langwright, then talk to a pretrained one."""

    model_config = settings("quickstart")

    out: Path = Path("runs/quickstart")
    """Folder for its data and model."""
    language: Literal["en", "zh"] = "en"
    """en: Shakespeare; zh: poems of the Tang dynasty."""
    json_output: Json = False
    """End with one JSON object instead of what to type next."""


def run(argv: list[str]) -> int:
    """The verb."""
    command = Quickstart.read(argv)
    console = Console(stderr=command.json_output, soft_wrap=True)

    def write(text: str) -> None:
        print(text, end="", flush=True, file=sys.stderr if command.json_output else sys.stdout)

    try:
        report = quickstart(command.out, command.language, console, write)
    except Interrupted as stop:
        console.print(str(stop), markup=False, highlight=False)
        return 130
    if command.json_output:
        print_json(vars(report) | {"checkpoint": str(report.checkpoint)})
        return 0
    console.rule(f"Done in {report.seconds:.0f} seconds. What next?", align="left")
    prompt = CORPORA[command.language].prompt.strip()
    steps = (
        (f"langwright generate {report.checkpoint} --prompt {prompt!r}", "your model goes on writing"),
        (f"langwright chat {PRETRAINED}", "talk to the pretrained one"),
        ("langwright prepare YOUR_TEXTS --out data/mine", "then langwright train laptop --data data/mine --out runs/1"),
    )
    for line, what in steps:
        console.print(f"  [bold]{line}[/]\n      {what}", highlight=False)
    return 0
