"""How is another program called? As a list of words, never through a shell of this machine; a dry run prints instead.

A dry run goes the same way as a real one: every command is printed where it would be called, and answered as if all
went well. So what it prints is what is done.
"""

from __future__ import annotations

import dataclasses
import re
import shlex
import subprocess
import time
from collections.abc import Callable, Sequence

from chinchilla_jax.base.errors import ExplainedError
from chinchilla_jax.base.words import Echo

MISSING, TIMED_OUT = 127, 124  # codes of a program that is not there, or was stopped for taking too long
# What a program may say that must not be printed or kept: tokens, keys, values of variables that are named like one.
_SECRETS = re.compile(
    r"ya29\.[\w.-]+|(?<=Bearer )\S+|-----BEGIN [^-]*PRIVATE KEY-----.*?(-----END [^-]*-----|$)"
    r"|(?<=[_-]KEY=)\S+|(?i:(?<=token=)|(?<=password=)|(?<=secret=)|(?<=_key=))\S+",
    re.DOTALL,
)


class LaunchError(ExplainedError):
    """A launch that cannot go on: one line that says why and what to do."""

    def __init__(self, message: str, exit_code: int = ExplainedError.exit_code):
        super().__init__(message)
        self.exit_code = exit_code


@dataclasses.dataclass(frozen=True)
class Done:
    """A program that has ended: its exit code, and what it wrote."""

    code: int
    out: str = ""
    err: str = ""

    @property
    def ok(self) -> bool:
        return self.code == 0

    def why(self) -> str:
        """Its last words about what went wrong, in one line without secrets."""
        text = self.err.strip() or self.out.strip() or f"exit code {self.code}"
        lines = [line for line in text.splitlines() if line.strip()]
        named = [line for line in lines if "ERROR" in line or "error" in line]
        return redact(" ".join((named or lines)[-1].split()))[:600]


def redact(text: str) -> str:
    """The text without what looks like a credential."""
    return _SECRETS.sub("[not shown]", text)


@dataclasses.dataclass(frozen=True)
class Tools:
    """What back-ends reach the world by; a test, and a dry run, gives others."""

    echo: Echo = print
    dry: bool = False
    sleep: Callable[[float], None] = time.sleep
    clock: Callable[[], float] = time.monotonic

    def call(
        self,
        argv: Sequence[str],
        stdin: str | None = None,
        timeout: float = 1800.0,
        answer: str = "",
        reads: bool = False,
    ) -> Done:
        """Runs a program and waits for it.

        Args:
          argv: the program and its words.
          stdin: text that it is given.
          timeout: seconds after which it is killed; the code is then `TIMED_OUT`.
          answer: what a dry run takes for its output.
          reads: it changes nothing. A dry run says so, and does not call it either: it works without a cloud.

        Raises:
          LaunchError: there is no such program.
        """
        if self.dry:
            self.echo(f"{'# reads: ' if reads else ''}{shlex.join(argv)}")
            if stdin:
                self.echo("".join(f"  | {line}\n" for line in stdin.splitlines()).rstrip("\n"))
            return Done(0, answer)
        try:
            done = subprocess.run(
                list(argv), input=stdin or "", capture_output=True, text=True, errors="replace", timeout=timeout
            )
        except FileNotFoundError:
            raise LaunchError(f"{argv[0]}: no such program on this machine; install it, or use --dry_run") from None
        except subprocess.TimeoutExpired:
            return Done(TIMED_OUT, "", f"{argv[0]} took longer than {timeout:.0f} s")
        return Done(done.returncode, done.stdout, done.stderr)


def remote(*commands: Sequence[str]) -> str:
    """One line for the shell of another machine: each command after the one before it succeeded. Words are quoted."""
    return " && ".join(shlex.join(command) for command in commands)
