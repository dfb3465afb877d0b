"""How long has this thread been compiling? JAX reports every trace, lowering and compilation; a cache hit is short."""

from __future__ import annotations

import functools
import threading

import jax

_EVENTS = frozenset(
    f"/jax/core/compile/{name}_duration" for name in ("jaxpr_trace", "jaxpr_to_mlir_module", "backend_compile")
)


class Spans:
    """Seconds covered by time spans that are reported as they end, by thread. Spans nest: a trace holds others."""

    def __init__(self):
        self._threads = threading.local()

    def add(self, event: str, start: float, end: float, **_) -> None:
        """A span of the calling thread ended; events that are not about compiling are ignored."""
        if event not in _EVENTS:
            return
        spans = self._of_this_thread()
        while spans.outermost and spans.outermost[-1][0] >= start:
            inner = spans.outermost.pop()
            spans.seconds -= inner[1] - inner[0]
        spans.outermost.append((start, end))
        spans.seconds += end - start

    def seconds(self) -> float:
        """Of the calling thread, so far."""
        return self._of_this_thread().seconds

    def _of_this_thread(self) -> threading.local:
        if not hasattr(self._threads, "outermost"):
            self._threads.outermost, self._threads.seconds = [], 0.0
        return self._threads


@functools.cache
def _listening() -> Spans:
    spans = Spans()
    jax.monitoring.register_event_time_span_listener(spans.add)
    return spans


def compile_seconds() -> float:
    """Seconds this thread spent tracing, lowering and compiling since the first call; other threads' are their own."""
    return _listening().seconds()
