"""Rewards that can be checked: functions of a problem and what was answered."""

import hashlib
import os
import re
import shlex
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from decimal import Decimal

from langwright.core.errors import UserError
from langwright.data.examples import Problem
from langwright.train.tuning.config import GrpoSettings

NUMBER = re.compile(r"(?:(?<![0-9A-Za-z)\]])-)?(?:[0-9]+(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?")
"""A minus that follows a figure, a letter or a bracket takes away and is no sign."""
FENCE = re.compile(r"```(?:python|py)?[ \t]*\n(.*?)```", re.DOTALL)


@dataclass(frozen=True)
class Verifier:
    """``reward`` of an answer, from 0 to 1; ``lacks`` says what a problem has not that it needs, if anything."""

    reward: Callable[[GrpoSettings, Problem, str], float]
    lacks: Callable[[GrpoSettings, Problem], str | None]


def last_number(text: str) -> Decimal | None:
    """The last number in ``text``, thousands parted by commas or not; None where there is none."""
    found = NUMBER.findall(text.replace("\N{MINUS SIGN}", "-"))
    return Decimal(found[-1].replace(",", "")) if found else None


def arithmetic(settings: GrpoSettings, problem: Problem, said: str) -> float:
    """1 where the last number is that of the right answer (after ``####``, as GSM8K writes it, or at its end)."""
    found = last_number(said)
    return float(found is not None and found == last_number(problem.answer))


def format(settings: GrpoSettings, problem: Problem, said: str) -> float:
    """1 where the regular expression of the settings is found; a dot means line breaks as well."""
    return float(re.search(settings.pattern, said, re.DOTALL) is not None)


def python(settings: GrpoSettings, problem: Problem, said: str) -> float:
    """1 where the program in an answer, its last fenced block or all of it, and the tests behind it run to their end.

    Both go to the command as one text. It ends with a number that the program cannot know: else it would soon be learnt
    that leaving early, with 0, passes every test.
    """
    blocks = FENCE.findall(said)
    program = f"{blocks[-1] if blocks else said}\n\n{problem.tests}\n"
    number = 130 + hashlib.blake2b(program.encode(errors="replace")).digest()[0] % 100
    given = f"{program}\nimport os\nos._exit({number})\n"
    return float(exit_code(shlex.split(settings.command), given, settings.seconds) == number)


def exit_code(command: Sequence[str], given: str, seconds: float) -> int | None:
    """How ``command`` ends with ``given`` on its standard input; None where it does not end in time.

    It runs in an empty temporary folder, with nothing of the environment but PATH, and is killed with all that it
    started. That keeps accidents away, not malice: it can read what the user can, and use the network.
    """
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env={"PATH": os.environ.get("PATH", os.defpath)},
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            process.communicate(given.encode(errors="replace"), timeout=seconds)
            return process.returncode
        except subprocess.TimeoutExpired:
            return None
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _lacks_number(settings: GrpoSettings, problem: Problem) -> str | None:
    return None if last_number(problem.answer) is not None else "an answer without a number (reward arithmetic)"


def _lacks_tests(settings: GrpoSettings, problem: Problem) -> str | None:
    return None if problem.tests.strip() else "no tests (reward python)"


VERIFIERS = {
    "arithmetic": Verifier(arithmetic, _lacks_number),
    "format": Verifier(format, lambda settings, problem: None),
    "python": Verifier(python, _lacks_tests),
}


def check_settings(settings: GrpoSettings) -> None:
    """Raise `UserError` for a reward that is asked for without what it needs."""
    if "format" in settings.rewards:
        try:
            re.compile(settings.pattern)
        except (re.error, RecursionError, OverflowError) as error:
            raise UserError(f"grpo.pattern {settings.pattern!r:.60} is no regular expression: {error}") from None
        if not settings.pattern:
            raise UserError("grpo.rewards has format: name what is to be found with --grpo.pattern REGEX")
    if "python" in settings.rewards:
        try:
            words = shlex.split(settings.command)
        except ValueError as error:
            raise UserError(f"grpo.command {settings.command!r:.60} cannot be read: {error}") from None
        if not words:
            raise UserError(
                "grpo.rewards has python, which runs what the model writes, without a sandbox: name the command that "
                'runs it with --grpo.command, such as "python3 -I -"'
            )
        if shutil.which(words[0]) is None:
            raise UserError(f"grpo.command: there is no program {words[0]!r:.60}; give one that is in PATH")


def check_problem(settings: GrpoSettings, problem: Problem) -> None:
    """Raise `UserError` naming the row when its answers could not be checked."""
    for name in settings.rewards:
        if lacking := VERIFIERS[name].lacks(settings, problem):
            raise UserError(f"{problem.where}: {lacking}; mend the row, or leave it or that reward out")


def rewards_of(settings: GrpoSettings, problem: Problem, said: str) -> dict[str, float]:
    """Each reward of an answer, by its name, weighed."""
    return {name: weight * VERIFIERS[name].reward(settings, problem, said) for name, weight in settings.rewards.items()}
