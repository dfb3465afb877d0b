"""Checkpoints through Orbax: asynchronous, the last two and the best kept, with the position in the data inside.

A trunk also keeps the steps that branches leave from (`keep`), and in the end nothing else. A branch reads its trunk's
checkpoints through `restore_from`, which changes nothing there: other branches read the same files.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import shutil
from collections.abc import Callable, Collection
from pathlib import Path
from typing import NamedTuple

import jax
import orbax.checkpoint as ocp

from chinchilla_jax.parallel.job import distributed
from chinchilla_jax.training.step import TrainState

_POLICIES = ocp.checkpoint_managers
AbstractAt = Callable[[int], TrainState]  # the state that a checkpoint of this step holds, without its arrays


def _loss_of(metrics: dict) -> float:
    return metrics.get("loss", math.inf)


@dataclasses.dataclass
class Position:
    """What a run needs besides its arrays to go on exactly where it stopped.

    Attributes:
      step: steps done.
      next_sequence: the data position; batches are a function of it.
      evaluation_owed: an evaluation was due at this step and has not been made.
      losses: losses of the steps since the last logged line, still to be averaged.
      seconds: time spent on this run so far, over restarts.
      parts: the same by part, see `goodput`; empty in checkpoints from before it was kept.
      timed_tokens: tokens of the steps whose time is in `parts`; a branch's begin at its fork.
    """

    step: int = 0
    next_sequence: int = 0
    evaluation_owed: bool = False
    losses: list[float] = dataclasses.field(default_factory=list)
    seconds: float = 0.0
    parts: dict[str, float] = dataclasses.field(default_factory=dict)
    timed_tokens: int = 0


class Checkpoints:
    """The checkpoints of one run directory; those of the steps `keep` stay."""

    def __init__(self, directory: Path, keep: Collection[int] = ()):
        options = ocp.CheckpointManagerOptions(
            enable_async_checkpointing=True,
            cleanup_tmp_directories=True,
            step_prefix="step",
            best_fn=_loss_of,  # without it Orbax does not write the metrics, and a restart forgets which was best
            best_mode="min",
            preservation_policy=_POLICIES.AnyPreservationPolicy(
                [
                    _POLICIES.LatestN(2),
                    _POLICIES.BestN(get_metric_fn=_loss_of, reverse=True, n=1),
                    _POLICIES.CustomSteps(sorted(keep)),
                ]
            ),
        )
        self._directory = Path(directory).absolute()
        self._keep = frozenset(keep)
        self._manager = ocp.CheckpointManager(self._directory, options=options)

    def save(self, state: TrainState, position: Position, validation_loss: float | None = None) -> None:
        """Starts writing; returns as soon as the arrays are copied. A step that is already there is left alone."""
        if position.step in self._manager.all_steps():
            return
        metrics = {} if validation_loss is None else {"loss": validation_loss}
        arguments = ocp.args.Composite(
            state=ocp.args.StandardSave(_stored(state)), position=ocp.args.JsonSave(dataclasses.asdict(position))
        )
        self._manager.save(position.step, args=arguments, metrics=metrics, force=True)

    def restore(self, abstract_at: AbstractAt, echo: Callable[[str], None]) -> tuple[TrainState, Position] | None:
        """The newest checkpoint that can be read, or None. Says so when it has to pass over a damaged one.

        What cannot be read is renamed and not deleted: the cause may lie in the file system, or in the program.

        Args:
          abstract_at: shapes, types and shardings to restore into, by step.
          echo: told about every checkpoint that could not be read.
        """
        for step in _steps(self._manager):
            restored, reason = _read_together(self._directory, step, abstract_at(step))
            if restored is not None:
                return restored
            aside = self._move_aside(step)
            echo(
                f"checkpoint of step {step} cannot be read ({reason}), moved to {aside}; "
                "falling back to the one before it"
            )
        return None

    def prune(self) -> None:
        """Waits, then deletes every checkpoint but those of the steps to keep."""
        self.wait()
        for step in sorted(set(self._manager.all_steps()) - self._keep):
            self._manager.delete(step)

    def _move_aside(self, step: int) -> str:
        aside = f"unreadable_step_{step}"
        if distributed.first():
            shutil.rmtree(self._directory / aside, ignore_errors=True)
            os.rename(self._directory / f"step_{step}", self._directory / aside)
        distributed.exchange("moved", "")
        self._manager.reload()
        return aside

    def wait(self) -> None:
        """Blocks until everything saved is on disk."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits, then releases the writer's threads."""
        self._manager.close()


