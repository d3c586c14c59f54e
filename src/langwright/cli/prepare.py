"""``langwright prepare``: text to tokenizer and shards."""

from pathlib import Path

from pydantic_settings import CliPositionalArg

from langwright.cli.command import Command, Json, print_json, settings
from langwright.cli.progress import byte_progress
from langwright.data.prepare import PrepareConfig, PrepareReport, prepare


class _Paths(Command):
    inputs: CliPositionalArg[list[Path]]
    """Files (.txt .md .jsonl .parquet, also .gz and .zst, source code) and folders of them."""
    out: Path
    """Folder to write."""
    json_output: Json = False
    """End with one JSON object instead of a report."""


class Prepare(PrepareConfig, _Paths):
    """Turn text into a tokenizer and token shards that `langwright train` reads."""

    model_config = settings("prepare")
    verbatim = frozenset({"--val"})

    def options(self) -> dict:
        """The part that `PrepareConfig` knows, a model's name for a tokenizer resolved to its files."""
        values = {name: getattr(self, name) for name in PrepareConfig.model_fields}
        if self.tokenizer not in ("train", "char"):
            from langwright.model.checkpoint.hub import resolve

            path = Path(self.tokenizer)
            values["tokenizer"] = str(path if path.exists() else resolve(self.tokenizer))
        return values


def run(argv: list[str]) -> int:
    """The verb."""
    command = Prepare.read(argv)
    with byte_progress() as progress:
        report = prepare(command.inputs, command.out, progress=progress, **command.options())
    if command.json_output:
        summary = report.description.model_dump(mode="json")
        print_json(summary | {"folder": str(report.folder), "round_trip": report.sample.equal})
    else:
        print(describe(report, "encoder-laptop" if command.special_tokens == "bert" else "laptop"))
    return 0


def describe(report: PrepareReport, recipe: str = "laptop") -> str:
    """What was written, for a person, and the ``recipe`` to go on with."""
    found = report.description
    lines = [f"wrote {report.folder}", f"tokenizer    {found.tokenizer.origin}, {found.tokenizer.vocab_size:,} tokens"]
    for name, side in (("train", found.train), ("validation", found.val)):
        lines.append(
            f"{name:<12} {side.documents:,} documents, {side.bytes:,} bytes, {side.tokens:,} tokens "
            f"({side.bytes_per_token:.2f} bytes a token)"
        )
        if side.unknown_tokens:
            lines.append(f"             {side.unknown_tokens:,} of them unknown to the tokenizer")
    lines.append(f"split        {found.split.describe()}")
    lines += [f"skipped      {count:,} x {reason}" for reason, count in found.skipped.items()]
    verdict = "comes back exactly" if report.sample.equal else "comes back as"
    lines += [f"sample       {verdict}:", *(f"  | {line}" for line in report.sample.decoded.splitlines())]
    lines.append(f"next         langwright train {recipe} --data {report.folder} --out runs/laptop")
    return "\n".join(lines)
