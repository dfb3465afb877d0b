"""The training loop: reads top-down, resumes exactly, explains itself in its run directory."""

from __future__ import annotations

import collections
import dataclasses
import functools
import math
import signal
import threading
import time
from collections.abc import Callable, Collection
from pathlib import Path

import jax
import numpy as np

from chinchilla_jax.base.errors import FAILED, PREEMPTED, ExplainedError
from chinchilla_jax.base.files import write_json
from chinchilla_jax.base.revision import code_revision
from chinchilla_jax.config import ConfigError, RunConfig
from chinchilla_jax.data import Batches, TokenStore, store_path
from chinchilla_jax.data.batches import Batch
from chinchilla_jax.ledger import count_run
from chinchilla_jax.parallel.job import distributed
from chinchilla_jax.parallel.mesh import make_mesh
from chinchilla_jax.parallel.placement import place
from chinchilla_jax.training.checkpoint import Checkpoints, Position, restore_from
from chinchilla_jax.training.directory import check_directory, difference, read_own
from chinchilla_jax.training.evaluate import evaluate
from chinchilla_jax.training.machine import hardware
from chinchilla_jax.training.metrics import MetricWriter, NoWriter, adopt_metrics
from chinchilla_jax.training.schedule import BatchSchedule, learning_rate, steps_of
from chinchilla_jax.training.step import Program, make_program
from chinchilla_jax.training.timing.clock import STAMP_SECONDS, Clock
from chinchilla_jax.training.timing.goodput import goodput, last_stamp, time_line, utilisation
from chinchilla_jax.training.timing.profiler import Profiler, Window


class Preempted(ExplainedError):
    """SIGTERM arrived: the run has saved its state and wants to be started again."""

    exit_code = PREEMPTED


class Diverged(ExplainedError):
    """The loss is not finite: starting again would do the same."""

    exit_code = FAILED


@dataclasses.dataclass(frozen=True)
class Fork:
    """Where a branch leaves its trunk: the trunk's run directory, and the steps done there."""

    trunk: Path
    step: int


def train(config: RunConfig, workdir: Path, *, facts: dict | None = None, fork: Fork | None = None,
          keep: Collection[int] = (), profile: Window | None = None,
          echo: Callable[[str], None] = print) -> dict:  # fmt: skip
    """Trains, or goes on training, the run of `workdir`; returns what is in its `result.json`.

    Args:
      facts: copied into `result.json` (name, role, budget of a planned run).
      fork: another run that is this one up to some step. Nothing that is computed depends on it, only how much: of the
        trunk's checkpoints up to there the newest readable one is where this run starts, and without one at step 0.
      keep: steps whose checkpoints branches will need; they are saved, and in the end no others are left.
      profile: steps to trace into the directory's `profile/`.
      echo: told what a person watching would like to know.

    Where several processes do the run together (`parallel/job/distributed.py`), all of them call this. They share
    `workdir`; process 0 writes and echoes. A signal to one of them stops all at the same step.

    Raises:
      ConfigError: the directory belongs to another config, the tokenizer does not match the model, too few devices, the
        trunk is not this run up to the fork, the run has no such steps to profile, the processes differ in config, code
        or data.
      Preempted, Diverged: see there.
    """
    sigterm = _Sigterm()  # before the data is opened and programs are compiled, which may take minutes
    try:
        return _train(config, Path(workdir), facts or {}, fork, frozenset(keep), profile, echo, sigterm)
    finally:
        sigterm.restore()


