"""The one family of errors: each message is a readable paragraph that names the place, the numbers, the reason and what to do.

The command line ends with the error's `exit_code`; `docs/commands.md` lists them.
"""


class BitbudgetError(Exception):
    """Base of every error that a user can cause or meet; never raised itself."""

    exit_code = 1


class InputError(BitbudgetError):
    """A model, text, checkpoint or choice that cannot be used as it is."""

    exit_code = 3


class BudgetError(BitbudgetError):
    """A budget that no choice can meet."""

    exit_code = 4


class VerificationError(BitbudgetError):
    """A finished checkpoint that does not hold what it promises."""

    exit_code = 5


class OutputError(BitbudgetError):
    """An output folder or disk that cannot take the result."""

    exit_code = 6
