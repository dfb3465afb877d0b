"""What a run writes while it runs.

metrics.jsonl   one line per logged step or evaluation: only values that a rerun reproduces to the bit
timing.jsonl    what the clock had booked by then, by part, over restarts; at logged steps tokens/s and FLOP/s too.
                It is never cut: steps that a restart does again are there twice, and the last line before it says
                what the process that was killed had spent

The numbers of both go to the run's tracker too (`trackers.py`).
"""

from __future__ import annotations

import collections
import contextlib
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from chinchilla_jax.base import files
from chinchilla_jax.base.errors import FAILED, ExplainedError
from chinchilla_jax.model.experts import MEANS
from chinchilla_jax.parallel.job import distributed
from chinchilla_jax.training import labels
from chinchilla_jax.training.checkpoint import Position
from chinchilla_jax.training.record.trackers import TensorBoard, Tracker, open_tracker
from chinchilla_jax.training.schedule import is_due
from chinchilla_jax.training.stages import Course
from chinchilla_jax.training.timing.clock import STAMP_SECONDS, Clock, goodput

LINE_SECONDS = 5.0  # between lines to read, at least


class Diverged(ExplainedError):
    """The loss is not finite: starting again would do the same."""

    exit_code = FAILED


class MetricWriter:
    """Appends lines to a run's files, after cutting off the metrics that lie past the position it resumes from.

    Numbers go to `tracker` besides; if none is given, to TensorBoard. `echo` is told what has been lost of the metrics,
    of which there are some from step `log_every` on.
    """

    def __init__(
        self,
        directory: Path,
        position: Position,
        tracker: Tracker | None = None,
        echo: Callable[[str], None] = print,
        log_every: int = 1,
    ):
        paths = {name: files.path(directory) / f"{name}.jsonl" for name in ("metrics", "timing")}
        if files.exists(paths["metrics"]):
            _truncate(files.path(directory), position, echo)
        elif position.step >= log_every:
            echo(f"{paths['metrics']} is missing: what was logged up to step {position.step} is lost")
        _end_line(paths["timing"])
        self._files = {name: files.Appender(path) for name, path in paths.items()}
        self._tracker = tracker or TensorBoard(files.path(directory), position.step)

    def write(self, kind: str, record: dict) -> None:
        """One line in `metrics` or `timing`; its numbers are tracked as `metrics/...` or `timing/...`."""
        self._files[kind].write(json.dumps(record) + "\n")
        numbers = {f"{kind}/{k}": v for k, v in record.items() if k != "step" and isinstance(v, (int, float))}
        self._tracker.log(record["step"], numbers)

    def flush(self) -> None:
        """Returns when every line can be read."""
        for file in self._files.values():
            file.flush()

    def close(self) -> None:
        """Flushes and closes everything."""
        for file in self._files.values():
            file.close()
        self._tracker.close()


def _of_routers(metrics: Mapping[str, Any]) -> dict[str, float]:
    """What the routers of a step report, if there are any."""
    return {name: float(metrics[name]) for name in MEANS if name in metrics}


