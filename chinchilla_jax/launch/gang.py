"""One worker on machines of its own: code brought there, started apart from the connection, asked how it is.

`Gang` is one worker; `watch` keeps several going until the manifest is done. How a command reaches the machines is the
back-end's: `Hosts`. What runs there is `launch/host.py` of the checkout.
"""

from __future__ import annotations

import concurrent.futures
import json
import pathlib
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import chinchilla_jax
from chinchilla_jax.base.errors import FAILED, USAGE
from chinchilla_jax.launch.backend import Job, verdict
from chinchilla_jax.launch.command import Done, LaunchError, Tools, redact, remote
from chinchilla_jax.launch.money import Spent
from chinchilla_jax.study import folder
from chinchilla_jax.study.execute import lease
from chinchilla_jax.study.execute.worker import Stopped, on_signal

MARK = "chinchilla_jax-host: "  # before what `launch/host.py poll` says
POLL_SECONDS = 30.0
SILENT_POLLS = 5  # without an answer of all hosts, after which the machines are taken for lost
ENDING_POLLS = 10  # after one host has ended badly, until its peers are not waited for any more
SAVE_SECONDS = 120  # that a worker has to save when it is stopped


class Hosts(Protocol):
    """The machines of one worker."""

    @property
    def count(self) -> int:
        """How many they are."""

    def run(self, command: str, timeout: float = 1800.0, answer: str = "") -> Done:
        """Runs a shell's line on each, in the home folder; outputs of all together, the first code that is not 0.
        `answer` is what a dry run takes for the output.
        """

    def copy(self, file: str, target: str) -> Done:
        """Copies a file of this machine to each."""


class Gang:
    """A worker on `hosts`: `begin`, `poll` until it says what came of it, `stop`."""

    def __init__(self, job: Job, worker: int, hosts: Hosts, extra: str, environment: dict[str, str], tools: Tools):
        self.job, self.worker, self.hosts, self.tools = job, worker, hosts, tools
        self.extra, self.environment = ",".join(filter(None, (extra, job.storage_extra))), environment
        self.place = f"{job.name}-{worker}"  # the checkout's folder there
        self.tail: list[str] = []
        self._silent = self._ending = 0

    def bring(self, archive: str) -> str:
        """Code and environment onto the hosts. Returns what went wrong, or nothing."""
        target = f"{self.place}.tar.gz"
        unpack = remote(["mkdir", "-p", self.place], ["tar", "-xzf", target, "-C", self.place])
        setup = self._on_host("setup", *([self.extra] if self.extra else []))
        steps = {
            "copying the code": lambda: self.hosts.copy(archive, target),
            "set-up": lambda: self.hosts.run(f"{unpack} && {setup}"),
        }
        for name, step in steps.items():
            if not (done := step()).ok:
                return f"{name} failed: {done.why()}"
        return ""

    def start(self, number: int) -> str:
        """Starts the worker, apart from the connection. Returns what went wrong, or nothing."""
        variables = [f"{name}={value}" for name, value in {"PYTHONUNBUFFERED": "1", **self.environment}.items()]
        command = self.job.work(self.worker, ".venv/bin/python")
        done = self.hosts.run(self._on_host("start", str(number), "env", *variables, *command))
        return "" if done.ok else f"start failed: {done.why()}"

    def _on_host(self, *words: str) -> str:
        return remote(["cd", self.place], ["python3", "launch/host.py", *words])

    def poll(self) -> tuple[str, int]:
        """What the hosts say together, and the number of the newest start.

        `running`, `done`, `again` and `failed` are of the worker (`backend.verdict`); `new`: it was never started here;
        `silent`: a host did not answer; `lost`: for the last time.
        """
        healthy = json.dumps({"start": 1, "code": None, "running": True, "tail": []})
        done = self.hosts.run(self._on_host("poll"), 120.0, f"{MARK}{healthy}\n" * self.hosts.count)
        said = [json.loads(line.partition(MARK)[2]) for line in done.out.splitlines() if MARK in line]
        number = max((one["start"] for one in said), default=0)
        if len(said) < self.hosts.count:
            self._silent += 1
            return ("lost" if self._silent >= SILENT_POLLS else "silent"), number
        self._silent = 0
        if number == 0:
            return "new", 0
        self.tail = next((one["tail"] for one in said if one["code"]), said[0]["tail"])
        ended = [one for one in said if not one["running"]]
        # When one has ended, its peers follow within the heartbeat's timeout, or hang; their codes are heard first.
        self._ending = self._ending + 1 if any(one["code"] for one in ended) else 0
        if len(ended) < len(said) and self._ending <= ENDING_POLLS:
            return "running", number
        return verdict([one["code"] for one in said]), number

    def stop(self) -> None:
        """Has the worker save and end, as far as it can be reached."""
        self.hosts.run(self._on_host("stop", str(SAVE_SECONDS)), SAVE_SECONDS + 120.0)

    def last_line(self) -> str:
        """What the worker said last."""
        return redact(next((line for line in reversed(self.tail) if line.strip()), ""))[:200]


