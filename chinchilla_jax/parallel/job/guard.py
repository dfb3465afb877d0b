"""How does a process of several end, when the C++ runtime under it aborts? With one line and an exit code.

JAX ends a process that loses its peers, or cannot join them, by SIGABRT and a page of C++, and offers Python no say in
it. So the work is done in a child, forked before JAX is imported, and this process only watches: it passes signals on,
passes the child's stderr on, and turns the way the child ended into a message and an exit code.

    42  another process is gone, or a signal came: what was saved is there, start again
     2  the processes never found each other
"""

from __future__ import annotations

import collections
import ctypes
import mmap
import os
import re
import signal
import sys
from collections.abc import Iterator

from chinchilla_jax.base.errors import PREEMPTED, USAGE

_RUNTIME = re.compile(rb"^[EF]\d{4} .*(coordination_service|coordination/|client\.h:\d+\])")
_FATAL = b"JAX distributed service detected fatal errors"
_UNHEALTHY = re.compile(r"stopped sending heartbeats\):\n((?:\d+\n)+)")
_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_SET_PARENT_DEATH_SIGNAL = 1  # prctl(2)


class Guard:
    """Known to parent and child alike: whether the child has joined the other processes."""

    def __init__(self):
        self._shared = mmap.mmap(-1, 1)

    @property
    def joined(self) -> bool:
        """Whether the processes have found each other."""
        return self._shared[0] == 1

    @joined.setter
    def joined(self, value: bool) -> None:
        self._shared[0] = int(value)


def guarded(unreachable: str) -> Guard:
    """Goes on in a child. The parent never returns from here: it exits as the child's end demands.

    Args:
      unreachable: what to say when the child could not join.
    """
    guard = Guard()
    read, write = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    parent = os.getpid()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)  # one that came now would end the parent alone
    child = os.fork()
    if child:
        os.close(write)
        sys.exit(_watch(child, read, guard, unreachable))
    signal.pthread_sigmask(signal.SIG_SETMASK, before)
    os.close(read)
    os.dup2(write, 2)
    os.close(write)
    os.setpgid(0, 0)  # Ctrl-C reaches the parent alone, which passes it on: else the child would count it twice
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(PREEMPTED)  # it died before it could be watched
    return guard


def _watch(child: int, stderr: int, guard: Guard, unreachable: str) -> int:
    """The exit code of the child, or the one that its death amounts to, explained on stderr."""
    received = []

    def pass_on(number, _):
        received.append(number)
        os.kill(child, number)

    for number in _SIGNALS:
        signal.signal(number, pass_on)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
    withheld = collections.deque(maxlen=200)
    fatal = False
    for line in _lines(stderr):
        fatal = fatal or _FATAL in line
        if fatal or _RUNTIME.match(line):
            withheld.append(line)  # the runtime's last words, it seems; they are told in ours below
        else:
            os.write(2, b"".join(withheld) + line)
            withheld.clear()
    _, status = os.waitpid(child, 0)
    code, last = os.waitstatus_to_exitcode(status), b"".join(withheld)
    if code == -signal.SIGABRT and _FATAL in last:
        if not guard.joined:
            return _say(unreachable, USAGE)
        return _say(
            f"{_lost(last.decode(errors='replace'))}; stopped without saving. Start again to go on from the "
            "last checkpoint",
            PREEMPTED,
        )
    os.write(2, last)
    if -code in received:
        return _say("stopped before there was anything to save; start again", PREEMPTED)
    if code < 0:
        return _say(f"killed by {signal.Signals(-code).name}", 128 - code)
    return code


def _lines(descriptor: int) -> Iterator[bytes]:
    with os.fdopen(descriptor, "rb") as stream:
        yield from stream


def _lost(words: str) -> str:
    match = _UNHEALTHY.search(words)
    if match is None:
        return "lost contact with process 0, which keeps the others together"
    return f"process {', '.join(match[1].split())} stopped answering"


def _say(message: str, code: int) -> int:
    os.write(2, f"chinchilla_jax: {message}\n".encode())
    return code