class RunLog:
    """Per-step metrics, one step late: device scalars wait here until a later step has been dispatched.

    Of several processes the first one writes.
    """

    def __init__(self, course: Course, workdir: Path, position: Position, clock: Clock, echo: Callable):
        self._course, self._position, self._clock, self._echo = course, position, clock, echo
        self._writer = None
        if distributed.first():
            tracker = open_tracker(course.config, workdir, position.step, echo)
            self._writer = MetricWriter(workdir, position, tracker, echo, course.config.train.log_every)
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
        """Handles all but the `keep` newest steps; raises `Diverged` at the first whose numbers are not finite."""
        while len(self._waiting) > keep:
            step, lr, metrics, sequences = self._waiting.popleft()
            stage = self._course.at(step)
            config, border = stage.config, self._course.changes_after(step)
            loss, grad_norm = float(metrics["loss"]), float(metrics["grad_norm"])
            self._clock.book("step", sequences * config.data.seq_len)
            if not math.isfinite(loss + grad_norm):  # a loss may be finite and what its gradient did to the weights not
                raise Diverged(
                    f"loss is {loss}, gradient norm {grad_norm} at step {step}; checkpoints from before (every "
                    f"{config.train.checkpoint_every} steps, 0 for none) are kept. Lower optimizer.peak_lr="
                    f"{config.optimizer.peak_lr} or optimizer.clip_norm, in another --workdir"
                )
            self._add(loss, metrics, config.data.teacher_weight)
            if step % config.train.log_every == 0 or border:  # no average over stages that minimise other things
                values = self._averages() | _of_routers(metrics)
                self._write_metrics(step, **values, lr=lr, grad_norm=grad_norm)
                self._speed(step)
            elif time.perf_counter() - self._stamped > STAMP_SECONDS:
                self.stamp(step)

    def _add(self, loss: float, metrics: dict, label_weight: float) -> None:
        """Counts the loss of a step; of one with labels that of its text, if it had any, and the labels apart."""
        position = self._position
        if "labels" in metrics:
            loss, sums = labels.of_step(metrics, label_weight)
            position.labels = [a + b for a, b in zip(position.labels or [0.0] * len(sums), sums, strict=True)]
        if math.isfinite(loss):
            position.losses.append(loss)

    def _averages(self) -> dict[str, float]:
        """Of the steps since the last logged line, which begins anew."""
        position = self._position
        averages = {"loss": sum(position.losses) / len(position.losses)} if position.losses else {}
        averages |= labels.record(position.labels) if position.labels else {}
        position.losses, position.labels = [], []
        return averages

    def _write(self, kind: str, record: dict[str, Any]) -> None:
        if self._writer:
            self._writer.write(kind, record)

    def _write_metrics(self, step: int, **values: float) -> None:
        self._write("metrics", {"step": step, "tokens": self._course.at(step).tokens(step), **values})

    def _speed(self, step: int) -> None:
        speed, course = self._clock.window(), self._course
        if speed is None:
            return
        stage = course.at(step)
        flops_per_second = speed * stage.flops["executed"] / stage.own_tokens
        self.stamp(step, tokens_per_second=speed, flops_per_second=flops_per_second)
        if self._stamped - self._told > LINE_SECONDS:
            self._told = self._stamped
            speeds = f"{speed / 1e3:.1f}k tokens/s {flops_per_second / 1e9:.1f} GFLOP/s"
            left = (course.executed(course.total_steps) - course.executed(step)) / flops_per_second
            self._echo(f"step {step}/{course.total_steps} {speeds}, {left:.0f} s left")

    def stamp(self, step: int, **speed: float) -> None:
        """Writes where the time went so far, for whoever goes on should this process be killed."""
        parts = {part: round(seconds, 6) for part, seconds in self._clock.parts.items()}
        seconds = self._clock.seconds()
        self._write("timing", {"step": step, "seconds": seconds, **speed, "goodput": goodput(parts), "time": parts})
        self._stamped = time.perf_counter()

    def evaluation(self, validation: dict[str, float]) -> None:
        """Writes an evaluation if it was owed; raises `Diverged` if its loss is not finite."""
        step = self._position.step
        if not math.isfinite(validation["validation_loss"]):
            raise Diverged(f"validation loss is {validation['validation_loss']} at step {step}")
        if self._position.evaluation_owed:
            self._write_metrics(step, **validation)
            self._position.evaluation_owed = False
        self.stamp(step)

    def flush(self) -> None:
        """Returns when every line so far can be read."""
        if self._writer:
            self._writer.flush()

    def close(self) -> None:
        """The last stamp: a run that stops, or fails, loses no account of its time."""
        self.stamp(self._position.step)
        if self._writer:
            self._writer.close()


def read_metrics(directory: Path, echo: Callable[[str], None] | None = None) -> list[dict]:
    """The lines of a run's `metrics.jsonl`, without one that a killed run was writing, and without damaged ones, of
    which `echo` is told.
    """
    path, records = files.path(directory) / "metrics.jsonl", []
    lines = files.read_bytes(path).split(b"\n") if files.exists(path) else []
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
            if not isinstance(record["step"], int):
                raise TypeError("no step")
            records.append(record)
        except (ValueError, KeyError, TypeError):
            if echo and number < len(lines):  # the last line ends without a line break where a run was killed
                echo(f"{path}: line {number} is damaged, and left out")
    return records


def adopt_metrics(trunk: Path, directory: Path, eval_every: int) -> None:
    """Makes the trunk's metrics those of a branch: what the branch would have written, had it trained those steps.

    A trunk evaluates at its end too, a branch only if `eval_every` says so. The writer cuts off lines past the fork.
    """

    def is_ours(record: dict) -> bool:
        return "validation_loss" not in record or is_due(eval_every, record["step"])

    _copy_metrics(trunk, directory, is_ours)


def _truncate(directory: Path, position: Position, echo: Callable[[str], None]) -> None:
    """Keeps what was logged up to the position: a killed run may have logged steps that it will do again."""

    def is_done(record: dict) -> bool:
        owed = "validation_loss" in record and position.evaluation_owed
        return record["step"] < position.step or (record["step"] == position.step and not owed)

    _copy_metrics(directory, directory, is_done, echo)


def _copy_metrics(
    source: Path, target: Path, keep: Callable[[dict], bool], echo: Callable[[str], None] | None = None
) -> None:
    lines = [json.dumps(record) + "\n" for record in read_metrics(source, echo) if keep(record)]
    files.write_text(target / "metrics.jsonl", "".join(lines))


def _end_line(path: Path) -> None:
    """What a killed run was writing becomes a line of its own, which readers pass over."""
    if files.exists(path) and files.read_end(path, 1) not in (b"", b"\n"):
        end = files.Appender(path)
        end.write("\n")
        end.close()
