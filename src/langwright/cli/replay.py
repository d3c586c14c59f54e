"""``langwright replay``: what was in one step of a run."""

from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import Field
from pydantic_settings import CliPositionalArg
from rich.console import Console

from langwright.cli.command import Command, Json, print_json, settings
from langwright.train.metrics import finite
from langwright.train.replay import replay

LONGEST = 200
"""Characters of a row's text that are printed."""


class Replay(Command):
    """Do a step of a run again and show its loss, its gradients and the rows with the highest loss."""

    model_config = settings("replay")

    run: CliPositionalArg[Path]
    """Folder that `langwright train --out` wrote."""
    step: int = Field(ge=1)
    """The step, counted from 1, as in metrics.jsonl and in the names of incidents."""
    data: Path | None = None
    """Where the prepared data are, if they were moved."""
    rows: int = Field(default=4, ge=1)
    """How many rows are shown, highest loss first."""
    json_output: Json = False
    """End with one JSON object: loss, grad_norm, group_norms, parameter_norms, rows, as_logged."""


def run(argv: list[str]) -> int:
    """The verb."""
    asked = Replay.read(argv)
    say = partial(Console(stderr=True).print, markup=False, highlight=False, soft_wrap=True)
    found = replay(asked.run, asked.step, say, data_dir=asked.data)
    if asked.json_output:
        values = asdict(found) | {"as_logged": found.is_as_logged, "start": found.start and str(found.start)}
        values["rows"] = [asdict(row) | {"place": row.place._asdict()} for row in found.rows[: asked.rows]]
        print_json(_without_nan(values))
        return 0
    told = {None: "the log has no figures of it", True: "as logged, bit for bit", False: "NOT what the log says"}
    print(f"step {found.step}: loss {found.loss:.6f}, gradient norm {found.grad_norm:.6f} ({told[found.is_as_logged]})")
    print("gradient norm by group: " + ", ".join(f"{name} {norm:.4g}" for name, norm in found.group_norms.items()))
    largest = list(found.parameter_norms.items())[:5]
    print("largest by parameter: " + ", ".join(f"{name} {norm:.4g}" for name, norm in largest))
    for row in found.rows[: asked.rows]:
        where = f"token {row.place.offset} of document {row.place.document}"
        print(f"row {row.row}: loss {row.loss:.4f}, from {where}: {row.text[:LONGEST]!r}")
    return 0


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_nan(each) for name, each in value.items()}
    return [_without_nan(each) for each in value] if isinstance(value, list) else finite(value)