def _train(
    config: RunConfig, workdir: Path, facts: dict, fork: Fork | None, keep: frozenset[int],
    profile: Window | None, echo: Callable[[str], None], sigterm: _Sigterm,
) -> dict:  # fmt: skip
    clock = Clock()
    writes = distributed.first()
    if not writes:
        echo = _silent
    distributed.check_job(config.content_hash(), config.to_dict(), code_revision(), config.mesh.size)
    distributed.check_shared(workdir)

    # --- What is there already: a finished run is returned as it is, another config's directory is refused ---
    check_directory(config, workdir, echo, hardware.cpu_cores())
    result_path = workdir / "result.json"
    if distributed.exchange("finished", str(result_path.exists()))[0] == "True":
        result = read_own(result_path, "loss", float)
        echo(f"finished already: loss {result['loss']:.4f} nats/token; another run needs another directory")
        return result

    # --- Data, mesh, schedule, ledger; only a run that can start takes the directory ---
    store = TokenStore.open(store_path(config.data), check_tokenizer=True)
    _check_store(config, store)
    distributed.check_same("data", store.content_hash(), "the data directory must hold the same store on every host")
    batches = Batches(store, config.data.mixture, config.train.seed, config.data.mask_documents)
    mesh = make_mesh(config.mesh)
    steps = steps_of(config)
    if fork:
        _check_trunk(config, steps, fork)
    profiler = Profiler(profile, workdir / "profile", steps.total_steps, echo)
    if writes and not (workdir / "config.json").exists():
        config_record = {
            "hash": config.content_hash(),
            "code": code_revision(),
            "cores": hardware.cpu_cores(),
            "config": config.to_dict(),
        }
        write_json(workdir / "config.json", config_record)
    tokens_total = steps.tokens(steps.total_steps)
    ledger = count_run(config, tokens_total)
    if writes:
        write_json(workdir / "ledger.json", ledger.to_dict())
    flops_per_token = {convention: flops / tokens_total for convention, flops in ledger.flops.items()}
    echo(f"{ledger.parameters.total:,} parameters, {tokens_total:,} tokens in {steps.total_steps:,} steps, "
         f"{ledger.flops['executed']:.3g} FLOPs executed, {ledger.flops['6nd']:.3g} as 6ND; "
         f"mixture {', '.join(f'{d} {w:.3f}' for d, w in batches.weights.items())}")  # fmt: skip

    # --- Program and state. Resume priority: (1) newest readable checkpoint here, (2) the trunk's, (3) fresh ---
    hardware.keep_freed_memory()
    program = make_program(config, mesh)
    checkpoints = Checkpoints(workdir / "checkpoints", keep)
    restored = checkpoints.restore(program.abstract, echo)
    if restored:
        echo(f"resuming at step {restored[1].step} of {steps.total_steps}")
    elif fork:
        restored = _branch_off(config, workdir, fork, program, echo)
    state, position = restored or (program.init(jax.random.key(config.train.seed)), Position())
    peak, peak_is = hardware.peak_flops(mesh)
    stamp = last_stamp(workdir)
    lost = clock.resume(position, stamp)
    if stamp and stamp["step"] > position.step:
        echo(f"steps {position.step + 1} to {stamp['step']} are done again, {lost:.1f} s were lost")
    writer = MetricWriter(workdir, position) if writes else NoWriter()
    log = _Log(config, steps, writer, position, clock, flops_per_token["executed"], echo)
    stop = distributed.stop_together()
    clock.book("startup")
    log.stamp(position.step)

    # --- The loop. Metrics of step n - 1 are handled while step n runs ---
    validation: dict[str, float] = {}
    try:
        while True:
            last = position.step == steps.total_steps
            if profiler.ends(position.step + 1):
                log.catch_up(keep=0)
                with clock.spent("startup"):
                    profiler.stop()
            if stop.reached(sigterm.received):
                log.catch_up(keep=0)
                with clock.spent("checkpoint"):
                    clock.store(position)
                    checkpoints.save(state, position)
                    checkpoints.wait()
                raise Preempted(f"saved step {position.step} of {steps.total_steps} in {workdir}")
            if position.evaluation_owed or (last and not validation):
                log.catch_up(keep=0)
                run_batch = functools.partial(_evaluate_batch, config, program, state.params)
                with clock.spent("evaluation"):
                    validation = evaluate(batches, run_batch, config.train.batch_size, config.train.eval_sequences)
                log.evaluation(validation)
            if position.step and (last or position.step in keep
                                  or _every(config.train.checkpoint_every, position.step)):  # fmt: skip
                log.catch_up(keep=0)
                with clock.spent("checkpoint"):
                    clock.store(position)
                    checkpoints.save(state, position, validation.get("validation_loss"))
            if last:
                if keep:
                    with clock.spent("checkpoint"):
                        checkpoints.prune()
                break
            if profiler.begins(position.step + 1):
                log.catch_up(keep=0)
                with clock.spent("startup"):
                    profiler.start()

            n = steps.sequences(position.step)
            lr = np.float32(learning_rate(config.optimizer, steps, position.step))
            with clock.preparing():
                batch = _place(functools.partial(batches.batch, position.next_sequence, n), n, config, program)
            with profiler.step(position.step + 1):
                state, metrics = program.step(state, batch, lr)
            clock.dispatched(metrics["loss"])
            position.step += 1
            position.next_sequence += n
            position.evaluation_owed = (_every(config.train.eval_every, position.step)
                                        or position.step == steps.total_steps)  # fmt: skip
            log.dispatched(float(lr), metrics, n)
            validation = {}
            log.catch_up(keep=1)
    finally:
        with clock.spent("checkpoint"):
            checkpoints.close()
        with clock.spent("startup"):
            profiler.stop()
        clock.close()
        log.close()

    # --- The result, last and atomic ---
    used = utilisation(clock.parts, clock.tokens, flops_per_token, peak)
    result = {
        **facts, "loss": validation["validation_loss"], "bits_per_byte": validation["bits_per_byte"],
        "validation": validation, "diverged": False, "params": ledger.parameters.total, "tokens": tokens_total,
        "flops_by_convention": ledger.flops, "steps": steps.total_steps, "seconds": clock.seconds(),
        "time": clock.parts, "goodput": goodput(clock.parts), "utilisation": used,
        "device_hours": clock.seconds() * config.mesh.size / 3600, "tokens_per_second": clock.tokens_per_second(),
        "flops_per_second": clock.tokens_per_second() * flops_per_token["executed"],
        "peak_flops": peak, "peak_is": peak_is, "devices": config.mesh.size, "platform": jax.default_backend(),
        "cores": hardware.cpu_cores(), "config_hash": config.content_hash(), "code": code_revision(),
    }  # fmt: skip
    if writes:
        write_json(result_path, result)
    echo(f"done: loss {result['loss']:.4f} nats/token, {result['bits_per_byte']:.4f} bits/byte, "
         f"{result['seconds']:.1f} s, {result['flops_per_second'] / 1e9:.1f} GFLOP/s")  # fmt: skip
    echo(time_line(clock.parts, used))
    return result


