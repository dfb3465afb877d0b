"""How does a machine work through a manifest? Worker processes, each on its own cores, watched and reported on."""

from __future__ import annotations

import contextlib
import os
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TextIO

from chinchilla_jax.base.errors import PREEMPTED
from chinchilla_jax.config import RunConfig
from chinchilla_jax.parallel.job import cores
from chinchilla_jax.study.execute.standby import GO, preparation
from chinchilla_jax.study.execute.worker import Stopped
from chinchilla_jax.study.folder import (
    MANIFEST,
    Manifest,
    PlannedRun,
    StudyError,
    progress,
    read_manifest,
    read_result,
)
from chinchilla_jax.study.plan import duration

# A worker killed from outside is started again; one that dies this often has a reason, such as too little memory.
MAX_RESTARTS = 3
TAIL_LINES = 15


def work(
    study: str | pathlib.Path,
    manifest: str = MANIFEST,
    workers: int | None = None,
    echo: Callable[[str], None] = print,
    command: Callable[[int], list[str]] | None = None,
    ready: Pool | None = None,
) -> None:
    """Trains every unfinished run of a manifest with `workers` processes on this machine. What is finished stays.

    Args:
      workers: `cores.default_workers` of them unless given. How many there are changes no run: each has the cores that
        were planned for it.
      command: argument list that starts worker i; by default `python -m chinchilla_jax work --worker=i`.
      ready: workers that stand by for this manifest.

    Raises:
      StudyError: no such manifest, or a worker failed; has the end of its log.
      Stopped: SIGINT or SIGTERM came; the runs in progress are saved.
    """
    study = pathlib.Path(study)
    plan = read_manifest(study / manifest)
    waiting = [run for run in plan.runs if read_result(study, run.name) is None]
    if not waiting:
        echo(f"{manifest}: all {len(plan.runs)} runs are finished")
        return
    template = plan.template()
    workers = min(workers or cores.default_workers(template), len(waiting))
    if cores.on_cpu() and workers * cores.of_study(template) > len(cores.available()):
        echo(f"{workers} workers of {cores.of_study(template)} cores each take turns on {len(cores.available())}")
    if ready:
        ready.resize(workers)
    pool = ready or Pool(study, workers, command or (lambda i: _command(study, manifest, i, workers)), echo)
    with _Signals() as signals:
        try:
            pool.start()
            _Monitor(study, plan, workers, echo).watch(pool, signals)
        finally:
            pool.stop()


@contextlib.contextmanager
def standing_by(
    study: pathlib.Path,
    manifest: str,
    template: RunConfig,
    waiting: Sequence[PlannedRun],
    workers: int,
    echo: Callable[[str], None],
) -> Iterator[Pool | None]:
    """Workers that get ready while the block finds out what they shall do; in it, hand them to `work`.

    Args:
      template: the study's config.
      waiting: the unfinished runs in `training_order`, as far as they are known: each worker compiles one of the first.

    None where accelerators compute: a worker would take them from whoever has them now.
    """
    if not cores.on_cpu():
        yield None
        return
    pool = Pool(study, workers, lambda i: _command(study, manifest, i, workers), echo)
    try:
        pool.stand_by([preparation(template, waiting[i] if i < len(waiting) else None) for i in range(workers)])
        yield pool
    finally:
        pool.stop()


def _command(study: pathlib.Path, manifest: str, worker: int, workers: int) -> list[str]:
    return [sys.executable, "-m", "chinchilla_jax", "work", f"--study={study}", f"--manifest={manifest}",
            f"--worker={worker}", f"--workers={workers}", f"--parent={os.getpid()}"]  # fmt: skip


