"""Where does a run's wall time go? `Clock` books every second under one part, over restarts.

    startup      from the call of `train` to the loop: data, mesh, weights or their restoring; the profiler's edges
    compile      tracing, lowering and compiling, or loading from the compilation cache, whatever asked for it
    input_wait   devices without work while the host makes the next batch and places it
    step         everything else between two bookings in the loop: a step runs, or the host logs and dispatches
    evaluation   validation
    checkpoint   the loop stands still for a checkpoint; what is written while steps run costs nothing
    lost         steps, input wait and evaluations that a restart has to do again

Goodput is the share of `step`. Seconds of an older checkpoint that has no parts are `unsplit`: in the total, but in no
share and no utilisation.

*Input wait.* A batch is made while the step before it runs. A thread notes when that step ends: only what the host
still needs after that is waited for. The note may be late by one call into NumPy, since Python's threads take turns. On
a CPU the host's work and the step share cores, and what one takes from the other is `step`.

*Lost.* A process that is killed leaves a checkpoint and, in timing.jsonl, stamps of where its time had gone. What they
hold beyond the checkpoint of steps, input wait and evaluations is lost; other parts stay what they are. Not counted:
the time from the last stamp (at most `STAMP_SECONDS` and a step old) to the death, the wait for the next process, and
the interpreter's start and imports, which come before `train` is called.
"""

from __future__ import annotations

import contextlib
import functools
import json
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chinchilla_jax.base import files

if TYPE_CHECKING:
    from chinchilla_jax.training.checkpoint import Position

PARTS = ("startup", "compile", "input_wait", "step", "evaluation", "checkpoint", "lost")
DONE_AGAIN = ("input_wait", "step", "evaluation")  # after a restart, if newer than the checkpoint
UNSPLIT = "unsplit"
STAMP_SECONDS = 10.0  # between stamps in timing.jsonl, at most, but for steps longer than that
_COMPILING = [f"/jax/core/compile/{n}_duration" for n in ("jaxpr_trace", "jaxpr_to_mlir_module", "backend_compile")]


class CompileSpans(threading.local):
    """Seconds covered by time spans that are reported as they end, in each thread apart. A trace holds others."""

    def __init__(self) -> None:
        self._outermost: list[tuple[float, float]] = []
        self.seconds = 0.0

    def add(self, event: str, start: float, end: float, **_: Any) -> None:
        """A span of the calling thread ended; events that are not about compiling are ignored."""
        if event not in _COMPILING:
            return
        while self._outermost and self._outermost[-1][0] >= start:
            inner = self._outermost.pop()
            self.seconds -= inner[1] - inner[0]
        self._outermost.append((start, end))
        self.seconds += end - start


@functools.cache
def _compile_spans() -> CompileSpans:
    import jax

    spans = CompileSpans()
    jax.monitoring.register_event_time_span_listener(spans.add)
    return spans


def compile_seconds() -> float:
    """Seconds this thread spent tracing, lowering and compiling since the first call of any thread, as JAX reports."""
    return _compile_spans().seconds


class StepEnd:
    """When did the newest step end? A thread waits for it, so that the loop need not."""

    def __init__(self, timer: Callable[[], float]):
        self._timer = timer
        self._steps: queue.SimpleQueue[tuple[Any, list[float]] | None] = queue.SimpleQueue()
        self._ended: list[float] = []
        self._thread: threading.Thread | None = None

    def follow(self, output: Any) -> None:
        """A step was dispatched; `output` is one of its arrays."""
        if self._thread is None:  # a daemon: a process whose peers are lost must not wait for it
            self._thread = threading.Thread(target=self._wait, name="step end", daemon=True)
            self._thread.start()
        self._ended = []
        self._steps.put((output, self._ended))

    def time(self) -> float | None:
        """The timer's reading at the end of the newest step; None while it runs."""
        return self._ended[0] if self._ended else None

    def close(self) -> None:
        """Waits for the newest step, then ends the thread: one that waits inside JAX when Python exits aborts it."""
        if self._thread is not None:
            self._steps.put(None)
            self._thread.join()
            self._thread = None

    def _wait(self) -> None:
        while step := self._steps.get():
            output, ended = step
            with contextlib.suppress(Exception):  # the loop reads the same array, and meets the same error
                output.block_until_ready()
            ended.append(self._timer())


