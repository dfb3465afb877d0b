"""The training loop: reads top-down, resumes exactly, explains itself in its run directory."""

from __future__ import annotations

import functools
import signal
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from chinchilla_jax.base import files
from chinchilla_jax.base.errors import PREEMPTED, ExplainedError
from chinchilla_jax.base.revision import code_revision
from chinchilla_jax.config import RunConfig
from chinchilla_jax.data.batches import Batch
from chinchilla_jax.parallel.job import distributed
from chinchilla_jax.parallel.mesh import make_mesh, place
from chinchilla_jax.training.checkpoint import Checkpoints, Position, restore_from
from chinchilla_jax.training.evaluate import evaluate
from chinchilla_jax.training.machine import hardware
from chinchilla_jax.training.objective import NEXT_TOKEN, Objective
from chinchilla_jax.training.record.directory import (
    check_data,
    check_directory,
    finished_result,
    take_directory,
    write_result,
)
from chinchilla_jax.training.record.metrics import Diverged, RunLog, adopt_metrics
from chinchilla_jax.training.record.space import check_room, faults_told
from chinchilla_jax.training.record.trackers import check_tracker
from chinchilla_jax.training.schedule import is_due, learning_rate
from chinchilla_jax.training.stages import Course, Stage, course_of
from chinchilla_jax.training.start import FirstWeights, Fork, check_trunk, content_of, open_batches
from chinchilla_jax.training.step import Program, TrainState, make_program
from chinchilla_jax.training.timing.clock import Clock, last_stamp
from chinchilla_jax.training.timing.expected import Expected
from chinchilla_jax.training.timing.profiler import Profiler

__all__ = ["Diverged", "Fork", "Preempted", "Stage", "train"]


class Preempted(ExplainedError):
    """SIGTERM arrived: the run has saved its state and wants to be started again."""

    exit_code = PREEMPTED


class Signals:
    """Remembers, within its `with` block, that SIGTERM or Ctrl-C arrived. A second Ctrl-C interrupts."""

    def __init__(self) -> None:
        self.received = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Signals:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._previous[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *_: object) -> None:
        for number, previous in self._previous.items():
            signal.signal(number, previous)

    def _on_signal(self, number: int, _: Any) -> None:
        if self.received and number == signal.SIGINT:
            self.__exit__()
            signal.raise_signal(number)
        self.received = True