def restore_from(
    directory: Path, step: int, abstract_at: AbstractAt, echo: Callable[[str], None]
) -> tuple[TrainState, Position] | None:
    """The newest readable checkpoint of another run that is no later than `step`; None if there is none.

    Args:
      directory: the other run's `checkpoints`; only read.
      abstract_at: shapes, types and shardings to restore into, by step.
      echo: told about every checkpoint that could not be read.
    """
    directory = Path(directory).absolute()
    if not directory.is_dir():
        return None
    with _reader(directory) as manager:
        steps = _steps(manager)
    for earlier in (s for s in steps if s <= step):
        restored, reason = _read_together(directory, earlier, abstract_at(earlier))
        if restored is not None:
            return restored
        echo(f"{directory}: checkpoint of step {earlier} cannot be read ({reason})")
    return None


def _steps(manager: ocp.CheckpointManager) -> list[int]:
    """The steps there are, newest first; what process 0 sees counts for all."""
    return sorted(json.loads(distributed.exchange("steps", json.dumps(list(manager.all_steps())))[0]), reverse=True)


def _reader(directory: Path) -> ocp.CheckpointManager:
    """A manager to read with, on its own: one that fails leaves no other process waiting for it.

    Not `read_only`, which makes Orbax warn about it on stderr; it writes nothing unless asked to.
    """
    me = jax.process_index()
    alone = ocp.options.MultiprocessingOptions(primary_host=me, active_processes={me})
    options = ocp.CheckpointManagerOptions(create=False, step_prefix="step", multiprocessing_options=alone)
    return ocp.CheckpointManager(directory, options=options)


def _read_together(directory: Path, step: int, abstract: TrainState) -> tuple[tuple[TrainState, Position] | None, str]:
    """State and position if every process could read its part; else None, and why one could not."""
    restored, reason = None, ""
    try:
        with _reader(directory) as manager:
            restored = _read(manager, step, abstract)
    except Exception as error:  # damage surfaces as many types: missing files, short reads, bad JSON
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
    reasons = [reason for reason in distributed.exchange("read", reason) if reason]
    return (None, reasons[0]) if reasons else (restored, "")


def _read(manager: ocp.CheckpointManager, step: int, abstract: TrainState) -> tuple[TrainState, Position]:
    arguments = ocp.args.Composite(state=ocp.args.StandardRestore(_stored(abstract)), position=ocp.args.JsonRestore())
    restored = manager.restore(step, args=arguments)
    position = Position(**restored.position)
    if position.step != step:
        raise ValueError(f"its position is of step {position.step}")
    state = jax.tree.map(_copied, restored.state)
    return state if isinstance(state, TrainState) else TrainState(*state), position


class _PlainState(NamedTuple):
    """A state on disk that holds nothing extra, as it was before there was a place for it."""

    step: jax.Array
    params: dict
    opt_state: tuple


def _stored(state: TrainState) -> TrainState | _PlainState:
    return state if jax.tree.leaves(state.extra) else _PlainState(state.step, state.params, state.opt_state)


def _copied(restored: jax.Array) -> jax.Array:
    """Restored buffers belong to the reader; a copy can be donated to the first step. Never two of a whole state."""
    copy = jax.block_until_ready(restored.copy())
    restored.delete()
    return copy
