"""Flags and help out of typed fields: every verb is a pydantic-settings model, filled from its arguments alone."""

import contextlib
import io
import re
import sys
from typing import Annotated, Any, ClassVar, Self

from pydantic import Field, ValidationError
from pydantic_settings import (
    BaseSettings,
    CliSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from langwright.core.config import explain
from langwright.core.errors import UserError
from langwright.core.json_text import write_json

Json = Annotated[bool, Field(alias="json")]
"""A flag named ``--json``; a field of that name would hide a method of pydantic's."""


class _Arguments(CliSettingsSource):
    """The library's reader of arguments, with shorter words for types in the help."""

    WORDS: ClassVar = {
        "str": "TEXT",
        "int": "N",
        "float": "X",
        "Path": "PATH",
        "dict[str,str]": "NAME=NAME",
        "dict[str,float]": "NAME=X",
    }

    def _metavar_format(self, obj: Any) -> str:
        """``tuple[Path,...]`` becomes ``PATH,...``."""
        shown = super()._metavar_format(obj)
        inner = re.sub(r"^(tuple|list)\[(.*?)(,\.\.\.)?\]$", r"\2", shown)
        word = self.WORDS.get(inner, inner)
        return word if inner == shown else f"{word},..."


class Command(BaseSettings):
    """Base of the verbs' arguments. Field docstrings are the help; the environment is not read."""

    model_config = SettingsConfigDict(
        cli_kebab_case=True,
        populate_by_name=True,
        cli_implicit_flags="toggle",
        cli_hide_none_type=True,
        cli_avoid_json=True,
        cli_enforce_required=True,
        cli_exit_on_error=False,
        use_attribute_docstrings=True,
        extra="forbid",
        frozen=True,
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Nothing but the arguments: a variable such as OUT in the environment must not change a run."""
        return (init_settings,)

    verbatim: ClassVar[frozenset[str]] = frozenset()
    """Flags of several texts whose values hold no list: a comma in them is a comma."""

    @classmethod
    def given(cls, argv: list[str]) -> dict[str, Any]:
        """Only what ``argv`` says, unvalidated and nested by dots; raises `UserError` for words that fit nowhere."""
        name = str(cls.model_config.get("cli_prog_name"))
        if help_wanted := {"-h", "--help"} & set(argv):
            argv = [help_wanted.pop()]
        # The library takes a value apart at commas, quotes and brackets; what must stay whole is put back afterwards.
        held = {f"held{n}": word for n, word in enumerate(argv) if n and argv[n - 1] in cls.verbatim}
        argv = [f"held{n}" if f"held{n}" in held else word for n, word in enumerate(argv)]
        try:
            # argparse prints a usage of many lines before its error; the error alone is wanted here.
            with contextlib.nullcontext() if help_wanted else contextlib.redirect_stderr(io.StringIO()):
                found = _Arguments(cls, cli_parse_args=argv)()
        except SettingsError as error:
            what = re.sub(r"^error parsing CLI: ", "", str(error.__cause__ or error), flags=re.I)
            raise UserError(f"{name}: {what}; see `{name} --help`") from None
        except SystemExit as stop:
            if stop.code:
                raise UserError(f"{name}: the arguments could not be read; see `{name} --help`") from None
            raise
        return {
            key: [held.get(item, item) for item in value] if isinstance(value, list) else value
            for key, value in found.items()
        }

    @classmethod
    def read(cls, argv: list[str]) -> Self:
        """The validated arguments; raises `UserError` naming the argument that is wrong."""
        try:
            return cls(**cls.given(argv))
        except ValidationError as error:
            name = cls.model_config.get("cli_prog_name")
            raise UserError(f"{name}: {explain(error)}; see `{name} --help`") from None


def settings(verb: str) -> SettingsConfigDict:
    """The part of a verb's ``model_config`` that differs."""
    return SettingsConfigDict(cli_prog_name=f"langwright {verb}")


def print_json(value: dict[str, Any]) -> None:
    """The one JSON object that ``--json`` ends with, on a line of its own."""
    sys.stdout.write(write_json(value, indent=None))
    sys.stdout.flush()
