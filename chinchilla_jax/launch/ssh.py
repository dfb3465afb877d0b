"""Training on hosts that are listed: an equal share of them is a slice, reached by `ssh` and `scp`.

Hosts find each other by the variables that `parallel/job/hosts.py` reads. Keys and users are what `~/.ssh/config` says;
nothing is asked on the way (`BatchMode`).
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import shlex
from collections.abc import Callable, Sequence
from typing import Any

from chinchilla_jax.launch import gang
from chinchilla_jax.launch.backend import Headway, Job
from chinchilla_jax.launch.command import Done, LaunchError, Tools, redact
from chinchilla_jax.launch.gang import Gang

_OPTIONS = ("-o", "BatchMode=yes", "-o", "ConnectTimeout=20", "-o", "ServerAliveInterval=30")
PORT = 8476  # of process 0
MOST_UNREADY = 5  # times that code could not be brought, after which a worker is given up


@dataclasses.dataclass(frozen=True)
class Ssh:
    """The hosts, as `ssh` knows them; `extra` is what is installed there, `tpu` or nothing."""

    hosts: tuple[str, ...]
    extra: str = ""
    poll: float = gang.POLL_SECONDS

    def __post_init__(self) -> None:
        if not self.hosts:
            raise LaunchError("--hosts=HOST,HOST,... is missing: where to train, as ssh knows them")
        for host in self.hosts:
            if host.startswith("-") or any(letter.isspace() for letter in host):
                raise LaunchError(f"--hosts: {host!r} is no host")
        if len(set(self.hosts)) < len(self.hosts):
            raise LaunchError("--hosts names a host twice")

    def shares(self, job: Job) -> list[tuple[str, ...]]:
        """The hosts of each worker. Raises LaunchError if they cannot be shared equally."""
        each, left = divmod(len(self.hosts), job.slices)
        if left or not each:
            raise LaunchError(f"{len(self.hosts)} hosts are not {job.slices} equal slices: change --hosts or --slices")
        return [self.hosts[i * each : (i + 1) * each] for i in range(job.slices)]

    def launch(self, job: Job, tools: Tools) -> None:
        """Keeps a worker going on each share of the hosts until the manifest is done."""
        job.needs_shared_study()
        shares = self.shares(job)
        code = gang.archive(job, tools)
        members = [_Member(self, job, worker, share, code, tools) for worker, share in enumerate(shares)]
        spent = job.spent()
        gang.watch(job, members, lambda: None, spent, tools, self.poll)

    def status(self, job: Job, tools: Tools) -> None:
        """Prints how each worker is, and what it said last."""
        for worker, share in enumerate(self.shares(job)):
            one = self.gang(job, worker, share, tools)
            state, number = one.poll()
            tools.echo(f"worker {worker} on {', '.join(share)}: {state}, start {number}: {one.last_line()}")

    def stop(self, job: Job, tools: Tools) -> None:
        """Asks the workers to save and end."""
        for worker, share in enumerate(self.shares(job)):
            self.gang(job, worker, share, tools).stop()

    def gang(self, job: Job, worker: int, share: Sequence[str], tools: Tools) -> Gang:
        """The worker on its hosts."""
        return Gang(job, worker, _Hosts(tuple(share), tools), self.extra, {}, tools)


@dataclasses.dataclass(frozen=True)
class _Hosts:
    names: tuple[str, ...]
    tools: Tools

    @property
    def count(self) -> int:
        return len(self.names)

    def run(self, command: str, timeout: float = 1800.0, answer: str = "") -> Done:
        answers = answer.splitlines(keepends=True) or [""] * self.count

        def one(i: int) -> Done:
            words = ["ssh", *_OPTIONS, self.names[i], self._joined(i, command)]
            return self.tools.call(words, timeout=timeout, answer=answers[i])

        return self._on_each(one)

    def copy(self, file: str, target: str) -> Done:
        return self._on_each(lambda i: self.tools.call(["scp", "-q", *_OPTIONS, file, f"{self.names[i]}:{target}"]))

    def _on_each(self, one: Callable[[int], Done]) -> Done:
        """At once, but for a dry run: outputs in the order of the hosts, the first code that is not 0."""
        if self.tools.dry:
            each = [one(i) for i in range(self.count)]
        else:
            with concurrent.futures.ThreadPoolExecutor(self.count) as pool:
                each = list(pool.map(one, range(self.count)))
        wrong = next((done for done in each if done.code), Done(0))
        return Done(wrong.code, "".join(done.out for done in each), wrong.err)

    def _joined(self, process: int, command: str) -> str:
        """The command with the variables by which the processes of a worker find each other."""
        address = f"{self.names[0].rpartition('@')[2]}:{PORT}"
        variables = {"JAX_NUM_PROCESSES": self.count, "JAX_COORDINATOR_ADDRESS": address, "JAX_PROCESS_ID": process}
        if self.count == 1:
            variables = {"JAX_NUM_PROCESSES": 1}
        return f"export {shlex.join(f'{name}={value}' for name, value in variables.items())} && {command}"


class _Member:
    """A worker on hosts that stay. A `gang.Member`."""

    def __init__(self, backend: Ssh, job: Job, worker: int, share: tuple[str, ...], code: str, tools: Tools):
        self.job, self.worker, self.code, self.tools = job, worker, code, tools
        self.gang, self.headway = backend.gang(job, worker, share, tools), Headway(job, worker)
        self.over, self.working, self.cause, self.state, self.chips = False, False, "", "new", 0
        self.taken = 0
        self._begun, self._unready = False, 0

    def tick(self, seen: Any) -> None:
        """Starts the worker, or asks how it is."""
        said, number = ("new", 0) if self.tools.dry and not self._begun else self.gang.poll()
        self.headway.look()
        self.working = said == "running"
        self.state = f"{said}: {line}" if (line := self.gang.last_line()) else said
        if said == "running" or said == "silent" and self._begun:
            return
        if said in ("done", "failed") or said == "lost" and self._begun:
            for line in self.gang.tail if said == "failed" else ():
                self.tools.echo(f"    {redact(line)}")
            self.over, self.cause = True, "" if said == "done" else f"{said}: {self.gang.last_line()}"
            return
        self._begin(number + 1)

    def _begin(self, number: int) -> None:
        wrong = self.gang.bring(self.code)
        try:
            if not wrong:
                self.headway.start()
                wrong = self.gang.start(number)
        except LaunchError as error:
            self.over, self.cause = True, str(error)
            return
        self._begun, self._unready = not wrong, self._unready + 1 if wrong else 0
        self.state = wrong or f"start {number}"
        if self._unready >= MOST_UNREADY:
            self.over, self.cause = True, wrong

    def release(self) -> None:
        """Asks the worker to save and end."""
        if not self.over:
            self.gang.stop()
        self.over, self.working = True, False
