"""How does a process of several end, when the C++ runtime under it aborts? With one line and an exit code.

JAX ends a process that loses its peers, or cannot join them, by SIGABRT and a page of C++; Python has no say in it. So
a child, forked before JAX is imported, does the work. This process only watches: it passes on signals and the child's
stderr, and turns the way the child ended into a message and an exit code.

    42  another process is gone, or a signal came: what was saved is there, start again
     2  the processes never found each other
"""

from __future__ import annotations

import collections
import contextlib
import ctypes
import mmap
import os
import re
import signal
import sys
import threading
from collections.abc import Callable

from chinchilla_jax.base.errors import PREEMPTED, USAGE

_RUNTIME = re.compile(rb"^[EF]\d{4} .*(coordination_service|coordination/|client\.h:\d+\])")
_FATAL = b"JAX distributed service detected fatal errors"
_UNHEALTHY = re.compile(r"stopped sending heartbeats\):\n((?:\d+\n)+)")
_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_SET_PARENT_DEATH_SIGNAL = 1  # prctl(2)


def guarded(unreachable: str) -> Callable[[], None]:
    """Goes on in a child. The parent never returns from here: it exits as the child's end demands.

    The child calls what is returned when it has joined the other processes; until then its death is `unreachable`.
    """
    joined = mmap.mmap(-1, 1)  # shared with the parent
    read, write = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    parent = os.getpid()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)  # one that came now would end the parent alone
    child = os.fork()
    if child:
        os.close(write)
        sys.exit(_watch(child, read, joined, unreachable))
    signal.pthread_sigmask(signal.SIG_SETMASK, before)
    os.close(read)
    os.dup2(write, 2)
    os.close(write)
    os.setpgid(0, 0)  # Ctrl-C reaches the parent alone, which passes it on: else the child would count it twice
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(PREEMPTED)  # it died before it could be watched

    def has_joined() -> None:
        joined[0] = 1

    return has_joined


def _watch(child: int, stderr: int, joined: mmap.mmap, unreachable: str) -> int:
    """The exit code of the child, or the one that its death amounts to, explained on stderr."""
    received = []

    def pass_on() -> None:
        while True:
            received.append(signal.sigwait(_SIGNALS))
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, received[-1])

    # A thread that waits for signals, which stay blocked: a handler would not run while `read` below blocks, if the
    # signal came just before it.
    threading.Thread(target=pass_on, daemon=True).start()
    withheld: collections.deque[bytes] = collections.deque(maxlen=200)
    fatal = False
    with os.fdopen(stderr, "rb") as lines:
        for line in lines:
            fatal = fatal or _FATAL in line
            if fatal or _RUNTIME.match(line):
                withheld.append(line)  # the runtime's last words, it seems; they are told in ours below
            else:
                os.write(2, b"".join(withheld) + line)
                withheld.clear()
    _, status = os.waitpid(child, 0)
    code, last = os.waitstatus_to_exitcode(status), b"".join(withheld)
    if code == -signal.SIGABRT and _FATAL in last:
        if not joined[0]:
            return _say(unreachable, USAGE)
        silent = _UNHEALTHY.search(last.decode(errors="replace"))
        lost = "lost contact with process 0, which keeps the others together"
        if silent:
            lost = f"process {', '.join(silent[1].split())} stopped answering"
        return _say(f"{lost}; stopped without saving. Start again to go on from the last checkpoint", PREEMPTED)
    os.write(2, last)
    if -code in received:
        return _say("stopped before there was anything to save; start again", PREEMPTED)
    if code < 0:
        return _say(f"killed by {signal.Signals(-code).name}", 128 - code)
    return code


def _say(message: str, code: int) -> int:
    os.write(2, f"chinchilla_jax: {message}\n".encode())
    return code
