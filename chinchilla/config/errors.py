"""What can go wrong, by whose fault it is; each class carries the process's exit code.

Every message names what is wrong, where, and the mend.
"""


class ChinchillaError(Exception):
    """An error with a message for the user; `exit_code` is what the command line returns."""

    exit_code = 5


class UsageError(ChinchillaError):
    """A wrong option, key or value (exit code 2)."""

    exit_code = 2


class DataError(ChinchillaError):
    """Data that cannot be used: missing, empty, malformed (exit code 3)."""

    exit_code = 3


class BudgetError(ChinchillaError):
    """A budget or limit that cannot be met (exit code 4)."""

    exit_code = 4


class FaultError(ChinchillaError):
    """A machine or file that failed: damaged checkpoint, taken port, full disk (exit code 5)."""


class StoppedError(ChinchillaError):
    """The user asked a run to stop, and it did, in good order (exit code 130, or 143 for SIGTERM)."""

    exit_code = 130