def archive(job: Job, tools: Tools) -> str:
    """The committed tree of this checkout as one file in a temporary folder; its path.

    Raises:
      LaunchError: the package does not run from a git checkout.
    """
    root = pathlib.Path(chinchilla_jax.__file__).resolve().parent.parent
    path = str(pathlib.Path(tempfile.gettempdir()) / f"{job.name}.tar.gz")
    done = tools.call(["git", "-C", str(root), "archive", "--format=tar.gz", f"--output={path}", "HEAD"])
    if not done.ok:
        raise LaunchError(f"the code is shipped as git archive makes it, which failed: {done.why()}")
    changed = "" if tools.dry else _changed(root)
    if changed:
        tools.echo(f"not shipped, since it is not committed: {changed}")
    return path


def _changed(root: pathlib.Path) -> str:
    done = subprocess.run(["git", "-C", str(root), "status", "--porcelain"], capture_output=True, text=True)
    names = [line[3:] for line in done.stdout.splitlines()]
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


class Member(Protocol):
    """One worker as `watch` sees it, with the life of the machines below it."""

    worker: int
    over: bool  # it needs no more ticks
    cause: str  # why, if it gave up
    working: bool  # its worker trains, as far as is known
    state: str  # one line for people
    chips: int  # that cost money just now
    taken: int  # how often its machines were taken away

    def tick(self, seen: Any) -> None:
        """Does what is next, as the state of the machines asks for."""

    def release(self) -> None:
        """Gives its machines back."""


def watch(
    job: Job, members: Sequence[Member], look: Callable[[], Any], spent: Spent, tools: Tools, poll: float = POLL_SECONDS
) -> None:
    """Keeps the workers going until all runs have a result, then gives everything back.

    `look` asks for the state of all machines at once; what it finds goes to each member's `tick`.

    Raises:
      LaunchError: no worker is left, or the budget is spent; machines were given back.
      Stopped: a signal came; workers go on, and the same command watches them again.
    """
    received: list[int] = []
    before, taken, told = tools.clock(), 0, ""
    with on_signal(received.append), concurrent.futures.ThreadPoolExecutor(len(members)) as pool:
        while tools.dry or job.unfinished():
            seen = look()
            active = [member for member in members if not member.over]
            # In a dry run one after the other, so that what it prints has an order.
            list((map if tools.dry else pool.map)(_tick, active, [seen] * len(active)))
            if tools.dry and all(member.working for member in members):
                tools.echo(f"# again every {poll:.0f} s, until every run has its result; then:")
                break
            now = tools.clock()
            if tools.dry:
                continue
            gone = sum(member.taken for member in members)
            spent.add((now - before) * sum(member.chips for member in members), gone - taken)
            before, taken = now, gone
            if (news := _news(job, members, spent)) != told:
                tools.echo(told := news)
            _end_early(job, members, spent, tools)
            if received:
                raise Stopped(
                    "the launcher stops, the workers go on: the same command watches them, `launch stop` ends them"
                )
            tools.sleep(poll)
    for member in members:
        if not member.over:
            member.release()


def _tick(member: Member, seen: Any) -> None:
    member.tick(seen)


def _news(job: Job, members: Sequence[Member], spent: Spent) -> str:
    runs = job.runs()
    left = len(folder.unfinished(job.folder, runs))
    states = "; ".join(f"{member.worker}: {member.state}" for member in members)
    return f"{len(runs) - left}/{len(runs)} runs; {states}; {spent.line()}"


def _end_early(job: Job, members: Sequence[Member], spent: Spent, tools: Tools) -> None:
    """Gives back slices that are not needed any more. Raises LaunchError if none is left, or no money."""
    if spent.over():
        for member in members:
            member.release()
        raise LaunchError(f"the budget is spent: {spent.line()}; slices are given back, checkpoints kept", USAGE)
    if all(member.over for member in members) and job.unfinished():
        causes = "; ".join(f"worker {member.worker}: {member.cause}" for member in members if member.cause)
        raise LaunchError(f"no worker is left and runs are unfinished: {causes or 'they ended'}", FAILED)
    for member in members:
        if member.working and _unneeded(job, member.worker):
            tools.echo(f"worker {member.worker}: others train what is left; its slice is given back")
            member.release()


def _unneeded(job: Job, worker: int) -> bool:
    """Whether every run that is left is another's. Should that one die, its own slice comes back."""
    paths = (folder.run_folder(job.folder, run.name) / lease.LEASE for run in job.unfinished())
    holders = [lease.owner(path) or {} for path in paths]
    return bool(holders) and all(holder.get("worker", str(worker)) != str(worker) for holder in holders)
