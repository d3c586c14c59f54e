"""``langwright plan``: what a run will take, before it runs."""

from pydantic_settings import CliPositionalArg, SettingsConfigDict
from rich.console import Console

from langwright.cli.command import Command, Json, print_json
from langwright.core.errors import UserError
from langwright.train.config import TrainConfig, list_recipes
from langwright.train.planning.request import PlanRequest, make_plan
from langwright.train.planning.words import plan_lines


class _Request(PlanRequest, Command):
    recipe: CliPositionalArg[str | None] = None
    """A recipe by name, or a TOML file; leave it out with --params and --tokens."""
    json_output: Json = False
    """Print one JSON object instead of a report."""


class PlanCommand(TrainConfig, _Request):
    """Tell memory, time, tokens and cost of a training run; flags override the recipe as in `langwright train`."""

    model_config = SettingsConfigDict(
        cli_prog_name="langwright plan", cli_enforce_required=False, cli_implicit_flags=True
    )


def run(argv: list[str]) -> int:
    """The verb."""
    given = PlanCommand.given(argv)
    as_json = bool(given.pop("json", False))
    recipe = given.pop("recipe", None)
    own = {name: given.pop(name) for name in list(given) if name in PlanRequest.model_fields}
    request = PlanRequest.parse(own, "langwright plan")
    if recipe is None and request.params is None:
        raise UserError(
            f"langwright plan: give a recipe ({', '.join(list_recipes())}), or --params and --tokens; see "
            f"`langwright plan --help`"
        )
    console = Console(stderr=True)
    with console.status("measuring a few steps"):
        plan = make_plan(recipe, given, request)
    if as_json:
        print_json(plan.model_dump(mode="json"))
        return 0
    for line in plan_lines(plan):
        print(line)
    return 0