def _check_trunk(config: RunConfig, steps: BatchSchedule, fork: Fork) -> None:
    """Refuses a trunk that is another run: other settings than the schedule's, or other rates before the fork."""
    path = fork.trunk / "config.json"
    if not path.exists():
        raise ConfigError("fork", f"{fork.trunk} is no run directory; train the trunk first")
    trunk = RunConfig.from_dict(read_own(path, "config", dict)["config"])
    free = {"optimizer": ("schedule", "final_lr_fraction", "cooldown_fraction"), "train": ("train_tokens",)}
    ours = {section: {n: getattr(getattr(config, section), n) for n in names} for section, names in free.items()}
    same = dataclasses.replace(trunk, mesh=config.mesh, **{
        section: dataclasses.replace(getattr(trunk, section), **values) for section, values in ours.items()
    })  # fmt: skip
    if same != config:
        raise ConfigError("fork", f"{fork.trunk} is no trunk of this run ({difference(same.to_dict(), config)})")
    other = steps_of(trunk)
    for step in range(fork.step):
        if (learning_rate(trunk.optimizer, other, step), other.first_sequence(step)) != (
            learning_rate(config.optimizer, steps, step), steps.first_sequence(step)):  # fmt: skip
            raise ConfigError("fork", f"this run and {fork.trunk} part at step {step}, before the fork at {fork.step}")


def _branch_off(config: RunConfig, workdir: Path, fork: Fork, program: Program, echo: Callable[[str], None]):
    """State and position of the trunk at the fork, with its metrics up to there; None where it has no checkpoint."""
    found = restore_from(fork.trunk / "checkpoints", fork.step, program.abstract, echo)
    if found is None:
        echo(f"{fork.trunk} has no readable checkpoint up to step {fork.step}: starting at step 0")
        return None
    state, position = found
    position.seconds, position.parts, position.timed_tokens = 0.0, {}, 0  # they were the trunk's
    # A trunk evaluates at its end as well, which is not the end of this run.
    position.evaluation_owed = position.evaluation_owed and _every(config.train.eval_every, position.step)
    if distributed.first():
        adopt_metrics(fork.trunk, workdir, config.train.eval_every)
    echo(f"branching off {fork.trunk.name} at step {position.step}")
    return state, position


def _every(interval: int, step: int) -> bool:
    return bool(interval) and step % interval == 0


def _silent(line: str) -> None:
    del line


