"""The verb `launch`: a manifest, a back-end, slices; what it will cost, then workers that train it."""

from __future__ import annotations

import math
import os
import re
from typing import TYPE_CHECKING

from absl import flags

from chinchilla_jax.base.errors import DONE, PREEMPTED, UsageError
from chinchilla_jax.cli.runs import echo
from chinchilla_jax.config import did_you_mean

if TYPE_CHECKING:
    from chinchilla_jax.launch.backend import Backend, Job
    from chinchilla_jax.launch.money import Price

ACTIONS = ("start", "status", "stop")
BACKENDS = ("local", "tpu_vm", "gke", "slurm", "ssh")
_GOOGLE = ("zone", "project", "spot", "reserved", "runtime_version", "wait_hours", "service_account")
_KUBERNETES = ("image", "namespace", "queue", "volume")
LAUNCH = (
    "study", "manifest", "backend", "slice", "slices", "workers", "dry_run", "name", "labels",
    "price", "budget_usd", "preflight", "cache", "utilisation", *_GOOGLE, *_KUBERNETES, "hosts", "sbatch",
)  # fmt: skip


def launch(values: flags.FlagValues, words: list[str]) -> int:
    """Trains the runs of a manifest on --slices of --backend, until all are finished; prints first what it will cost.

    The back-ends: `local` (processes here), `tpu_vm` (queued resources of Google Cloud, through gcloud), `gke`
    (JobSets, through kubectl), `slurm` (an array, through sbatch), `ssh` (--hosts). Each slice is a worker that pulls
    runs; the study lies where all of them see it. Runs that do not fit --slice are refused, as by `preflight`
    (--nopreflight leaves that out). A slice that is preempted is asked for again; a worker that starts three times
    without a new checkpoint is given up. --dry_run prints every command and calls none. `launch status` says what
    there is of the job, `launch stop` has the workers save and gives everything back; both take the same flags.
    """
    from chinchilla_jax.cli.studies import folder
    from chinchilla_jax.launch.command import Tools
    from chinchilla_jax.study.execute.worker import Stopped

    action = words[0] if words else "start"
    if action not in ACTIONS or len(words) > 1:
        raise UsageError(f"launch: unexpected {words[-1]!r}; after `launch` comes {', '.join(ACTIONS[1:])} or nothing")
    folder(values, "study")
    tools = Tools(echo, dry=values.dry_run)
    job, backend = _job(values), _backend(values)
    if action != "start":
        (backend.status if action == "status" else backend.stop)(job, tools)
        return DONE
    if not job.unfinished():
        echo(f"{job.manifest}: all {len(job.runs())} runs are finished")
        return DONE
    _say_the_cost(job, values)
    try:
        backend.launch(job, tools)
    except Stopped as stopped:
        echo(str(stopped))
        return PREEMPTED
    if values.backend != "slurm" and not values.dry_run:
        echo(f"{job.manifest}: all {len(job.runs())} runs are finished")
    return DONE


def _job(values: flags.FlagValues) -> Job:
    from chinchilla_jax.launch.backend import Job, job_name
    from chinchilla_jax.preflight.slices import parse_slice

    slice_ = parse_slice(values.slice) if values.slice else None
    labels = tuple(_pair(text) for text in (values.labels or "").split(",") if text)
    name = job_name(values.study, values.name)
    return Job(name, values.study, values.manifest, values.slices, slice_, _price(values), labels)


def _price(values: flags.FlagValues) -> Price:
    from chinchilla_jax.launch.money import Price

    for flag in ("price", "budget_usd"):
        if values[flag].value is not None and not 0 <= values[flag].value < math.inf:
            raise UsageError(f"--{flag}={values[flag].value}: dollars must be a number, 0 or more")
    return Price(values.price, values.budget_usd)


def _pair(text: str) -> tuple[str, str]:
    key, _, value = text.partition(":")
    if not re.fullmatch(r"[a-z][a-z0-9_-]{0,62}", key) or not re.fullmatch(r"[a-z0-9_-]{0,63}", value):
        raise UsageError(f"--labels: {text!r}: write KEY:VALUE,... of a-z, 0-9, - and _, a letter first in the key")
    return key, value


def _backend(values: flags.FlagValues) -> Backend:
    """The back-end of that name, with its flags."""
    if values.backend not in BACKENDS:
        told = f"unknown back-end {values.backend!r}{did_you_mean(values.backend, BACKENDS)}" if values.backend else ""
        raise UsageError(f"--backend: {told or 'is missing'}; one of {', '.join(BACKENDS)}")
    hosts = tuple(host for host in (values.hosts or "").split(",") if host)
    if values.backend == "tpu_vm":
        from chinchilla_jax.launch.tpu_vm import TpuVm

        return TpuVm(zone=values.zone or "", **{name: values[name].value for name in _GOOGLE[1:]})
    if values.backend == "gke":
        from chinchilla_jax.launch.gke import Gke

        named = {name: values[name].value for name in ("namespace", "queue", "volume", "spot", "service_account")}
        return Gke(values.image or "", **named)
    if values.backend == "slurm":
        from chinchilla_jax.launch.slurm import Slurm

        if len(hosts) > 1 or hosts and not hosts[0].isdecimal():
            raise UsageError("--hosts of slurm is a number: the nodes of each slice")
        return Slurm(int(hosts[0]) if hosts else 1, tuple(values.sbatch or ()))
    if values.backend == "ssh":
        from chinchilla_jax.launch.ssh import Ssh

        return Ssh(hosts, "tpu" if values.slice else "")
    from chinchilla_jax.launch.local import Local

    if values.slice or values.slices > 1:
        raise UsageError("--slice and --slices are not for local, which trains on what this machine has: --workers")
    return Local(values.workers)


def _say_the_cost(job: Job, values: flags.FlagValues) -> None:
    """Prints time, chip-hours and dollars. Raises for runs that do not fit the slice, or a budget that is too small."""
    if job.slice is None:
        if job.price.budget is not None:
            raise UsageError("--budget_usd needs --slice and --price: chips that cost money")
        return
    from chinchilla_jax.launch.money import estimate, saving_line, seconds_of

    checked = _preflighted(job, values) if values.preflight else {}
    said = estimate(job.unfinished(), job.slices, job.slice, job.price, values.utilisation, checked)
    for line in said.lines():
        echo(line)
    said.check()
    if values.spot:
        seconds, _ = seconds_of(job.unfinished(), job.slice, values.utilisation, checked)
        if line := saving_line(job.unfinished(), seconds, *job.spent().life(job.slice.chips)):
            echo(line)


def _preflighted(job: Job, values: flags.FlagValues) -> dict[str, float | None]:
    """Predicted seconds of each unfinished run, by name. Raises ConfigError if one does not fit the slice.

    Of runs that were planned for this slice the manifest has them already.
    """
    from chinchilla_jax.cli.studies import preflight_verb

    runs = job.unfinished()
    if all((run.preflight or {}).get("slice") == job.needs_one_slice.name for run in runs):
        return {}
    before = os.environ.get("JAX_PLATFORMS")
    try:
        return preflight_verb().seconds_that_fit(runs, values, echo)
    finally:  # what is started later has the environment that the launcher was given
        os.environ.pop("JAX_PLATFORMS", None)
        os.environ.update({} if before is None else {"JAX_PLATFORMS": before})
