"""``langwright VERB``: finds the verb's module, runs it, and turns whatever happens into an exit code.

Exit codes: 0 done; 1 a fault of ours; 2 something the user can mend (one line says what); 130 interrupted.
This module imports nothing heavy, so that help comes at once.
"""

import difflib
import importlib
import os
import sys

VERBS = {
    "quickstart": "make a small model from real text, then talk to a real one (about four minutes)",
    "prepare": "text files -> tokenizer and token shards, ready to train on",
    "plan": "tell what a run will take: memory, time, tokens, cost",
    "train": "pretrain a model from a recipe",
    "inspect": "look at data for fine-tuning: format, lengths, faults, and which tokens are learnt",
    "tune": "fine-tune a pretrained model on examples",
    "verify": "replay a model's parity certificate in every engine that is here",
    "export": "write a model for others: a Hugging Face folder, GGUF, an adapter, Ollama",
    "runs": "list, report and compare training runs",
    "replay": "do a step of a training run again and look into it",
    "generate": "continue a prompt",
    "chat": "talk to a model in the terminal",
    "models": "list the models that can be fetched by name, and fetch them",
}

USAGE = """usage: langwright VERB [ARGUMENTS] [--debug]

Make, adapt, judge, explain and serve language models.

{verbs}

`langwright VERB --help` explains a verb. `--debug` shows where an error came from.
A model is named by its folder, a .gguf file, a name from `langwright models list`, or a hub id such as org/name.
"""


def usage() -> str:
    """The top-level help text."""
    return USAGE.format(verbs="\n".join(f"  {name:<12}{what}" for name, what in VERBS.items()))


def complain(message: str) -> None:
    """One line on standard error."""
    print(f"langwright: {' '.join(message.split())}", file=sys.stderr)


def main(argv: list[str] | None = None) -> int:
    """Run one verb; returns the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help", "help"):
        print(usage(), end="")
        return 0
    if words[0] in ("-V", "--version"):
        from langwright import __version__

        print(f"langwright {__version__}")
        return 0
    verb, rest = words[0], words[1:]
    if verb not in VERBS:
        near = difflib.get_close_matches(verb, VERBS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else "`langwright --help` lists the verbs"
        complain(f"{verb!r} is not a verb; {hint}")
        return 2
    debug = "--debug" in rest
    rest = [word for word in rest if word != "--debug"]
    try:
        return importlib.import_module(f"langwright.cli.{verb}").run(rest) or 0
    except KeyboardInterrupt:
        complain("interrupted")
        return 130
    except BrokenPipeError:
        # The reader (head, less) went away; nothing more can be written, not even at interpreter exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if debug:
            raise
        from langwright.core.errors import UserError

        if isinstance(error, UserError):
            complain(str(error))
            return 2
        complain(f"internal error, {type(error).__name__}: {error} (run again with --debug to see where)")
        return 1


if __name__ == "__main__":
    sys.exit(main())
