"""Where does a run's wall time go? Every second is booked under one part of `goodput.PARTS`, over restarts.

*Input wait.* A batch is made while the step before it runs. A thread notes when that step ends, so the loop need not
ask: only what the host still needs after that is waited for. Threads take turns in Python, so the note may be late by
one call into NumPy. On a CPU the host's work and the step share cores, and what one takes from the other is `step`.

*Lost.* A process that is killed leaves a checkpoint and, in timing.jsonl, stamps of where its time had gone. What they
hold beyond the checkpoint of steps, input wait and evaluation is lost; start-up, compilation and checkpoints stay what
they are. Nobody knows the time from the last stamp (at most `STAMP_SECONDS` and a step old) to the death, nor was there
a run while the machine waited for the next process: neither is counted. The interpreter's start and imports come before
`train` is called, and are not counted either.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from chinchilla_jax.training.timing.compile_time import compile_seconds
from chinchilla_jax.training.timing.goodput import DONE_AGAIN, PARTS, UNSPLIT

if TYPE_CHECKING:
    from chinchilla_jax.training.checkpoint import Position

STAMP_SECONDS = 10.0  # between stamps in timing.jsonl, at most, but for steps longer than that


class StepEnd:
    """When did the newest step end? A thread waits for it, so that the loop need not."""

    def __init__(self, timer: Callable[[], float]):
        self._timer = timer
        self._steps: queue.SimpleQueue = queue.SimpleQueue()
        self._ended: list[float] = []
        self._thread: threading.Thread | None = None

    def follow(self, output: Any) -> None:
        """A step was dispatched; `output` is one of its arrays."""
        if self._thread is None:
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
            self._steps.put((None, None))
            self._thread.join()
            self._thread = None

    def _wait(self) -> None:
        while True:
            output, ended = self._steps.get()
            if ended is None:
                return
            with contextlib.suppress(Exception):  # the loop reads the same array, and meets the same error
                output.block_until_ready()
            ended.append(self._timer())


class Clock:
    """The books of one run. Times are the timer's seconds; whatever was not booked yet goes to the next booking.

    Attributes:
      parts: seconds by part, restarts included. They add up to the run's time so far.
      tokens: those of the steps whose seconds are in `parts["step"]`.

    Args:
      timer: seconds from any origin; tests bring their own.
      compiled: seconds this thread has spent compiling so far; taken out of whatever part they fell in.
      step_end: a `StepEnd`.
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

        Args:
          position: of the checkpoint, or a fresh one.
          stamp: the newest line of timing.jsonl, see `goodput.last_stamp`.

        Returns:
          Seconds of work newer than the checkpoint, booked as lost.
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
        """Books the time since the last booking under `part`, but for what was compiled in it.

        Args:
          tokens: of the steps that ended.
          until: a reading of the timer between the last booking and now; now if None.
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
        """A block in which the host makes the next batch: input wait from the moment the devices have nothing to do."""
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
