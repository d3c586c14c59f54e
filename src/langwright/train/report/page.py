"""A run, or several, as one HTML file that needs nothing else: no script, no font, no address. Looks right in the dark.

Whatever comes from text, data or configuration is escaped by the template engine, and the page forbids scripts anyway.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from langwright.core.errors import UserError
from langwright.core.files import write_atomic
from langwright.train.config import TrainConfig
from langwright.train.planning.advice import gigabytes
from langwright.train.planning.outlook import Outlook
from langwright.train.planning.words import clock
from langwright.train.report.chart import Chart, draw
from langwright.train.report.runs import MEASURES, Run, number, read_run

REPORT = "report.html"


def write_report(out: Path) -> Path:
    """Write ``OUT/report.html`` of the run in ``out``; raises `UserError` where there is none or no room for it."""
    path = out / REPORT
    write_atomic(path, render_run(read_run(out)))
    return path


@contextmanager
def reported(out: Path, say: Callable[[str], None]) -> Iterator[None]:
    """Write the report of the run in ``out`` however the block ends; what stands in the way is only told."""
    try:
        yield
    finally:
        try:
            write_report(out)
        except UserError as error:
            say(f"no report: {error}")


def render_run(run: Run) -> str:
    """The page of one run."""
    charts = (
        *_validations([("", run)]),
        draw("training loss, nats a token", [("", run.series("step", "loss"))], smooth=True, crop=True),
        draw("tokens a second", [("", run.series("step", "tokens_per_second"))]),
        draw("learning rate", [("", run.series("step", "lr"))]),
        draw("gradient norm", [("", run.series("step", "grad_norm"))], smooth=True, crop=True),
    )
    config = flatten(run.config.model_dump(mode="json")) if run.config else {}
    return _render(
        "run.html.j2",
        run=run,
        subtitle=_subtitle(run),
        tiles=_tiles(run),
        charts=_numbered(charts),
        predicted=_predicted(run.outlook) if run.outlook else [],
        incidents=_incidents(run),
        samples=[
            {"step": row["step"], "prompt": str(row.get("prompt", "")), "text": str(row.get("text", ""))}
            for row in reversed(run.rows)
            if row.get("event") == "sample"
        ],
        data=_data(run.facts.get("data")) + _software(run.facts),
        sessions=_sessions(run.sessions),
        main=[(key, config[key]) for key in MAIN if key in config],
        config=list(config.items()),
    )


def render_comparison(runs: Sequence[Run]) -> str:
    """The page of several runs, their curves one over the other."""
    labels = distinct_names(runs)
    pairs = list(zip(labels, runs, strict=True))
    charts = (
        *_validations(pairs),
        draw(
            "training loss, nats a token",
            [(label, run.series("step", "loss")) for label, run in pairs],
            smooth=True,
            crop=True,
        ),
        draw(
            "training loss over time",
            [(label, run.series("step", "loss", over="elapsed")) for label, run in pairs],
            x_title="seconds",
            smooth=True,
            crop=True,
        ),
        draw("tokens a second", [(label, run.series("step", "tokens_per_second")) for label, run in pairs]),
    )
    rows = []
    for label, run in pairs:
        found = run.summary()
        size, steps, *figures = (_words(found[key], digits) for key, digits in COLUMNS)
        rows.append((label, found["recipe"], size, steps, run.measure.words, *figures, found["state"]))
    return _render(
        "compare.html.j2",
        title=f"{len(runs)} runs",
        subtitle=" · ".join(str(run.folder) for run in runs),
        titles=("run", "recipe", "parameters", "steps", "judged by", "last", "best", "tokens/s", "state"),
        rows=rows,
        charts=_numbered(charts),
        names=("setting", *labels),
        differences=differences(runs),
    )


def _validations(runs: Sequence[tuple[str, Run]]) -> list[Chart | None]:
    """A chart for each measure that validations of some run told."""
    told = ((each.words, [(label, run.series("eval", each.name)) for label, run in runs]) for each in MEASURES)
    return [draw(f"validation, {words}", lines, crop=True) for words, lines in told]


MAIN = ("train.batch_size", "train.context", "train.lr", "train.schedule", "train.optimiser", "train.dtype", "seed")
COLUMNS = (("parameters", 0), ("steps", 0), ("latest", 4), ("best", 4), ("tokens_per_second", 0))


def distinct_names(runs: Sequence[Run]) -> list[str]:
    """Names of the runs; paths where two are called the same."""
    names = [run.name for run in runs]
    return names if len(set(names)) == len(names) else [str(run.folder) for run in runs]


def differences(runs: Sequence[Run]) -> list[tuple[str, ...]]:
    """Settings and data that are not the same in all ``runs``: a name, and the value of each."""
    each = []
    for run in runs:
        values = flatten(run.config.model_dump(mode="json")) if run.config else {}
        data = run.facts.get("data")
        each.append(values | {"data": str(data.get("fingerprint"))[:16] if isinstance(data, dict) else ""})
    keys = dict.fromkeys(key for values in each for key in values)
    rows = [(key, *(values.get(key, "") for values in each)) for key in keys]
    return [row for row in rows if len(set(row[1:])) > 1]


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """``{"train": {"lr": 1}}`` as ``{"train.lr": "1"}``, in order."""
    flat: dict[str, str] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = "" if value is None else str(value)
    return flat


@cache
def _templates() -> Environment:
    return Environment(loader=PackageLoader("langwright.train.report", ""), autoescape=True, undefined=StrictUndefined)


def _render(name: str, **values: Any) -> str:
    templates = _templates()
    source, *_ = templates.loader.get_source(templates, "style.css") if templates.loader else ("",)
    return templates.get_template(name).render(style=Markup(source), **values)


def _numbered(charts: Iterable[Chart | None]) -> list[dict[str, Any]]:
    return [asdict(chart) | {"id": f"area{order}"} for order, chart in enumerate(charts) if chart is not None]


def _subtitle(run: Run) -> str:
    model = run.facts.get("model")
    told = []
    if isinstance(model, dict):
        told.append(f"{model.get('family')}, {model.get('n_layers')} layers of {model.get('d_model')}")
    if run.config:
        told.append(f"recipe {run.recipe}" if isinstance(run.config, TrainConfig) else run.recipe)
    if run.began:
        told.append(f"began {run.began} UTC")
    if run.reason not in ("", "finished"):
        told.append(f"the last process ended with {run.reason}")
    return " · ".join(told)


def _tiles(run: Run) -> list[tuple[str, str]]:
    perplexity, macro_f1 = run.series("eval", "val_ppl"), run.series("eval", "val_macro_f1")
    elapsed = run.series("step", "elapsed")
    tokens = run.series("step", "tokens")
    steps = f"{run.step:,}" + (f" of {run.max_steps:,}" if run.max_steps and run.max_steps != run.step else "")
    tiles = [(run.measure.words, _words(run.latest, 4))]
    if run.best and run.best[1] != run.latest:
        tiles.append((f"best, after step {run.best[0]:,}", _words(run.best[1], 4)))
    tiles += [("perplexity a token", _words(perplexity[-1][1], 2))] if perplexity else []
    tiles += [("macro F1", _words(macro_f1[-1][1], 4))] if macro_f1 else []
    tiles += [
        ("steps", steps),
        ("tokens", _words(tokens[-1][1] if tokens else None)),
        ("time in steps", clock(elapsed[-1][1]) if elapsed else "-"),
        ("tokens a second", _words(run.rate)),
    ]
    return tiles


def _predicted(outlook: Outlook) -> list[tuple[str, str, str, str]]:
    planned, came = outlook.predicted, outlook.actual
    rows: list[tuple[str, float | None, float | None, Any]] = [
        ("peak memory", planned.peak_memory_bytes, came.peak_memory_bytes, gigabytes),
        ("tokens", planned.tokens, came.tokens, "{:,.0f}".format),
        ("time in steps, told after the first three", planned.training_seconds, came.training_seconds, clock),
    ]
    found = []
    for name, before, after, words in rows:
        comparable = name == "peak memory" or came.tokens == planned.tokens  # not while a run is on its way
        off = f"{100 * (after / before - 1):+.1f} %" if before and after and comparable else ""
        found.append((name, *(words(value) if value is not None else "-" for value in (before, after)), off))
    return [*found, ("work, FLOPs", f"{planned.flops:.3g}", "", "")]


def _incidents(run: Run) -> list[tuple[str, str]]:
    told = [
        (str(row.get("step")), " · ".join(str(row[key]) for key in ("fault", "policy", "went_back_to") if row.get(key)))
        for row in run.incidents
    ]
    known = {step for step, _ in told}
    told += [
        (str(row["step"]), f"not taken: loss {row.get('loss')}, gradient norm {row.get('grad_norm')}")
        for row in run.rows
        if row.get("event") == "skip" and str(row["step"]) not in known
    ]
    begun: dict[str, Any] | None = None
    for row in run.sessions:
        if row.get("event") == "begin" and begun is not None:
            told.append((str(row["step"]), f"a process was killed; another continued here at {row.get('time')}"))
        begun = row if row.get("event") == "begin" else None
        if row.get("event") == "end" and row.get("reason") != "finished":
            told.append((str(row["step"]), f"a process ended with {row.get('reason')} at {row.get('time')}"))
    return sorted(told, key=lambda item: int(item[0]) if item[0].isdigit() else 0)


def _data(data: Any) -> list[tuple[str, str]]:
    if not isinstance(data, dict):
        return []
    rows = [("fingerprint", str(data.get("fingerprint")))]
    for split in ("train", "val"):
        counts = data.get(split)
        if isinstance(counts, dict):
            told = ", ".join(f"{_words(counts.get(key))} {key}" for key in ("documents", "tokens", "bytes"))
            rows.append((split, told))
    sources = data.get("sources")
    for source in sources if isinstance(sources, list) else []:
        if isinstance(source, dict):
            told = (
                f"{source.get('path')} ({_words(source.get('bytes'))} bytes, SHA-256 {str(source.get('sha256'))[:16]})"
            )
            rows.append((str(source.get("role")), told))
    return rows


def _software(facts: dict[str, Any]) -> list[tuple[str, str]]:
    software = facts.get("software")
    told = [(str(key), str(value)) for key, value in software.items() if value] if isinstance(software, dict) else []
    return ([("tokenizer", str(facts["tokenizer"]))] if facts.get("tokenizer") else []) + told


def _sessions(rows: Sequence[dict[str, Any]]) -> list[tuple[str, ...]]:
    found: list[tuple[str, ...]] = []
    for row in rows:
        machine = row.get("machine")
        if row.get("event") == "begin" and isinstance(machine, dict):
            memory = number(machine.get("memory_bytes"))
            parts = [str(machine.get("processor")), f"{machine.get('cores')} cores, {machine.get('threads')} threads"]
            gpus = machine.get("gpus")
            parts += [gigabytes(memory)] if memory else []
            parts += [str(gpu) for gpu in gpus] if isinstance(gpus, list) else []
            system = f"{machine.get('system')}, Python {machine.get('python')}, torch {machine.get('torch')}"
            began = str(row.get("time"))[:19].replace("T", " ")
            found.append((began, "", f"{row['step']} to", "", ", ".join(parts), system))
        elif row.get("event") == "end" and found:
            began, _, steps, _, *rest = found[-1]
            ended = str(row.get("time"))[:19].replace("T", " ")
            found[-1] = (began, ended, f"{steps} {row['step']}", str(row.get("reason")), *rest)
    return found


def _words(value: Any, digits: int = 0) -> str:
    known = number(value)
    return "-" if known is None else f"{known:,.{digits}f}"