class Pool:
    """The worker processes."""

    def __init__(self, study: pathlib.Path, workers: int, command, echo: Callable[[str], None]):
        self.study, self.command, self.echo = study, command, echo
        self.processes: list[subprocess.Popen | None] = [None] * workers
        self.restarts = [0] * workers
        self._logs: list[TextIO] = []
        self._at_work = False

    def log(self, worker: int) -> pathlib.Path:
        return self.study / "logs" / f"worker-{worker}.log"

    def stand_by(self, told: list[bytes]) -> None:
        """Starts the workers ahead of their work; `told` is the line for each."""
        for worker, line in enumerate(told):
            self._start(worker, standby=True)
            with contextlib.suppress(BrokenPipeError):  # one that has died already is noticed when it is needed
                self.processes[worker].stdin.write(line)
                self.processes[worker].stdin.flush()

    def resize(self, workers: int) -> None:
        """Before they begin: ends those that are too many; any that are missing are started when the others begin."""
        for process in filter(None, self.processes[workers:]):
            process.kill()
        self.processes = (self.processes + [None] * workers)[:workers]
        self.restarts = [0] * workers

    def start(self) -> None:
        """Has the workers begin."""
        self._at_work = True
        for worker, process in enumerate(self.processes):
            if process is None:
                self._start(worker)
                continue
            with contextlib.suppress(BrokenPipeError):
                process.stdin.write(GO)
                process.stdin.close()

    def _start(self, worker: int, standby: bool = False) -> None:
        self.log(worker).parent.mkdir(parents=True, exist_ok=True)
        log = self.log(worker).open("a", encoding="utf-8")
        self._logs.append(log)
        # In its own session, so that Ctrl-C reaches only this process, which then asks the workers to save and stop.
        self.processes[worker] = subprocess.Popen(
            self.command(worker) + ["--standby"] * standby, stdin=subprocess.PIPE if standby else subprocess.DEVNULL,
            stdout=log, stderr=subprocess.STDOUT, start_new_session=True, env=os.environ | {"PYTHONUNBUFFERED": "1"},
        )  # fmt: skip

    def running(self) -> bool:
        """Looks after the workers: whether any is still at work.

        Raises:
          StudyError: one failed, or keeps dying.
          Stopped: one was told to stop by somebody else.
        """
        for worker, process in enumerate(self.processes):
            code = process.poll() if process else None
            if code is None:
                continue
            if code == 0:
                self.processes[worker] = None
            elif code in (PREEMPTED, -signal.SIGTERM):
                raise Stopped(f"worker {worker} was asked to stop")
            elif code < 0 and self.restarts[worker] < MAX_RESTARTS:
                self.restarts[worker] += 1
                self.echo(f"worker {worker} was killed by {signal.Signals(-code).name}; starting it again "
                          f"({self.restarts[worker]} of {MAX_RESTARTS})")  # fmt: skip
                self._start(worker)
            else:
                self._fail(worker, code)
        return any(self.processes)

    def _fail(self, worker: int, code: int) -> None:
        lines = self.log(worker).read_text(encoding="utf-8", errors="replace").splitlines()
        self.echo(f"--- the end of {self.log(worker)} ---")
        for line in lines[-TAIL_LINES:]:
            self.echo(f"    {line}")
        last = next((line for line in reversed(lines) if line.strip()), "no output")
        how = f"killed by signal {-code} {MAX_RESTARTS + 1} times" if code < 0 else f"failed with exit code {code}"
        raise StudyError(f"worker {worker} {how}: {last.strip()}", code if code in (1, 2) else 1)

    def stop(self) -> None:
        """Asks the workers to save and stop, and waits until they have. A second signal ends them at once."""
        left = [process for process in self.processes if process and process.poll() is None]
        if left and self._at_work:
            self.echo(f"stopping {len(left)} workers: they save what they are training first")
        try:
            asked = 0.0
            while left := [process for process in left if process.poll() is None]:
                # Again and again: a signal that comes between two runs, or while one starts, may be missed.
                if time.monotonic() - asked > 2.0:
                    asked = time.monotonic()
                    for process in left:
                        process.terminate()
                time.sleep(0.05)
        except KeyboardInterrupt:
            for process in left:
                process.kill()
            raise
        finally:
            for log in self._logs:
                log.close()


class _Signals:
    """Notes the first SIGINT or SIGTERM; the second one interrupts."""

    def __init__(self):
        self.received: str | None = None
        self._before: dict = {}

    def __enter__(self):
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._on_signal)
        return self

    def _on_signal(self, number, _):
        if self.received:
            raise KeyboardInterrupt
        self.received = signal.Signals(number).name

    def __exit__(self, *_):
        for number, handler in self._before.items():
            signal.signal(number, handler)


class _Monitor:
    """Reports how far the runs are, from what they write."""

    def __init__(self, study: pathlib.Path, plan: Manifest, workers: int, echo: Callable[[str], None]):
        self.study, self.plan, self.workers, self.echo = study, plan, workers, echo
        self.every = 5.0 if sys.stdout.isatty() else 15.0
        self.finished = {run.name for run in plan.runs if read_result(study, run.name) is not None}
        self.started, self.first = time.monotonic(), self._done()

    def _done(self) -> float:
        return sum(run.spent() * progress(self.study, run) for run in self.plan.runs)

    def watch(self, pool: Pool, signals: _Signals) -> None:
        """Returns when all workers are through."""
        said = time.monotonic()
        while pool.running():
            if signals.received:
                raise Stopped(f"{signals.received} received; what was in progress is saved, the same command goes on")
            time.sleep(0.2)
            if time.monotonic() - said >= self.every:
                said = time.monotonic()
                self._report_finished()
                self.echo(self.line())
        self._report_finished()
        self.echo(self.line())
        missing = [run.name for run in self.plan.runs if run.name not in self.finished]
        if missing:
            raise StudyError(f"the workers ended without finishing {', '.join(missing)}; see {self.study / 'logs'}", 1)

    def _report_finished(self) -> None:
        for run in self.plan.runs:
            if run.name not in self.finished and (result := read_result(self.study, run.name)) is not None:
                self.finished.add(run.name)
                self.echo(finished_line(run, result))

    def line(self) -> str:
        """Progress in one line."""
        total, done = sum(run.spent() for run in self.plan.runs), self._done()
        elapsed = time.monotonic() - self.started
        speed = (done - self.first) / elapsed if elapsed else 0.0
        if speed > 0:
            left = duration((total - done) / speed)
        else:
            left = f"{duration((total - done) / self.plan.template().study.flops_per_second / self.workers)} (guess)"
        return (f"{len(self.finished)}/{len(self.plan.runs)} runs, {done / total:.1%} of {total:.3g} FLOPs, "
                f"{speed / 1e9:.1f} GFLOP/s, {duration(elapsed)} elapsed, {left} left")  # fmt: skip


def finished_line(run: PlannedRun, result: dict) -> str:
    """What there is to say about a finished run."""
    if result.get("diverged"):
        return f"{run.name}: diverged; it takes no part in the fits"
    loss, seconds = result.get("loss"), result.get("seconds")
    return f"{run.name}: loss {loss:.4f} nats/token" + (f" in {duration(seconds)}" if seconds is not None else "")
