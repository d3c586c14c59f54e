"""``langwright inspect``: looks into what goes into a model, and into models."""

import difflib
import importlib

from langwright.core.errors import UserError

SUBJECTS = {"data": "examples for fine-tuning: their format, lengths and faults, and which tokens are learnt"}
"""What can be inspected; each has a module of its own, ``inspect_SUBJECT``."""


def run(argv: list[str]) -> int:
    """The verb."""
    if not argv or argv[0] in ("-h", "--help"):
        subjects = "\n".join(f"  {name:<8}{what}" for name, what in SUBJECTS.items())
        print(f"usage: langwright inspect SUBJECT [ARGUMENTS]\n\n{subjects}\n")
        print("`langwright inspect SUBJECT --help` tells more.")
        return 0
    subject, *rest = argv
    if subject not in SUBJECTS:
        near = difflib.get_close_matches(subject, SUBJECTS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"give one of {', '.join(SUBJECTS)}"
        raise UserError(f"langwright inspect: {subject!r} cannot be inspected; {hint}")
    return importlib.import_module(f"langwright.cli.inspect_{subject}").run(rest)
