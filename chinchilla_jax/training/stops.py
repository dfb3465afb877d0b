"""What stops a run before its end: a signal, or numbers that are not finite."""

from __future__ import annotations

import signal
import threading

from chinchilla_jax.base.errors import FAILED, PREEMPTED, ExplainedError


class Preempted(ExplainedError):
    """SIGTERM arrived: the run has saved its state and wants to be started again."""

    exit_code = PREEMPTED


class Diverged(ExplainedError):
    """The loss is not finite: starting again would do the same."""

    exit_code = FAILED


class Signals:
    """Remembers, within its `with` block, that SIGTERM or Ctrl-C arrived. A second Ctrl-C interrupts."""

    def __init__(self):
        self.received = False
        self._previous = {}

    def __enter__(self) -> Signals:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._previous[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *_) -> None:
        for number, previous in self._previous.items():
            signal.signal(number, previous)

    def _on_signal(self, number, _):
        if self.received and number == signal.SIGINT:
            self.__exit__()
            signal.raise_signal(number)
        self.received = True
