"""Checkpoints through Orbax: asynchronous, the last two and the best kept, with the position in the data inside.

A trunk also keeps the steps that branches leave from (`keep`), and in the end nothing else; so does a run the steps of
`train.keep_checkpoints`, besides those above. A branch reads its trunk's checkpoints by `restore_from`, which changes
nothing there: other branches read the same files.

A flipped bit is noticed by nobody on the way from a disk to an array. So the position carries digests of all arrays
(`digest.py`) and of itself, and what does not agree with them is as unreadable as a file that is missing.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import orbax.checkpoint as ocp

from chinchilla_jax.base import files
from chinchilla_jax.parallel.job import distributed
from chinchilla_jax.training.digest import difference, digest_of_json, digests_of
from chinchilla_jax.training.step import TrainState

_POLICIES = ocp.checkpoint_managers
_SEAL = "digests"
# Shapes, types and shardings that the state is restored into, by the step of the checkpoint.
AbstractAt = Callable[[int], TrainState]


def _loss_of(metrics: dict) -> float:
    return metrics.get("loss", math.inf)


@dataclasses.dataclass
class Position:
    """What a run needs besides its arrays to go on exactly where it stopped."""

    step: int = 0  # steps done
    next_sequence: int = 0  # the data position; batches are a function of it
    evaluation_owed: bool = False  # one was due at this step and has not been made
    losses: list[float] = dataclasses.field(default_factory=list)  # since the last logged line, still to be averaged
    labels: list[float] = dataclasses.field(default_factory=list)  # likewise the sums of `labels.py`, if there are any
    seconds: float = 0.0  # spent on this run so far, over restarts
    parts: dict[str, float] = dataclasses.field(default_factory=dict)  # the same by part; older checkpoints have none
    timed_tokens: int = 0  # of the steps whose time is in `parts`; a branch's begin at its fork


class Checkpoints:
    """The checkpoints of one run directory; those of the steps `keep` stay."""

    def __init__(self, directory: Path, keep: Collection[int] = ()):
        latest, best = _POLICIES.LatestN(2), _POLICIES.BestN(get_metric_fn=_loss_of, reverse=True, n=1)
        options = ocp.CheckpointManagerOptions(
            enable_async_checkpointing=True,
            cleanup_tmp_directories=True,
            step_prefix="step",
            best_fn=_loss_of,  # without it Orbax does not write the metrics, and a restart forgets which was best
            best_mode="min",
            preservation_policy=_POLICIES.AnyPreservationPolicy([latest, best, _POLICIES.CustomSteps(sorted(keep))]),
        )
        self._directory = files.absolute(directory)
        self._keep = frozenset(keep)
        self._manager = ocp.CheckpointManager(self._directory, options=options)

    def save(self, state: TrainState, position: Position, validation_loss: float | None = None) -> None:
        """Starts writing; returns as soon as the arrays are copied. A step that is already there is left alone."""
        if position.step in self._manager.all_steps():
            return
        metrics = {} if validation_loss is None else {"loss": validation_loss}
        stored, record = _stored(state), dataclasses.asdict(position)
        record[_SEAL] = {"position": digest_of_json(record), "arrays": digests_of(stored)}
        arguments = ocp.args.Composite(state=ocp.args.StandardSave(stored), position=ocp.args.JsonSave(record))
        self._manager.save(position.step, args=arguments, metrics=metrics, force=True)

    def restore(
        self, abstract_at: AbstractAt, echo: Callable[[str], None], last_step: int | None = None
    ) -> tuple[TrainState, Position] | None:
        """The newest checkpoint that can be read, or None. `echo` is told about those that cannot, and those beyond the
        last step of the run.

        These are renamed and not deleted: the cause may lie in the file system, or in the program.
        """

        def move_aside(step: int, reason: str) -> None:
            aside = f"unreadable_step_{step}"
            if distributed.first():
                with contextlib.suppress(OSError):  # the other processes wait; what stays in the way stops the rename
                    files.remove(self._directory / aside)
                files.rename(self._directory / f"step_{step}", self._directory / aside)
            distributed.exchange("moved", "")
            self._manager.reload()
            moved = f"moved to {aside}; falling back to the one before it"
            echo(f"checkpoint of step {step} cannot be read ({reason}), {moved}")

        steps = _steps(self._manager)
        for step in steps:
            if last_step is not None and step > last_step:
                move_aside(step, f"the run ends with step {last_step}")
        within = [step for step in steps if last_step is None or step <= last_step]
        return _newest_readable(self._directory, within, abstract_at, move_aside)

    def prune(self) -> None:
        """Waits, then deletes every checkpoint but those of the steps to keep."""
        self.wait()
        for step in sorted(set(self._manager.all_steps()) - self._keep):
            self._manager.delete(step)

    def wait(self) -> None:
        """Blocks until everything saved is on disk."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits, then releases the writer's threads."""
        self._manager.close()