class Clock:
    """The books of one run. Times are the timer's seconds; whatever was not booked yet goes to the next booking.

    `parts` are the seconds by part, restarts included: they add up to the run's time so far. `tokens` are those of the
    steps whose seconds are in `parts["step"]`. Tests bring a timer of their own, seconds compiled by it, and `StepEnd`.
    """

    def __init__(
        self,
        timer: Callable[[], float] = time.perf_counter,
        compiled: Callable[[], float] = compile_seconds,
        step_end: StepEnd | None = None,
    ):
        self._timer, self._compiled = timer, compiled
        self._step_end = step_end or StepEnd(timer)
        self._dispatched = False
        self.parts: dict[str, float] = dict.fromkeys(PARTS, 0.0)
        self.tokens = 0
        self._mark, self._compiled_before = timer(), compiled()
        self._window = (0, 0.0)

    def resume(self, position: Position, stamp: Mapping[str, Any] | None) -> float:
        """Adds what was booked before this process: up to the checkpoint, and by those who died after it.

        `stamp` is what `last_stamp` found. Returns the seconds of work newer than the checkpoint, now `lost`.
        """
        before = dict.fromkeys(PARTS, 0.0) | position.parts
        unsplit = position.seconds - sum(before.values())
        if not position.parts and unsplit > 0:
            before[UNSPLIT] = unsplit
        lost = 0.0
        if stamp is not None and stamp["seconds"] > position.seconds:
            for part, seconds in stamp["time"].items():
                newer = seconds - before.get(part, 0.0)
                if part in DONE_AGAIN:
                    lost += newer
                else:
                    before[part] = seconds
        before["lost"] += lost
        for part, seconds in before.items():
            self.parts[part] = self.parts.get(part, 0.0) + seconds
        self.tokens += position.timed_tokens
        self._window = (self.tokens, self._training())
        return lost

    def store(self, position: Position) -> None:
        """Writes what is booked into a position, for a checkpoint to carry."""
        position.seconds, position.parts, position.timed_tokens = self.seconds(), dict(self.parts), self.tokens

    def book(self, part: str, tokens: int = 0, until: float | None = None) -> None:
        """Books the time from the last booking until now (or `until`) under `part`, but for what was compiled in it.

        `tokens` are those of the steps that ended.
        """
        until = self._timer() if until is None else until
        compiled = self._compiled()
        elapsed, self._mark = until - self._mark, until
        compiling = min(compiled - self._compiled_before, elapsed)
        self._compiled_before += compiling
        self.parts["compile"] += compiling
        self.parts[part] += elapsed - compiling
        self.tokens += tokens

    @contextlib.contextmanager
    def spent(self, part: str) -> Iterator[None]:
        """Books a block under `part`, and what came before it under `step`."""
        self.book("step")
        try:
            yield
        finally:
            self.book(part)

    @contextlib.contextmanager
    def preparing(self) -> Iterator[None]:
        """A block in which the host makes the next batch: input wait from the moment on that the devices are idle."""
        begun = self._timer()
        yield
        ended = self._step_end.time() if self._dispatched else begun
        if ended is not None:
            self.book("step", until=max(begun, ended))
            self.book("input_wait")

    def dispatched(self, output: Any) -> None:
        """A step was sent to the devices; `output` is one of its arrays."""
        self._dispatched = True
        self._step_end.follow(output)

    def close(self) -> None:
        """Ends the thread that watches the steps."""
        self._step_end.close()

    def seconds(self) -> float:
        """Seconds booked so far, restarts included."""
        return sum(self.parts.values())

    def _training(self) -> float:
        return self.parts["step"] + self.parts["input_wait"]

    def window(self) -> float | None:
        """Tokens/s of steps and input wait since the last call that gave any; None if no step ended since then."""
        tokens, seconds = self.tokens - self._window[0], self._training() - self._window[1]
        if not tokens or seconds <= 0:
            return None
        self._window = (self.tokens, self._training())
        return tokens / seconds

    def tokens_per_second(self) -> float:
        """The same of the whole run, without what was lost."""
        return self.tokens / self._training() if self._training() else 0.0


def last_stamp(workdir: Path, window: int = 65536) -> dict[str, Any] | None:
    """The newest line in the last `window` bytes of a run's timing.jsonl that says where the time went, or None."""
    path = files.path(workdir) / "timing.jsonl"
    for line in reversed(files.read_end(path, window).split(b"\n") if files.exists(path) else []):
        try:
            record = json.loads(line)
        except ValueError:
            continue  # cut at the window's start, or the line a process was killed in
        if isinstance(record, dict) and isinstance(record.get("time"), dict) and "seconds" in record:
            return record
    return None


def _split(parts: Mapping[str, float]) -> float:
    return sum(parts.get(part, 0.0) for part in PARTS)


def goodput(parts: Mapping[str, float]) -> float:
    """Share of the time in `step`: 0 to 1."""
    total = _split(parts)
    return parts.get("step", 0.0) / total if total > 0 else 0.0


def utilisation(
    parts: Mapping[str, float], tokens: int, flops_per_token: Mapping[str, float], peak: float
) -> dict[str, dict[str, float]]:
    """Share of the peak by FLOP convention, over `step` time alone and over `all` time.

    `tokens` are those of the steps in `parts["step"]` (steps done twice count once), `peak` FLOP/s of the whole mesh.
    """
    spans = {"step": parts.get("step", 0.0), "all": _split(parts)}
    return {
        over: {c: tokens * flops / seconds / peak if seconds > 0 else 0.0 for c, flops in flops_per_token.items()}
        for over, seconds in spans.items()
    }


def time_line(parts: Mapping[str, float], used: Mapping[str, Mapping[str, float]] | None = None) -> str:
    """`time: step 91.2%, compile 4.0%, ...; utilisation 41.0% of peak (6nd), 48.0% (executed)`; the last is of steps.

    `parts` may be those of several runs; shares below 0.05% are left out. `used` is what `utilisation` gives.
    """
    total = _split(parts)
    shares = sorted(((parts.get(part, 0.0) / total, part) for part in PARTS), reverse=True) if total > 0 else []
    words = [f"{part.replace('_', ' ')} {share:.1%}" for share, part in shares if share >= 0.0005]
    line = f"time: {', '.join(words) or 'nothing booked yet'}"
    if used:
        step = used["step"]
        line += f"; utilisation {step['6nd']:.1%} of peak (6nd), {step['executed']:.1%} (executed)"
    return line
