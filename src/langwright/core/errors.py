"""The errors that a user may see."""


class UserError(ValueError):
    """Something the user can mend: the message is one line that names the thing and the fix.

    The command line prints it without a traceback and exits with code 2. An invariant that only a bug can break is an
    ``assert`` instead.
    """


class FormatError(UserError):
    """A file is damaged, truncated, or says something about itself that is not true."""