def restore_from(
    directory: Path, step: int, abstract_at: AbstractAt, echo: Callable[[str], None]
) -> tuple[TrainState, Position] | None:
    """The newest readable checkpoint in another run's `checkpoints` that is no later than `step`; None without one."""
    directory = files.absolute(directory)
    if not files.is_folder(directory):
        return None
    with _reader(directory) as manager:
        steps = [earlier for earlier in _steps(manager) if earlier <= step]

    def tell(step: int, reason: str) -> None:
        echo(f"{directory}: checkpoint of step {step} cannot be read ({reason})")

    return _newest_readable(directory, steps, abstract_at, tell)


def restore_params(
    directory: Path, step: int | None, abstract: dict, echo: Callable[[str], None]
) -> tuple[dict, int] | None:
    """The weights alone of the checkpoint of this step, and the step; None if it cannot be read.

    Without a step those of the newest checkpoint that can be. Moments are neither read nor given room. `abstract` says
    shapes, types and shardings.
    """
    directory = files.absolute(directory)
    for at in steps_in(directory) if step is None else [step]:
        try:
            with _reader(directory) as manager:
                arguments = ocp.args.Composite(
                    state=ocp.args.PyTreeRestore(
                        {"params": abstract},
                        ocp.checkpoint_utils.construct_restore_args({"params": abstract}),
                        partial_restore=True,
                    ),
                    position=ocp.args.JsonRestore(),
                )
                restored = manager.restore(at, args=arguments)
            arrays = restored.position.get(_SEAL, {}).get("arrays", {})
            found = {f".params{name}": x for name, x in digests_of(restored.state["params"]).items()}
            if reason := difference(arrays, found):
                raise ValueError(reason)
            return restored.state["params"], at
        except Exception as error:  # as in `_newest_readable`
            reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
            echo(f"{directory}: checkpoint of step {at} cannot be read ({reason})")
    return None


def steps_in(directory: Path) -> list[int]:
    """The steps that there are checkpoints of, newest first; none if there is no such folder."""
    directory = files.absolute(directory)
    if not files.is_folder(directory):
        return []
    with _reader(directory) as manager:
        return _steps(manager)


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


def _newest_readable(
    directory: Path, steps: Sequence[int], abstract_at: AbstractAt, damaged: Callable[[int, str], None]
) -> tuple[TrainState, Position] | None:
    """The first of these steps of which every process can read its part; `damaged(step, reason)` hears of others."""
    for step in steps:
        abstract, restored, reason = abstract_at(step), None, ""
        arrays: dict[str, int] = {}
        try:
            with _reader(directory) as manager:
                restored, arrays = _read(manager, step, abstract)
        except Exception as error:  # damage surfaces as many types: missing files, short reads, bad JSON
            reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        reasons = [reason for reason in distributed.exchange("read", reason) if reason]
        if not reasons:  # every process has its part, and they can compute together
            assert restored is not None
            reason = difference(arrays, digests_of(_stored(restored[0]))) if arrays else ""
            reasons = [reason] if reason else []
        if not reasons:
            return restored
        damaged(step, reasons[0])
    return None


def _read(
    manager: ocp.CheckpointManager, step: int, abstract: TrainState
) -> tuple[tuple[TrainState, Position], dict[str, int]]:
    """State and position, and the digests that the arrays must have; older checkpoints have none."""
    arguments = ocp.args.Composite(state=ocp.args.StandardRestore(_stored(abstract)), position=ocp.args.JsonRestore())
    restored = manager.restore(step, args=arguments)
    seal = restored.position.pop(_SEAL, {})
    if seal and seal["position"] != digest_of_json(restored.position):
        raise ValueError("its position is not what was saved: the digest differs")
    position = Position(**restored.position)
    if position.step != step:
        raise ValueError(f"its position is of step {position.step}")
    state = jax.tree.map(_copied, restored.state)
    return (state if isinstance(state, TrainState) else TrainState(*state), position), seal.get("arrays", {})


class _PlainState(NamedTuple):
    """A state on disk that holds nothing extra, as it was before there was a place for it."""

    step: jax.Array
    params: dict
    opt_state: tuple


def _stored(state: TrainState) -> TrainState | _PlainState:
    return state if jax.tree.leaves(state.extra) else _PlainState(state.step, state.params, state.opt_state)


def _copied(restored: jax.Array) -> jax.Array:
    """A copy can be donated to the first step, the reader's buffer cannot. Never two of a whole state at a time."""
    copy = jax.block_until_ready(restored.copy())
    restored.delete()
    return copy
