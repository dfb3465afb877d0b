"""How does a process end? Every error that its message explains has the exit code of its kind."""

from __future__ import annotations

DONE = 0
FAILED = 1  # it would fail the same way again
USAGE = 2  # a mistake in the command, the config or the data
PREEMPTED = 42  # stopped from outside with everything saved: start it again


class ExplainedError(Exception):
    """One line that says what is wrong and what to do; the command line prints it without a traceback.

    `exit_code` is what a process ends with that it stops.
    """

    exit_code = USAGE


class UsageError(ExplainedError):
    """A command that cannot be carried out; the message names the fix."""


def exit_code(error: BaseException) -> int:
    """What a process ends with that `error` stops; `FAILED` for errors without an explanation."""
    return error.exit_code if isinstance(error, ExplainedError) else FAILED
