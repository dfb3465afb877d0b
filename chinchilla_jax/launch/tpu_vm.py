"""Training on TPU VMs of Google Cloud: a queued resource for each slice, through `gcloud`.

The life of a slice: asked for (WAITING_FOR_RESOURCES, PROVISIONING), ACTIVE, and when it is preempted SUSPENDED: it is
then never filled again, but keeps its quota and its name until it is deleted. So it is deleted, and asked for again as
the next incarnation, NAME-WORKER-NUMBER. Everything is read back from Google Cloud and the hosts: a launcher can be
stopped, and started again on another machine.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from typing import Any

from chinchilla_jax.launch import gang
from chinchilla_jax.launch.backend import Headway, Job, hosts_of
from chinchilla_jax.launch.command import Done, LaunchError, Tools, redact
from chinchilla_jax.launch.gang import Gang
from chinchilla_jax.preflight.slices import Slice, offered

# `gcloud compute tpus queued-resources create --accelerator-type`, and Google's table of software versions.
_TYPES = {"v4": "v4", "v5e": "v5litepod", "v5p": "v5p", "v6e": "v6e"}
_RUNTIMES = {
    "v4": "tpu-ubuntu2204-base",
    "v5e": "v2-alpha-tpuv5-lite",
    "v5p": "v2-alpha-tpuv5",
    "v6e": "v2-alpha-tpuv6e",
}
_COMING = ("", "CREATING", "ACCEPTED", "WAITING_FOR_RESOURCES", "PROVISIONING")
_GOING = ("SUSPENDING", "DELETING")  # left alone: what is deleted while it is being suspended gets stuck
_DEAD = ("SUSPENDED", "FAILED")
_CAPACITY = (
    "no more capacity",
    "Insufficient reserved capacity",
    "internal error",
    "RESOURCE_EXHAUSTED",
    "UNAVAILABLE",
)
# The port of process 0: of JAX's choice since 0.8.1 the rules of Google's networks say nothing, of this one they do.
_COORDINATOR_PORT = "8476"
BACK_OFF = 60.0  # seconds before a slice is asked for again after a stock-out, doubled each time
MOST_BACK_OFF = 512.0
MOST_UNREADY = 20  # times that code could not be brought to a slice, after which another one is asked for


@dataclasses.dataclass(frozen=True)
class TpuVm:
    """Which slices are asked for, where, and for how long."""

    zone: str
    project: str | None = None
    spot: bool = False
    reserved: bool = False
    runtime_version: str | None = None
    service_account: str | None = None
    wait_hours: float = 24.0  # without capacity, after which a slice is given up
    poll: float = gang.POLL_SECONDS

    def __post_init__(self) -> None:
        if not self.zone:
            raise LaunchError("--zone=ZONE is missing: where the slices are, e.g. us-west4-a")
        if self.spot and self.reserved:
            raise LaunchError("--spot and --reserved: a slice is one or the other")

    def launch(self, job: Job, tools: Tools) -> None:
        """Keeps `job.slices` queued resources at work until the manifest is done, then deletes them."""
        accelerator_type(job.needs_one_slice)
        job.needs_shared_study()
        if not job.storage_extra:
            tools.echo(f"--study={job.study}: every host has to mount that folder; gs://BUCKET/... needs no mount")
        code = gang.archive(job, tools)
        lives = [_Life(self, job, worker, code, tools) for worker in range(job.slices)]
        spent = job.spent()

        def look() -> dict[str, dict[str, Any]]:
            return self.find(job, tools, {name: "ACTIVE" for life in lives if (name := life.asked)})

        gang.watch(job, lives, look, spent, tools, self.poll)

    def status(self, job: Job, tools: Tools) -> None:
        """Prints every queued resource of the job, the dead ones that still use up quota too."""
        found = self.find(job, tools, {})
        for name, resource in sorted(found.items()):
            tools.echo(f"{name:40} {state_of(resource):22} {failure(resource)}".rstrip())
        if not found and not tools.dry:
            tools.echo(f"{job.name}: no queued resources in {self.zone}")

    def stop(self, job: Job, tools: Tools) -> None:
        """Asks the workers to save, and deletes every queued resource of the job."""
        assumed = {f"{job.name}-{worker}-1": "ACTIVE" for worker in range(job.slices)}
        for name, resource in sorted(self.find(job, tools, assumed).items()):
            if state_of(resource) == "ACTIVE":
                hosts = _Hosts(self, name, job.needs_one_slice, tools)
                Gang(job, int(name.split("-")[-2]), hosts, "tpu", {}, tools).stop()
            tools.echo(f"{name}: deleted" if (done := self.delete(name, tools)).ok else f"{name}: {done.why()}")

    # What is asked of gcloud.

    def command(self, *words: str) -> list[str]:
        """A command about queued resources in this zone."""
        project = [f"--project={self.project}"] if self.project else []
        return ["gcloud", "compute", "tpus", "queued-resources", *words, f"--zone={self.zone}", *project]

    def create(self, job: Job, name: str, worker: int, tools: Tools) -> Done:
        """Asks for a slice; labels are those of its machines."""
        slice_ = job.needs_one_slice
        labels = {"launched-by": "chinchilla_jax", "job": job.name, "worker": str(worker), **dict(job.labels)}
        nodes = [f"--node-id={name}"]
        if slice_.count > 1:
            nodes = [f"--node-count={slice_.count}", f"--node-prefix={name}"]
        tier = ["--spot"] if self.spot else ["--reserved"] if self.reserved else []
        account = [f"--service-account={self.service_account}"] if self.service_account else []
        what = [f"--accelerator-type={accelerator_type(slice_)}"]
        what += [f"--runtime-version={self.runtime_version or _RUNTIMES[slice_.generation]}"]
        until = f"--valid-until-duration={round(self.wait_hours * 3600)}s"
        listed = "--labels=" + ",".join(f"{key}={value}" for key, value in labels.items())
        return tools.call(
            self.command("create", name, *nodes, *what, *tier, *account, until, listed, "--async", "--quiet")
        )

    def delete(self, name: str, tools: Tools) -> Done:
        """Deletes a queued resource with its machines; one that is gone already is as good."""
        done = tools.call(self.command("delete", name, "--force", "--quiet", "--async"))
        return Done(0) if "NOT_FOUND" in done.err else done

    def find(self, job: Job, tools: Tools, assumed: Mapping[str, str]) -> dict[str, dict[str, Any]]:
        """The queued resources of the job by name; a dry run finds those `assumed`, with these states.

        Raises:
          LaunchError: gcloud could not be asked.
        """
        answer = json.dumps([{"name": name, "state": {"state": state}} for name, state in assumed.items()])
        done = tools.call(self.command("list", "--format=json"), answer=answer, reads=True)
        if not done.ok:
            raise LaunchError(f"gcloud: {done.why()}")
        named = ((item["name"].rpartition("/")[2], item) for item in json.loads(done.out or "[]"))
        return {name: item for name, item in named if re.fullmatch(rf"{re.escape(job.name)}-\d+-\d+", name)}


def accelerator_type(slice_: Slice) -> str:
    """The slice as `--accelerator-type` names it. Raises LaunchError if TPU VMs have none of that name."""
    chips = slice_.chips // slice_.count
    if slice_.generation not in _TYPES:
        raise LaunchError(f"--slice={slice_.name}: {slice_.generation} is offered on Kubernetes only: --backend=gke")
    if offered(slice_.generation).get(chips) != slice_.grid:
        raise LaunchError(f"--slice={slice_.name}: TPU VMs are asked for by their size, not by a grid: --backend=gke")
    return f"{_TYPES[slice_.generation]}-{chips * slice_.chip.cores}"


def state_of(resource: Mapping[str, Any] | None) -> str:
    """The state of what `describe` or `list` says of a queued resource; empty if there is none."""
    return ((resource or {}).get("state") or {}).get("state", "")


def failure(resource: Mapping[str, Any]) -> str:
    """Why it failed, in Google's words; empty if it did not."""
    error = ((resource.get("state") or {}).get("failedData") or {}).get("error") or {}
    return f"code {error['code']}: {error.get('message', '')}" if error else ""


