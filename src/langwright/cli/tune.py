"""``langwright tune``: a pretrained model, examples, and a model that behaves like them."""

from pathlib import Path
from typing import Any, get_args

from pydantic_settings import CliPositionalArg, SettingsConfigDict

from langwright.cli.command import Command, Json, print_json
from langwright.cli.outcome import carry_out, summary
from langwright.core.errors import UserError
from langwright.train.run import run_task
from langwright.train.tuning.classify import classify
from langwright.train.tuning.config import Method, TuneConfig, load_tuning
from langwright.train.tuning.distil import distil
from langwright.train.tuning.embed import embed
from langwright.train.tuning.grpo import grpo
from langwright.train.tuning.kto import learn_feedback
from langwright.train.tuning.preference import prefer
from langwright.train.tuning.reward import learn_rewards
from langwright.train.tuning.sft import sft
from langwright.train.tuning.tag import tag

METHODS = get_args(Method)
TASKS = {
    "sft": sft,
    "distil": distil,
    "classify": classify,
    "tag": tag,
    "embed": embed,
    **dict.fromkeys(("dpo", "ipo", "orpo", "simpo"), prefer),
    "kto": learn_feedback,
    "reward": learn_rewards,
    "grpo": grpo,
}
JUDGED = {
    **dict.fromkeys(("sft", "distil", "kto"), "answers"),
    "classify": "texts",
    "tag": "words",
    "grpo": "problems",
}
"""What is held out, by the method; else pairs."""
HEADS = ("classify", "tag", "embed", "reward")
"""Methods whose models do not write; they are asked by a method of `LM` that is called the same."""


class _Run(Command):
    method: CliPositionalArg[Method] = "sft"
    """sft, distil, classify, tag, embed, dpo, ipo, orpo, simpo, kto, reward or grpo."""
    base: CliPositionalArg[str] = ""
    """The model to begin with: a folder, a .gguf file, a catalogue name or a hub id."""
    data: tuple[Path, ...]
    """Files or folders of examples: JSONL, JSON, CSV or parquet in any common shape (`langwright inspect data`)."""
    val: tuple[Path, ...] = ()
    """Files of examples to be judged on; default: a share of the data (--examples.val-share)."""
    out: Path
    """Folder for checkpoints and figures; OUT/last is the newest checkpoint."""
    full: bool = False
    """Train all weights instead of an adapter."""
    recipe: Path | None = None
    """A TOML file with settings, in place of the method's own."""
    resume: bool = False
    """Continue from the newest checkpoint in OUT."""
    force: bool = False
    """Begin even where memory will not be enough, as far as one can tell."""
    json_output: Json = False
    """End with one JSON object: steps, val_bpb (of held-out answers), val_accuracy or what else the method is judged
    by, tokens_per_second, ..."""


class Tune(TuneConfig, _Run):
    """Fine-tune a model. The method gives every setting; flags override it, such as --train.lr 1e-4."""

    method: CliPositionalArg[Method] = "sft"  # as words, not as flags
    """sft, distil, classify, tag, embed, dpo, ipo, orpo, simpo, kto, reward or grpo."""
    base: CliPositionalArg[str] = ""
    """The model to begin with: a folder, a .gguf file, a catalogue name or a hub id."""

    model_config = SettingsConfigDict(
        cli_prog_name="langwright tune", cli_enforce_required=False, cli_implicit_flags=True
    )


OWN = ("method", "base", "data", "val", "out", "full", "recipe", "resume", "force", "json")


def run(argv: list[str]) -> int:
    """The verb."""
    given = Tune.given(argv)
    words = {name: given.pop(name) for name in OWN if name in given}
    method, base = _method_and_base(words)
    if words.get("full"):
        given["adapter"] = None
    recipe = Path(words["recipe"]) if "recipe" in words else None
    config = load_tuning(method, base, given, recipe=recipe)
    files, val_files, out = _paths(words["data"]), _paths(words.get("val", ())), Path(words["out"])
    result = carry_out(
        lambda console: run_task(
            config,
            lambda spread, say: TASKS[method](
                config, files, val_files, say, force=bool(words.get("force")), spread=spread
            ),
            out,
            resume=bool(words.get("resume")),
            console=console,
        ),
        f"the same command with --resume (langwright tune {method} {base} ... --out {out} --resume)",
    )
    if isinstance(result, int):
        return result
    if words.get("json"):
        print_json(summary(result))
    else:
        print(f"held-out {JUDGED.get(method, 'pairs')}: {result.score}")
        print(f"{'the model' if config.adapter is None else 'the adapter'} is in {result.checkpoint}")
        last, verb = str(out / "last"), "rate" if "rmse" in (result.score.more or {}) else method
        ask = f"in Python, langwright.load({last!r}).{verb}(TEXTS)" if method in HEADS else f"langwright chat {last}"
        print(f"next: {ask}")
    return 0


def _method_and_base(words: dict[str, Any]) -> tuple[str, str]:
    missing = [f"--{name}" for name in ("data", "out") if name not in words]
    if "base" not in words or missing:
        what = " and ".join(missing) if "base" in words else f"a method ({', '.join(METHODS)}) and a model"
        raise UserError(f"langwright tune: give {what}; see `langwright tune --help`")
    method, base = words["method"], words["base"]
    if method not in METHODS:
        raise UserError(f"langwright tune: {method!r} is no method; use {', '.join(METHODS)}")
    return method, base


def _paths(value: Any) -> list[Path]:
    return [Path(value)] if isinstance(value, str | Path) else [Path(each) for each in value]
