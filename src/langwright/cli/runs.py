"""``langwright runs``: what was trained, and how runs differ."""

from pathlib import Path

from pydantic_settings import CliPositionalArg
from rich.console import Console
from rich.table import Table
from rich.text import Text

from langwright.cli.command import Command, Json, print_json, settings
from langwright.core.errors import UserError
from langwright.core.files import write_atomic
from langwright.train.report.page import REPORT, distinct_names, render_comparison, write_report
from langwright.train.report.runs import Run, find_runs, read_run

ACTIONS = ("list", "report", "compare")
TITLES = ("run", "recipe", "size", "steps", "judged by", "tok/s", "began, UTC", "state")
NUMBERS = ("size", "steps", "tok/s")


class Runs(Command):
    """List the training runs in and below a folder; write the report of one; or compare several."""

    model_config = settings("runs")

    words: CliPositionalArg[tuple[str, ...]] = ()
    """[list] [FOLDER ...], report OUT, or compare A B [...]; without words the runs below this folder are listed."""
    out: Path | None = None
    """With compare: the HTML file to write (default: comparison.html here)."""
    json_output: Json = False
    """Print JSON."""


def run(argv: list[str]) -> int:
    """The verb."""
    command = Runs.read(argv)
    action, *words = command.words or ("list",)
    if action not in ACTIONS:
        action, words = "list", list(command.words)
    if command.out is not None and action != "compare":
        raise UserError("langwright runs: --out belongs to compare; a report is written into its run's folder")
    folders = [Path(word) for word in words]
    if action == "report":
        if len(folders) != 1:
            raise UserError("langwright runs report: give the folder of one run")
        path = write_report(folders[0])
        return tell({"report": str(path)}, f"the report is {path}", command.json_output)
    if action == "compare":
        return compare(folders, command.out or Path("comparison.html"), command.json_output)
    found = [read_run(path) for folder in folders or [Path()] for path in find_runs(folder)]
    if command.json_output:
        print_json({"runs": [each.summary() for each in found]})
    elif found:
        show(found)
        print(f"`langwright runs report RUN` writes RUN/{REPORT}; `langwright runs compare A B` draws A over B")
    else:
        print("no runs here; langwright train makes them")
    return 0


def compare(folders: list[Path], out: Path, as_json: bool) -> int:
    """Write the comparison of the runs in ``folders``."""
    if len(folders) < 2:
        raise UserError("langwright runs compare: give the folders of two runs or more")
    found = [read_run(folder) for folder in folders]
    write_atomic(out, render_comparison(found))
    if not as_json:
        show(found)
    summaries = [each.summary() for each in found]
    return tell({"comparison": str(out), "runs": summaries}, f"curves and differences are in {out}", as_json)


def show(runs: list[Run]) -> None:
    """A table."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in TITLES:
        short = title in ("run", "recipe")  # the others are numbers, of which no digit may be lost
        justify, overflow = "right" if title in NUMBERS else "left", "ellipsis" if short else "fold"
        table.add_column(title, justify=justify, no_wrap=not short, overflow=overflow, min_width=6 if short else None)
    for name, each in zip(distinct_names(runs), runs, strict=True):
        found = each.summary()
        size, judged, rate = found["parameters"], each.latest, found["tokens_per_second"]
        steps = f"{each.step:,}" + (f"/{each.max_steps:,}" if each.max_steps not in (None, each.step) else "")
        cells = (
            name,
            each.recipe,
            f"{size / 1e6:.1f}M" if size else "-",
            steps,
            f"{judged:.4f} {each.measure.short}" if judged is not None else "-",
            f"{rate:,.0f}" if rate else "-",
            each.began[5:] or "-",
            each.state,
        )
        table.add_row(*(Text(cell) for cell in cells))  # a folder's name may hold what rich takes for markup
    Console().print(table)


def tell(value: dict[str, object], words: str, as_json: bool) -> int:
    """One or the other."""
    if as_json:
        print_json(value)
    else:
        print(words)
    return 0
