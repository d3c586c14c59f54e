"""``langwright inspect data``: what files for fine-tuning hold, and what a model would learn from them."""

from pathlib import Path
from typing import Any

from pydantic import Field
from pydantic_settings import CliPositionalArg
from rich.console import Console
from rich.progress import Progress
from rich.text import Text

from langwright.apps.data_survey import Survey, survey
from langwright.apps.xray import XRay, legend, to_page, to_plain, to_terminal, xray
from langwright.cli.command import Command, Json, print_json, settings
from langwright.core.files import write_atomic
from langwright.data.rendering import Renderer
from langwright.tokenizer.chat import ChatTemplate
from langwright.tokenizer.load import load_tokenizer
from langwright.tokenizer.template_choice import read_template, with_template

SAMPLE_CHARS, BAR, LABELS = 600, 40, 12
"""Characters of a row, characters of a bar, and labels, that the terminal shows at most."""


class InspectData(Command):
    """Tell the format of files for fine-tuning, their lengths and repeats, what cannot be used and why; show rows."""

    model_config = settings("inspect data")

    files: CliPositionalArg[list[Path]]
    """Files (.jsonl .json .csv .tsv .parquet .txt, also .gz and .zst) and folders of them."""
    model: str | None = None
    """The model to be tuned: its tokenizer counts lengths and shows which tokens are learnt. No weights are read."""
    chat_template: str | None = None
    """Another chat template than the model's: chatml, chatml-tools, or a .jinja file."""
    fields: dict[str, str] = Field(default_factory=dict)
    """Which column holds what, where it cannot be told: prompt=question completion=solution ..."""
    format: str | None = None
    """The format, where several fit: chat, sharegpt, alpaca, completion, preference, feedback, classification, tokens,
    pairs, text, problem."""
    max_tokens: int | None = Field(default=None, ge=2)
    """With a model: the longest row that will be used; what is beyond is shown as cut off."""
    rows: int = Field(default=3, ge=0, le=1000)
    """Rows to show."""
    html: Path | None = None
    """Write a page that shows all of it."""
    json_output: Json = False
    """End with one JSON object instead of a report."""


def run(argv: list[str]) -> int:
    """The verb."""
    command = InspectData.read(argv)
    renderer = make_renderer(command.model, command.chat_template) if command.model else None
    console = Console(stderr=True)
    with Progress(console=console, disable=not console.is_terminal, transient=True) as bars:
        task = bars.add_task("looking", total=None)
        found = survey(
            command.files,
            renderer=renderer,
            fields=command.fields,
            format=command.format,
            max_tokens=command.max_tokens,
            show=command.rows,
            progress=lambda done, total: bars.update(task, completed=done, total=total),
        )
    rays = [xray(row, renderer.tokenizer, command.max_tokens) for row in found.rendered] if renderer else []
    if command.html:
        write_atomic(command.html, to_page(found, rays))
    if command.json_output:
        print_json(to_json(found, rays) | ({"html": str(command.html)} if command.html else {}))
        return 0
    for line in describe(found):
        print(line)
    show(found, rays)
    if command.html:
        print(f"the page is {command.html}")
    return 0


def make_renderer(model: str, chat_template: str | None) -> Renderer:
    """A renderer with the tokenizer of ``model``, whose weights are not read."""
    from langwright.model.checkpoint.hub import resolve

    path = Path(model)
    tokenizer = load_tokenizer(path if path.is_file() else resolve(model))
    if chat_template is not None:
        tokenizer = with_template(tokenizer, read_template(chat_template))
    return Renderer(tokenizer, ChatTemplate(tokenizer.chat_template, tokenizer) if tokenizer.chat_template else None)


def describe(found: Survey) -> list[str]:
    """What was found, for a person."""
    lines = [f"format       {found.format}", f"rows         {found.rows:,}"]
    for reason, count in found.dropped.items():
        lines.append(f"not usable   {count:,} x {reason}")
        lines.append(f"             the first: {found.first[reason]}")
    if found.unused:
        lines.append(f"not used     {', '.join(found.unused)}")
    if found.repeats.first:
        before, again = found.repeats.first
        lines.append(f"repeated     {found.repeats.rows:,} rows; the first: {again} says what {before} says")
    if found.labels:
        told = ", ".join(f"{label} {count:,}" for label, count in list(found.labels.items())[:LABELS])
        lines.append(f"labels       {len(found.labels):,}: {told}{' ...' if len(found.labels) > LABELS else ''}")
    if found.trained:
        total = sum(found.lengths)
        lines.append(f"trained      {found.trained:,} tokens (rows have {total:,})")
    lengths = (
        f"median {found.quantile(0.5):,}, nine of ten up to {found.quantile(0.9):,}, longest {max(found.lengths):,}"
    )
    lines.append(f"lengths      in {found.unit}: {lengths}")
    if found.over:
        lines.append(f"too long     {found.over:,} rows have more than {found.max_tokens:,} tokens")
    highest = max(count for _, _, count in found.histogram)
    for low, high, count in found.histogram:
        bar = "█" * round(BAR * count / highest)
        lines.append(f"  {f'{low:,}-{high:,}':>19} {bar}{' ' if bar else ''}{count:,}")
    return lines


def show(found: Survey, rays: list[XRay]) -> None:
    """The first rows: as X-rays where there are any, else as they read."""
    console = Console()
    coloured = console.color_system is not None
    if rays:
        console.print(legend() if coloured else "⟦ trained ⟧  ✂ cut off")
    for ray in rays:
        counts = ", ".join(f"{count:,} {kind}" for kind, count in ray.counts.items())
        console.print(Text(f"\n{ray.where} ({counts})", style="bold"))
        console.print(to_terminal(ray) if coloured else Text(to_plain(ray)))
    for where, text in [] if rays else found.samples:
        console.print(Text(f"\n{where}", style="bold"))
        console.print(Text(text if len(text) <= SAMPLE_CHARS else f"{text[:SAMPLE_CHARS]} ..."))


def to_json(found: Survey, rays: list[XRay]) -> dict[str, Any]:
    """What was found, for a machine."""
    shown = [
        {
            "where": ray.where,
            "counts": ray.counts,
            "pieces": [[piece.text, piece.kind, list(piece.ids)] for piece in ray.pieces],
        }
        for ray in rays
    ]
    return found.summary() | {
        "xrays": shown,
        "samples": [{"where": where, "text": text} for where, text in found.samples],
    }
