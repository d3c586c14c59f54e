"""``langwright train``: a recipe, data, and a model at the end."""

from pathlib import Path

from pydantic_settings import CliPositionalArg, SettingsConfigDict

from langwright.apps.samples import text_sampler
from langwright.cli.command import Command, Json, print_json
from langwright.cli.outcome import carry_out, summary
from langwright.core.errors import UserError
from langwright.train.config import TrainConfig, list_recipes, load_recipe
from langwright.train.run import train


class _Run(Command):
    recipe: CliPositionalArg[str]
    """tiny, laptop, gpt2-124m, encoder-tiny, encoder-laptop, vanilla-wikitext2, or a TOML file of your own."""
    data: Path
    """Folder that `langwright prepare` wrote."""
    out: Path
    """Folder for checkpoints and figures; OUT/last is the newest checkpoint."""
    resume: bool = False
    """Continue from the newest checkpoint in OUT."""
    force: bool = False
    """Begin even where memory will not be enough, as far as one can tell."""
    json_output: Json = False
    """End with one JSON object: steps, val_bpb (val_pseudo_bpb of a masked model), tokens_per_second, ..."""


class Train(TrainConfig, _Run):
    """Pretrain a model. The recipe gives every setting; flags override it, such as --train.lr 3e-4."""

    # What a recipe must say need not be said again.
    model_config = SettingsConfigDict(
        cli_prog_name="langwright train", cli_enforce_required=False, cli_implicit_flags=True
    )


def run(argv: list[str]) -> int:
    """The verb."""
    given = Train.given(argv)
    missing = [f"--{name}" for name in ("data", "out") if name not in given]
    if "recipe" not in given or missing:
        what = " and ".join(missing) or f"a recipe ({', '.join(list_recipes())})"
        raise UserError(f"langwright train: give {what}; see `langwright train --help`")
    words = {name: given.pop(name) for name in ("recipe", "data", "out", "resume", "force", "json") if name in given}
    config = load_recipe(words["recipe"], given)
    data, out, resume, force = (
        Path(words["data"]),
        Path(words["out"]),
        bool(words.get("resume")),
        bool(words.get("force")),
    )
    result = carry_out(
        lambda console: train(
            config, data, out, resume=resume, sampler=text_sampler(data), console=console, force=force
        ),
        f"langwright train {words['recipe']} --data {data} --out {out} --resume",
    )
    if isinstance(result, int):
        return result
    if words.get("json"):
        print_json(summary(result))
    else:
        print(f"validation: {result.score}")
        print(f"the model is in {result.checkpoint}")
        if result.score.accuracy is None:
            print(f"next: langwright generate {out} --prompt 'Once upon a time'")
    return 0