def passes(text: str) -> bool:
    """Whether a refusal may be gone in a while: no capacity. Quota, permissions, types and zones are not."""
    return any(words in text for words in _CAPACITY) and "uota" not in text


@dataclasses.dataclass(frozen=True)
class _Hosts:
    """All machines of a queued resource, reached by `gcloud`.

    It calls a command again if the connection is lost, so commands are such as may be called twice.
    """

    backend: TpuVm
    name: str
    slice: Slice
    tools: Tools

    @property
    def count(self) -> int:
        return self.slice.count * hosts_of(self.slice)

    def run(self, command: str, timeout: float = 1800.0, answer: str = "") -> Done:
        words = ("ssh", self.name, "--node=all", "--worker=all", f"--command={command}", "--quiet")
        return self.tools.call(self.backend.command(*words), timeout=timeout, answer=answer)

    def copy(self, file: str, target: str) -> Done:
        words = ("scp", file, f"{self.name}:{target}", "--node=all", "--worker=all", "--quiet")
        return self.tools.call(self.backend.command(*words))


class _Life:
    """One worker's slices, one after the other. A `gang.Member`."""

    def __init__(self, backend: TpuVm, job: Job, worker: int, code: str, tools: Tools):
        self.backend, self.job, self.worker, self.code, self.tools = backend, job, worker, code, tools
        self.headway = Headway(job, worker)
        self.over, self.working, self.cause, self.state, self.chips = False, False, "", "not asked for", 0
        self.taken = 0
        self.asked = ""  # the newest queued resource
        self._number = 0  # and its number
        self._buried = ""
        self._gang: Gang | None = None
        self._since = tools.clock()  # when the wait for a slice began
        self._refused, self._not_before, self._unready = 0, 0.0, 0

    def tick(self, seen: dict[str, dict[str, Any]]) -> None:
        """Does what is next, given all queued resources of the job by name."""
        mine = sorted((name for name in seen if int(name.split("-")[-2]) == self.worker), key=_number_of)
        for name in mine[:-1]:  # of an incarnation before
            if state_of(seen[name]) not in _GOING:
                self.backend.delete(name, self.tools)
        newest = mine[-1] if mine else ""
        state = state_of(seen.get(newest))
        self.chips = self.job.needs_one_slice.chips if state == "ACTIVE" else 0
        if state != "ACTIVE":
            self._gang, self.working, self._unready = None, False, 0
        if not newest:
            self._ask()
            return
        self.asked, self._number = newest, max(self._number, _number_of(newest))
        if state == "ACTIVE":
            self._work(newest)
        elif state in _DEAD:
            self._bury(newest, state, failure(seen[newest]))
        else:
            self.state = state.lower()
            if state in _COMING and self._waited_too_long():
                self._give_up(f"no slice for {self.backend.wait_hours:g} h ({state})")

    def release(self) -> None:
        """Deletes what was asked for."""
        if self.asked:
            self.backend.delete(self.asked, self.tools)
        self.over, self.working, self.state, self.chips, self.asked = True, False, "given back", 0, ""

    def _give_up(self, cause: str) -> None:
        self.release()
        self.cause, self.state = cause, f"given up: {cause}"

    def _waited_too_long(self) -> bool:
        return self.tools.clock() - self._since > 3600.0 * self.backend.wait_hours

    def _ask(self) -> None:
        if self.tools.clock() < self._not_before:
            return
        self._number += 1
        name = f"{self.job.name}-{self.worker}-{self._number}"
        done = self.backend.create(self.job, name, self.worker, self.tools)
        # Of two launchers, or after a lost answer, it may be there already.
        if done.ok or "ALREADY_EXISTS" in done.err:
            self.asked, self.state = name, "asked for"
        else:
            self._refuse(done.why())

    def _bury(self, name: str, state: str, why: str) -> None:
        """Deletes a dead queued resource, again if need be. Once it is gone, the next one is asked for."""
        self.state = state.lower()
        self.backend.delete(name, self.tools)
        if name == self._buried:
            return
        self._buried = name
        self.tools.echo(f"{name}: {state}{f', {why}' if why else ''}; it is deleted")
        if why:
            self._refuse(why)
        elif state == "SUSPENDED":  # preempted: the wait begins anew
            self.taken, self._since = self.taken + 1, self.tools.clock()

    def _refuse(self, why: str) -> None:
        """No slice this time: asks again later if that can help."""
        if not passes(why):
            self._give_up(why)
        elif self._waited_too_long():
            self._give_up(f"no slice for {self.backend.wait_hours:g} h: {why}")
        else:
            wait = min(BACK_OFF * 2.0**self._refused, MOST_BACK_OFF)
            self._refused, self._not_before = self._refused + 1, self.tools.clock() + wait
            self.state = f"asked for again in {wait:.0f} s: {why}"

    def _work(self, name: str) -> None:
        """On a slice that is there: brings and starts the worker, or asks how it is."""
        self._refused, self._since = 0, self.tools.clock()
        fresh = self._gang is None
        self._gang = self._gang or self._new_gang(name)
        said, number = ("new", 0) if fresh and self.tools.dry else self._gang.poll()
        self.headway.look()
        self.working = said == "running"
        if said == "running" or said == "silent" and not fresh:
            self.state = f"{said}: {line}" if (line := self._gang.last_line()) else said
        elif said == "done":
            self.release()
        elif said == "failed":
            for line in self._gang.tail:
                self.tools.echo(f"    {redact(line)}")
            self._give_up(f"it failed and would again: {self._gang.last_line()}")
        elif said == "lost":
            self._lose(name, "its hosts do not answer")
        else:
            self._begin(self._gang, name, number + 1)

    def _begin(self, worker: Gang, name: str, number: int) -> None:
        """ACTIVE is not ready: what cannot be brought yet is tried again, until the slice is taken for a bad one."""
        wrong = worker.bring(self.code)
        if not wrong and self._counted():
            self.tools.echo(f"# {name}: start {number} of worker {self.worker}")
            wrong = worker.start(number)
        if not wrong or self.over:
            self._unready = 0
            self.state = self.state if self.over else f"start {number}"
            return
        self._gang, self._unready, self.state = None, self._unready + 1, wrong
        if self._unready >= MOST_UNREADY and self._counted():
            self._lose(name, wrong)

    def _counted(self) -> bool:
        """Counts a start; gives the worker up, and returns False, if it would be one too many."""
        try:
            self.headway.start()
        except LaunchError as error:
            self._give_up(str(error))
        return not self.over

    def _lose(self, name: str, why: str) -> None:
        self.tools.echo(f"{name}: {why}; the slice is deleted and asked for again")
        self._gang, self._unready, self.working = None, 0, False
        self.backend.delete(name, self.tools)

    def _new_gang(self, name: str) -> Gang:
        slice_ = self.job.needs_one_slice
        environment = {"JAX_COORDINATOR_PORT": _COORDINATOR_PORT}
        if slice_.count > 1:  # an error between slices ends the step instead of halting it for ever
            environment["LIBTPU_INIT_ARGS"] = "--megascale_abort_on_hangs=true"
        hosts = _Hosts(self.backend, name, slice_, self.tools)
        return Gang(self.job, self.worker, hosts, "tpu", environment, self.tools)


def _number_of(name: str) -> int:
    return int(name.rpartition("-")[2])
