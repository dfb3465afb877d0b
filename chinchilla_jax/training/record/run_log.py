"""The log of a run: losses in metrics.jsonl, where the time goes in timing.jsonl, and a line now and then to read."""

from __future__ import annotations

import collections
import contextlib
import math
import time
from collections.abc import Callable, Iterator

from chinchilla_jax.training.checkpoint import Position
from chinchilla_jax.training.record.metrics import MetricWriter, NoWriter
from chinchilla_jax.training.stages import Course
from chinchilla_jax.training.stops import Diverged
from chinchilla_jax.training.timing.clock import STAMP_SECONDS, Clock
from chinchilla_jax.training.timing.goodput import goodput

LINE_SECONDS = 5.0  # between lines to read, at least


class RunLog:
    """Per-step metrics, one step late: device scalars wait here until a later step has been dispatched."""

    def __init__(
        self,
        course: Course,
        writer: MetricWriter | NoWriter,
        position: Position,
        clock: Clock,
        flops_per_token: float,
        echo: Callable[[str], None],
    ):
        self._course, self._writer, self._position, self._clock = course, writer, position, clock
        self._flops_per_token, self._echo = flops_per_token, echo
        self._waiting: collections.deque = collections.deque()
        self._told = self._stamped = time.perf_counter()

    @contextlib.contextmanager
    def pause(self, part: str) -> Iterator[None]:
        """A block that the next step waits for: the steps before it end first, and its time is booked under `part`."""
        self.catch_up(keep=0)
        with self._clock.spent(part):
            yield

    def dispatched(self, lr: float, metrics: dict, sequences: int) -> None:
        """A step was sent to the devices."""
        self._waiting.append((self._position.step, lr, metrics, sequences))

    def catch_up(self, keep: int) -> None:
        """Handles all but the `keep` newest steps.

        Raises:
          Diverged: at the first whose loss or gradient is not finite.
        """
        while len(self._waiting) > keep:
            step, lr, metrics, sequences = self._waiting.popleft()
            config = self._course.at(step).config
            loss, grad_norm = float(metrics["loss"]), float(metrics["grad_norm"])
            self._clock.book("step", sequences * config.data.seq_len)
            if not math.isfinite(loss + grad_norm):  # a loss may be finite and what its gradient did to the weights not
                raise Diverged(
                    f"loss is {loss}, gradient norm {grad_norm} at step {step}; checkpoints from before (every "
                    f"{config.train.checkpoint_every} steps, 0 for none) are kept. Lower optimizer.peak_lr="
                    f"{config.optimizer.peak_lr} or optimizer.clip_norm, in another --workdir"
                )
            losses = self._position.losses
            losses.append(loss)
            if step % config.train.log_every == 0:
                mean = sum(losses) / len(losses)
                self._write_metrics(step, loss=mean, lr=lr, grad_norm=grad_norm)
                losses.clear()
                self._speed(step)
            elif time.perf_counter() - self._stamped > STAMP_SECONDS:
                self.stamp(step)

    def _write_metrics(self, step: int, **values: float) -> None:
        self._writer.write("metrics", {"step": step, "tokens": self._course.at(step).tokens(step), **values})

    def _speed(self, step: int) -> None:
        speed = self._clock.window()
        if speed is None:
            return
        flops_per_second = speed * self._flops_per_token
        self.stamp(step, tokens_per_second=speed, flops_per_second=flops_per_second)
        if self._stamped - self._told > LINE_SECONDS:
            self._told = self._stamped
            left = (self._course.total_tokens - self._course.at(step).tokens(step)) / speed
            self._echo(
                f"step {step}/{self._course.total_steps} {speed / 1e3:.1f}k tokens/s "
                f"{flops_per_second / 1e9:.1f} GFLOP/s, {left:.0f} s left"
            )

    def stamp(self, step: int, **speed: float) -> None:
        """Writes where the time went so far, for whoever goes on should this process be killed."""
        parts = {part: round(seconds, 6) for part, seconds in self._clock.parts.items()}
        record = {"step": step, "seconds": self._clock.seconds(), **speed, "goodput": goodput(parts), "time": parts}
        self._writer.write("timing", record)
        self._stamped = time.perf_counter()

    def evaluation(self, validation: dict[str, float]) -> None:
        """Writes an evaluation if it was owed.

        Raises:
          Diverged: its loss is not finite.
        """
        step = self._position.step
        if not math.isfinite(validation["validation_loss"]):
            raise Diverged(f"validation loss is {validation['validation_loss']} at step {step}")
        if self._position.evaluation_owed:
            self._write_metrics(step, **validation)
            self._position.evaluation_owed = False
        self.stamp(step)

    def close(self) -> None:
        """The last stamp: a run that stops, or fails, loses no account of its time."""
        self.stamp(self._position.step)
        self._writer.close()
