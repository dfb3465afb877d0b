"""Where can a study be trained? Back-ends, each a class with the same three methods, known by a name.

A new one is a module with its class, and a line in `cli/launch.py`. What all have in common is the `Job`: which
manifest, on which slices, how often a worker may start in vain.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import pathlib
import re
from collections.abc import Sequence
from typing import Protocol

from chinchilla_jax.base import files
from chinchilla_jax.base.errors import DONE, PREEMPTED
from chinchilla_jax.launch.command import LaunchError, Tools
from chinchilla_jax.launch.money import Price, Spent
from chinchilla_jax.preflight.slices import Slice
from chinchilla_jax.study import folder
from chinchilla_jax.study.execute import lease
from chinchilla_jax.study.folder import PlannedRun

MOST_VAIN_STARTS = 3  # without a new checkpoint or result in between
# Codes of the machine's death rather than the program's: killed (137, 143, 134 where a peer was lost), lost (255).
_MACHINE = range(126, 256)


@dataclasses.dataclass(frozen=True)
class Job:
    """A manifest and the slices that pull runs from it. `study` is its path as the workers see it, which the launcher
    has to see too: a bucket, or a folder that all machines mount.
    """

    name: str
    study: str
    manifest: str
    slices: int = 1
    slice: Slice | None = None  # of TPUs; None where hosts are listed or there are none
    price: Price = Price()
    labels: tuple[tuple[str, str], ...] = ()

    @property
    def folder(self) -> pathlib.Path:
        return files.path(self.study)

    def runs(self) -> tuple[PlannedRun, ...]:
        """All runs of the manifest. Raises StudyError if there is none."""
        return folder.read_manifest(self.folder / self.manifest).runs

    def unfinished(self) -> list[PlannedRun]:
        """Those without a result."""
        return folder.unfinished(self.folder, self.runs())

    def spent(self) -> Spent:
        """What was spent on it so far, by whichever launcher."""
        return Spent(self.folder / "launch" / f"{self.name}.json", self.price)

    def work(self, worker: int | str, python: str = "python") -> list[str]:
        """The command of one worker: on every host of its slice the same."""
        what = [f"--study={self.study}", f"--manifest={self.manifest}"]
        return [python, "-m", "chinchilla_jax", "work", *what, f"--worker={worker}"]

    def needs_shared_study(self) -> None:
        """Raises LaunchError if another machine could not find the study by its path."""
        if not _shared(self.study):
            told = "workers on other machines look for it by this path"
            raise LaunchError(f"--study={self.study}: {told}: give an absolute one, in a folder that all of them mount")

    @property
    def storage_extra(self) -> str:
        """The extra of this package by which workers reach the study; empty for one on disk."""
        return "gcs" if files.in_bucket(self.study) else ""

    @property
    def needs_one_slice(self) -> Slice:
        """The slice. Raises LaunchError without one."""
        if self.slice is None:
            raise LaunchError("--slice=NAME is missing: the TPU slice that trains a run, e.g. v5e-16 or v5p-512")
        return self.slice


def _shared(study: str) -> bool:
    return "://" in study or pathlib.PurePath(study).is_absolute()


class Backend(Protocol):
    """What trains the runs of a job, somewhere."""

    def launch(self, job: Job, tools: Tools) -> None:
        """Has every run trained; a back-end with a scheduler of its own hands them over and returns.

        Raises LaunchError if that cannot be done, `Stopped` if a signal came. The same command goes on later.
        """

    def status(self, job: Job, tools: Tools) -> None:
        """Prints what is there of the job: slices and their states, not the runs."""

    def stop(self, job: Job, tools: Tools) -> None:
        """Ends the workers and gives back what they ran on. Checkpoints stay."""


def job_name(study: str, name: str | None = None) -> str:
    """A name that clouds take (RFC 1035 label of at most 30 characters): `name`, or made from the study's path.

    Raises:
      LaunchError: `name` is no such label.
    """
    if name:
        if not re.fullmatch(r"[a-z]([a-z0-9-]{0,28}[a-z0-9])?", name):
            raise LaunchError(f"--name={name}: write a-z, 0-9 and -, a letter first, at most 30 characters")
        return name
    last = re.sub(r"[^a-z0-9]+", "-", study.rstrip("/").rpartition("/")[2].lower()).strip("-")
    # Two studies of one name in different folders are two jobs.
    return f"cj-{last[:20].strip('-') or 'study'}-{hashlib.sha256(study.encode()).hexdigest()[:4]}"


def hosts_of(slice_: Slice, small_on_one: bool = True) -> int:
    """Virtual machines of one of its slices: four chips each. Up to 8 chips of v5e and v6e, a TPU VM is one machine;
    on GKE they are two (`small_on_one` false).
    """
    chips = math.prod(slice_.grid)
    if len(slice_.grid) == 2 and chips <= 8 and small_on_one:
        return 1
    return max(1, chips // 4)


def verdict(codes: Sequence[int | None]) -> str:
    """What the exit codes of a worker's hosts say together: `done`, `again`, or `failed`.

    None is a host that is gone. If any was lost or asked to be started again, the others' codes are its echo: they end
    as they can when a peer dies.
    """
    if any(code is None or code == PREEMPTED or code < 0 or code in _MACHINE for code in codes):
        return "again"
    return "done" if all(code == DONE for code in codes) else "failed"


class Headway:
    """Does a worker get on? Counts its starts, and begins anew when a run that it holds has a new checkpoint or result.

    Which run that is its lease says.
    """

    def __init__(self, job: Job, worker: int):
        self.job, self.worker, self.vain = job, str(worker), 0
        self._seen: dict[str, tuple[int, bool]] = {}

    def look(self) -> None:
        """Notes what has come about; call it now and then, and before `start`."""
        for run in self.job.runs():
            path = folder.run_folder(self.job.folder, run.name)
            holder = lease.owner(path / lease.LEASE) if run.name not in self._seen else None
            if run.name not in self._seen and (holder or {}).get("worker") != self.worker:
                continue
            mark = (newest_checkpoint(path), files.exists(path / folder.RESULT))
            if mark != self._seen.setdefault(run.name, mark):
                self._seen[run.name], self.vain = mark, 0

    def start(self) -> None:
        """Counts a start. Raises LaunchError if it would be one too many in vain."""
        self.look()
        if self.vain >= MOST_VAIN_STARTS:
            held = ", ".join(name for name, mark in self._seen.items() if not mark[1]) or "no run yet"
            told = f"worker {self.worker} was started {self.vain} times without a new checkpoint ({held})"
            raise LaunchError(f"{told}: see its log, or save more often (train.checkpoint_every)", 1)
        self.vain += 1


def newest_checkpoint(run_folder: pathlib.Path) -> int:
    """The step of a run's newest whole checkpoint; -1 without one."""
    names = (path.name for path in files.glob(run_folder / "checkpoints", "step_*"))
    return max((int(name[5:]) for name in names if name[5:].isdigit()), default=-1)
