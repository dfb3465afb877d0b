"""What do the devices do during a few steps? `train --profile=START:STOP` traces them into WORKDIR/profile.

Steps are numbered as in metrics.jsonl, from 1; STOP is left out, as in a Python range. The host waits for the devices
at the two edges and nowhere else. Only process 0 traces: all run the same program, and a trace is large. A resumed run
traces what is left of the window.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable
from pathlib import Path

import jax

from chinchilla_jax.config import ConfigError


def parse_window(text: str) -> range:
    """`100:105` as a range of steps; a `ConfigError` if it does not read START:STOP, or holds no step."""
    numbers = re.fullmatch(r"(\d+):(\d+)", text.strip())
    if not numbers:
        raise ConfigError("--profile", f"{text!r} should read START:STOP, e.g. 100:105 for the five steps from 100 on")
    start, stop = int(numbers[1]), int(numbers[2])
    if not 1 <= start < stop:
        rule = "the first step is 1 and STOP is left out, so that 100:105 are the five from 100 on"
        raise ConfigError("--profile", f"{start}:{stop} holds no step; {rule}")
    return range(start, stop)


class Profiler:
    """Traces a window of a run's steps, in the first process; a `ConfigError` if the run has fewer steps."""

    def __init__(self, window: range, directory: Path, total_steps: int, echo: Callable[[str], None]):
        if window.stop > total_steps + 1:
            beyond = f"{window.start}:{window.stop} goes beyond the run's {total_steps} steps"
            raise ConfigError("--profile", f"{beyond}; STOP is at most {total_steps + 1}")
        self._window = window if jax.process_index() == 0 else range(0)
        self._directory, self._echo = directory, echo
        self._running = False

    def begins(self, step: int) -> bool:
        """Whether to `start` before `step`."""
        return not self._running and step in self._window

    def ends(self, step: int) -> bool:
        """Whether to `stop` before `step`."""
        return self._running and step not in self._window

    def start(self) -> None:
        """Begins to trace. What the devices were given before must have ended."""
        options = jax.profiler.ProfileOptions()
        options.python_tracer_level = 0  # the host's Python calls would fill the file and slow down what is measured
        jax.profiler.start_trace(self._directory, profiler_options=options)
        self._running = True

    def step(self, step: int) -> contextlib.AbstractContextManager:
        """Names what is dispatched in a block, for the trace."""
        return jax.profiler.StepTraceAnnotation("train", step_num=step) if self._running else contextlib.nullcontext()

    def stop(self) -> None:
        """Writes the trace, if one is being made, and says how to look at it. The steps must have ended."""
        if not self._running:
            return
        self._running, self._window = False, range(0)
        jax.profiler.stop_trace()
        self._echo(
            f"profile: written to {self._directory}; look at it with `pip install xprof` and `xprof --logdir "
            f"{self._directory}`, or drop its .trace.json.gz on https://ui.perfetto.dev"
        )