def _place(build: Callable[..., Batch], n: int, config: RunConfig, program: Program) -> dict[str, jax.Array]:
    """Host rows `[n, S]` as sharded arrays `[M, n/M, S]`; of several processes each builds its own."""
    m = config.train.microbatches
    return place(build, (m, n // m, config.data.seq_len), program.batch_sharding)


def _evaluate_batch(config: RunConfig, program: Program, params: dict, batch: Batch) -> dict:
    def build(rows=slice(None)):
        return {name: values[rows] for name, values in batch.items()}

    return program.evaluate(params, _place(build, config.train.batch_size, config, program))


class _Log:
    """Per-step metrics, one step late: device scalars wait here until a later step has been dispatched."""

    def __init__(self, config, steps, writer: MetricWriter | NoWriter, position: Position, clock: Clock,
                 flops_per_token: float, echo):  # fmt: skip
        self._config, self._steps, self._writer = config, steps, writer
        self._position, self._clock, self._echo = position, clock, echo
        self._flops_per_token = flops_per_token
        self._waiting: collections.deque = collections.deque()
        self._said = self._stamped = time.perf_counter()

    def dispatched(self, lr: float, metrics: dict, sequences: int) -> None:
        """A step was sent to the devices."""
        self._waiting.append((self._position.step, lr, metrics, sequences))

    def catch_up(self, keep: int) -> None:
        """Handles all but the `keep` newest steps; raises `Diverged` at the first that is not finite."""
        while len(self._waiting) > keep:
            step, lr, metrics, sequences = self._waiting.popleft()
            loss, grad_norm = float(metrics["loss"]), float(metrics["grad_norm"])
            self._clock.book("step", sequences * self._steps.seq_len)
            if not math.isfinite(loss + grad_norm):  # a loss may be finite and what its gradient did to the weights not
                raise Diverged(f"loss is {loss}, gradient norm {grad_norm} at step {step}; checkpoints from "
                               f"before (every {self._config.train.checkpoint_every} steps, 0 for none) are kept. "
                               f"Lower optimizer.peak_lr={self._config.optimizer.peak_lr} or optimizer.clip_norm, in "
                               "another --workdir")  # fmt: skip
            losses = self._position.losses
            losses.append(loss)
            if _every(self._config.train.log_every, step):
                self._writer.write("metrics", {
                    "step": step, "tokens": self._steps.tokens(step), "loss": sum(losses) / len(losses), "lr": lr,
                    "grad_norm": grad_norm})  # fmt: skip
                losses.clear()
                self._speed(step)
            elif time.perf_counter() - self._stamped > STAMP_SECONDS:
                self.stamp(step)

    def _speed(self, step: int) -> None:
        speed = self._clock.window()
        if speed is None:
            return
        flops_per_second = speed * self._flops_per_token
        self.stamp(step, tokens_per_second=speed, flops_per_second=flops_per_second)
        if self._stamped - self._said > 5.0:
            self._said = self._stamped
            left = (self._steps.tokens(self._steps.total_steps) - self._steps.tokens(step)) / speed
            self._echo(f"step {step}/{self._steps.total_steps} {speed / 1e3:.1f}k tokens/s "
                       f"{flops_per_second / 1e9:.1f} GFLOP/s, {left:.0f} s left")  # fmt: skip

    def stamp(self, step: int, **speed: float) -> None:
        """Writes where the time went so far, for whoever goes on should this process be killed."""
        parts = {part: round(seconds, 6) for part, seconds in self._clock.parts.items()}
        self._writer.write("timing", {"step": step, "seconds": self._clock.seconds(), **speed,
                                      "goodput": goodput(parts), "time": parts})  # fmt: skip
        self._stamped = time.perf_counter()

    def evaluation(self, validation: dict[str, float]) -> None:
        """Writes an evaluation that was owed."""
        if not math.isfinite(validation["validation_loss"]):
            raise Diverged(f"validation loss is {validation['validation_loss']} at step {self._position.step}")
        if self._position.evaluation_owed:
            step = self._position.step
            self._writer.write("metrics", {"step": step, "tokens": self._steps.tokens(step), **validation})
            self._position.evaluation_owed = False
        self.stamp(self._position.step)

    def close(self) -> None:
        """The last stamp: a run that stops, or fails, loses no account of its time."""
        self.stamp(self._position.step)
        self._writer.close()


class _Sigterm:
    """Remembers that SIGTERM, or Ctrl-C, arrived; the loop acts on it between steps. A second Ctrl-C interrupts."""

    def __init__(self):
        self.received = False
        self._previous = {}
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._previous[number] = signal.signal(number, self._on_signal)

    def _on_signal(self, number, _):
        if self.received and number == signal.SIGINT:
            self.restore()
            signal.raise_signal(number)
        self.received = True

    def restore(self) -> None:
        for number, previous in self._previous.items():
            signal.signal(number, previous)


def _check_store(config: RunConfig, store: TokenStore) -> None:
    if store.vocab_size > config.model.vocab_size:
        raise ConfigError("model.vocab_size", f"{config.model.vocab_size} is less than the tokenizer's "
                          f"{store.vocab_size}")  # fmt: skip
    if store.seq_len != config.data.seq_len:
        raise ConfigError("data.seq_len", f"{config.data.seq_len}, but the token store in {store.path} holds "
                          f"sequences of {store.seq_len}")  # fmt: skip