def train(
    config: RunConfig,
    workdir: Path,
    *,
    facts: Mapping[str, Any] | None = None,
    fork: Fork | None = None,
    keep: Collection[int] = (),
    profile: range | None = None,
    objective: Objective = NEXT_TOKEN,
    then: Sequence[Stage] = (),
    first: FirstWeights | None = None,
    predicted: Mapping[str, Any] | None = None,
    echo: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Trains, or goes on training, the run of `workdir`; returns what is in its `result.json`.

    Args:
      facts: copied into `result.json` (name, role, budget of a planned run).
      fork: another run that is this one up to some step: this run starts at the newest readable checkpoint of the trunk
        up to there, or at step 0 if there is none. What is computed does not depend on it.
      keep: steps whose checkpoints branches will need; they are saved, and in the end no others are left,
        but those of `train.keep_checkpoints`.
      profile: steps to trace into the directory's `profile/`.
      objective: what the steps minimise.
      then: stages that follow when the steps of `config` are done.
      first: weights to begin with. A run that goes on needs them as well: it is another run without them.
      predicted: what a manifest keeps of a preflight; measured steps are told beside it.
      echo: told what a person watching would like to know.

    Where several processes do the run together (`parallel/job/distributed.py`), all of them call this. They share
    `workdir`; process 0 writes and echoes. A signal to one of them stops all at the same step.

    Raises:
      ConfigError: the directory is another run's; tokenizer, devices, trunk, profile or processes do not fit the run.
      Preempted, Diverged: see there.
      NoRoom: the disk is full, or cannot be written to.
    """
    echo = echo if distributed.first() else lambda line: None
    with Signals() as signals:  # before the data is opened and programs are compiled, which may take minutes
        clock, course, workdir = Clock(), course_of(config, objective, *then), files.path(workdir)
        init_from = first.record() if first else None
        if first:
            first.check(course, fork)
        identity = course.content_hash() + (first.fingerprint if first else "")
        distributed.check_job(identity, config.to_dict(), code_revision(), config.mesh.size)
        distributed.check_shared(workdir)
        check_directory(course, workdir, echo, hardware.cpu_cores(), init_from)
        check_tracker(config.train.tracker)
        if (result := finished_result(workdir, echo)) is not None:
            return result
        with faults_told(workdir):
            run = _Run(course, workdir, clock, fork, first, keep, profile, echo)
            try:
                validation = _train_steps(run, signals, Expected(predicted, echo))
            finally:
                run.close()
            facts = dict(facts or {}) | run.labels_trained() | ({"init_from": init_from} if init_from else {})
            return write_result(workdir, facts, course, run.ledger, validation, clock, run.peak, echo)


class _Run:
    """What the loop works with, and what it changes: `state` and `position`."""

    def __init__(
        self,
        course: Course,
        workdir: Path,
        clock: Clock,
        fork: Fork | None,
        first: FirstWeights | None,
        keep: Collection[int],
        profile: range | None,
        echo: Callable[[str], None],
    ):
        # --- Data, mesh, ledger; only a run that can start takes the directory ---
        self.course, self.workdir, self.clock = course, workdir, clock
        self.prune_at_end, self.keep = bool(keep), frozenset((*keep, *course.kept_steps()))
        self.batches, self._mesh = open_batches(course.config), make_mesh(course.config.mesh)
        content = content_of(self.batches)
        check_data(workdir, content)
        if fork:
            check_trunk(course, fork)
            check_data(fork.trunk, content)
        self.profiler = Profiler(profile or range(0), files.on_disk(workdir / "profile"), course.total_steps, echo)
        self.ledger = ledger = course.ledger()
        hardware.check_memory(ledger.parameters.total)
        if distributed.first():
            take_directory(course, ledger, workdir, content, first.record() if first else None)
        echo(
            f"{ledger.parameters.total:,} parameters, {ledger.tokens:,} tokens in {course.total_steps:,} steps, "
            f"{ledger.flops['executed']:.3g} FLOPs executed, {ledger.flops['6nd']:.3g} as 6ND; "
            f"mixture {', '.join(f'{d} {w:.3f}' for d, w in self.batches.weights.items())}"
        )
        if teacher := self.batches.teacher:
            echo(f"{teacher.share:.1%} of the rows are propositions, whose label weighs {teacher.weight:g} tokens")

        # --- Program, and the state to go on from ---
        hardware.keep_freed_memory()
        self.checkpoints = Checkpoints(workdir / "checkpoints", self.keep)
        self.state, self.position = self._state_to_go_on_from(fork, first, echo)
        check_room(workdir, self.state, checkpoints=1 if self.position.step else 2)
        self.peak = hardware.peak_flops(self._mesh)

        # --- The books, with what earlier processes of this run did and lost ---
        stamp = last_stamp(workdir)
        lost = clock.resume(self.position, stamp)
        if stamp and stamp["step"] > self.position.step:
            echo(f"steps {self.position.step + 1} to {stamp['step']} are done again, {lost:.1f} s were lost")
        self.log = RunLog(course, workdir, self.position, clock, echo)

    def _state_to_go_on_from(
        self, fork: Fork | None, first: FirstWeights | None, echo: Callable[[str], None]
    ) -> tuple[TrainState, Position]:
        """Those of the newest readable checkpoint of the run, else of its trunk up to the fork, else fresh ones."""
        course, eval_every = self.course, self.course.config.train.eval_every

        def abstract_at(step: int) -> TrainState:
            return self.program_of(course.at(step)).abstract

        restored = self.checkpoints.restore(abstract_at, echo, course.total_steps)
        if restored:
            echo(f"resuming at step {restored[1].step} of {course.total_steps}")
            return restored
        if fork:
            restored = restore_from(fork.trunk / "checkpoints", fork.step, abstract_at, echo)
            if restored:
                state, position = restored
                echo(f"branching off {fork.trunk.name} at step {position.step}")
                if distributed.first():
                    adopt_metrics(fork.trunk, self.workdir, eval_every)
                # A trunk evaluates at its end as well, which is not the end of this run. The time was the trunk's.
                owed = position.evaluation_owed and is_due(eval_every, position.step)
                return state, Position(position.step, position.next_sequence, owed, position.losses, position.labels)
            echo(f"{fork.trunk} has no readable checkpoint up to step {fork.step}: starting at step 0")
        stage = course.stages[0]
        program = self.program_of(stage)
        if first:
            echo(f"beginning with the weights of {first.source}")
            return first.state(program, stage.config.model, stage.config.train.seed), Position()
        return stage.first_state(program), Position()

    def program_of(self, stage: Stage) -> Program:
        """The compiled functions of a stage."""
        return make_program(stage.config, self._mesh, stage.objective)

    def evaluate(self, stage: Stage, program: Program) -> dict[str, float]:
        train = stage.config.train

        def sums(batch: Batch) -> dict[str, jax.Array]:
            def build(rows: Any = slice(None)) -> Batch:
                return {name: values[rows] for name, values in batch.items()}

            return program.evaluate(
                self.state.params, self.state.extra, _place(build, train.batch_size, stage.config, program)
            )

        return evaluate(self.batches, sums, train.batch_size, train.eval_sequences)

    def labels_trained(self) -> dict[str, int]:
        """Of a run with a teacher: how many tokens that it predicted were labels, and how many of D their rows take."""
        if not self.batches.teacher:
            return {}
        labels = self.batches.propositions(self.position.next_sequence)
        return {"labels": labels, "label_row_tokens": labels * self.course.config.data.seq_len}

    def save(self, validation_loss: float | None = None) -> None:
        check_room(self.workdir, self.state, checkpoints=1)
        self.clock.store(self.position)
        self.log.flush()  # a restart begins here, and does not write again what came before
        self.checkpoints.save(self.state, self.position, validation_loss)

    def close(self) -> None:
        """Ends what is under way, whether the run is finished, stopped or failing."""
        with self.clock.spent("checkpoint"):
            self.checkpoints.close()
        with self.clock.spent("startup"):
            self.profiler.stop()
        self.clock.close()
        self.log.close()


def _train_steps(run: _Run, signals: Signals, expected: Expected) -> dict[str, float]:
    """The loop; metrics of step n - 1 are handled while step n runs. Returns the last evaluation."""
    course, position, log, profiler = run.course, run.position, run.log, run.profiler
    stage = course.at(position.step)
    program = run.program_of(stage)
    run.clock.book("startup")
    log.stamp(position.step)

    validation: dict[str, float] = {}
    while True:
        # --- What is due after a step ---
        last = position.step == course.total_steps
        if profiler.ends(position.step + 1):
            with log.pause("startup"):  # what a trace costs is not time of steps
                profiler.stop()
        if distributed.stop_reached(signals.received):
            with log.pause("checkpoint"):
                run.save()
                run.checkpoints.wait()
            raise Preempted(f"saved step {position.step} of {course.total_steps} in {run.workdir}")
        if position.evaluation_owed or (last and not validation):
            with log.pause("evaluation"):
                validation = run.evaluate(stage, program)
            log.evaluation(validation)
        save = last or position.step in run.keep or is_due(stage.config.train.checkpoint_every, position.step)
        if save and position.step:
            with log.pause("checkpoint"):
                run.save(validation.get("validation_loss"))
        if last:
            if run.prune_at_end:
                with log.pause("checkpoint"):
                    run.checkpoints.prune()
            return validation
        if position.step == stage.last_step:
            with log.pause("startup"):
                stage = course.at(position.step + 1)
                program = run.program_of(stage)
                run.state = stage.first_state(program, run.state)
        if profiler.begins(position.step + 1):
            with log.pause("startup"):
                profiler.start()

        # --- One step ---
        step = position.step - stage.first_step
        n = stage.steps.sequences(step)
        lr = np.float32(stage.warmed(step) * learning_rate(*stage.schedule(step)))
        with run.clock.preparing():
            batch = _place(functools.partial(run.batches.batch, position.next_sequence, n), n, stage.config, program)
        with profiler.step(position.step + 1):
            run.state, metrics = program.step(run.state, batch, lr)
        run.clock.dispatched(metrics["loss"])
        position.step += 1
        position.next_sequence += n
        position.evaluation_owed = (
            is_due(stage.config.train.eval_every, position.step) or position.step == course.total_steps
        )
        log.dispatched(float(lr), metrics, n)
        validation = {}
        log.catch_up(keep=1)
        expected.step(run.clock, n * stage.config.data.seq_len)


def _place(build: Callable[..., Batch], n: int, config: RunConfig, program: Program) -> dict[str, jax.Array]:
    """Host rows `[n, S]` as sharded arrays `[M, n/M, S]`; of several processes each builds its part."""
    m = config.train.microbatches
    return place(build, (m, n // m, config.data.seq_len), program.batch_sharding)
