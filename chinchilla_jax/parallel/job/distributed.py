"""How do several processes, one on each host, do one run together?

    with joined(host_settings(...)):            # starts jax.distributed, if there is anything to start
        check_same("config", ..., fix)          # all go on, or all stop with an error that says who differs
        if first(): ...                         # process 0 writes, the others compute
        stop_reached(sigterm)                   # all learn to stop, at the same step
        exchange("what", mine)                  # -> everybody's, in order

They agree through the key-value store of JAX's coordination service in process 0, and not through the devices, which
may have failed. With one process all of this is immediate.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import re
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from chinchilla_jax.base import files
from chinchilla_jax.base.errors import PREEMPTED, exit_code
from chinchilla_jax.config import ConfigError
from chinchilla_jax.parallel.job.guard import guarded
from chinchilla_jax.parallel.job.hosts import Settings, flag_name

_EXCHANGE_SECONDS = 600  # for hosts whose file system is slow; that they live is watched by heartbeats
_POLL_SECONDS = 0.5
_ROOT = "chinchilla_jax"
# How a collective words the loss of a peer, before the coordination service has noticed.
_CONNECTION = re.compile(r"gloo|connection|unavailable|deadline|aborted|heartbeat|unhealthy|socket", re.IGNORECASE)


@contextlib.contextmanager
def joined(settings: Settings | None) -> Iterator[None]:
    """Joins the other processes for the time of the block; does nothing for None. JAX must not have been used before.

    An error that leaves the block ends the other processes too, with the same exit code. So outcomes that all processes
    share, like a divergence, are handled inside.
    """
    global _job
    if settings is None:
        yield
        return
    who = f"this process ({settings.detection})"
    if settings.coordinator:
        address = f"{flag_name('coordinator')}: {settings.coordinator}"
        who = f"{address}: process {settings.process} of {settings.processes}"
    found_each_other = guarded(
        f"{who} could not join the others within {settings.join_timeout} s; check that process 0 runs and can be "
        f"reached there, that all processes are started, each with its own {flag_name('process')} and all with the "
        f"same {flag_name('processes')}"
    )
    _start(settings)
    found_each_other()
    _job = job = _Job(settings)
    try:
        yield
    except BaseException as error:
        job.fail(error, exit_code(error) if isinstance(error, Exception) else PREEMPTED)
        raise
    job.leave()
    _job = None


def _start(settings: Settings) -> None:
    import signal

    import jax

    # Its handler of SIGTERM would take the place of the loop's, which agrees on the step through this module.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            settings.coordinator or None,
            settings.processes,
            settings.process,
            initialization_timeout=settings.join_timeout,
            heartbeat_timeout_seconds=settings.peer_timeout,
            shutdown_timeout_seconds=settings.peer_timeout,
            cluster_detection_method=settings.detection or "deactivate",
        )
    except (RuntimeError, ValueError) as error:
        if settings.coordinator:
            raise ConfigError(flag_name("coordinator"), f"{settings.coordinator}: {_line(error)}") from None
        missing = f"the other hosts were not found ({settings.detection}: {_line(error)})"
        fix = "say --coordinator, --processes, --process; or --processes=1 for a host alone"
        raise ConfigError(flag_name("processes"), f"{missing}; {fix}") from None
    for number in (signal.SIGTERM, signal.SIGINT):  # until the loop takes them, there is nothing to save
        signal.signal(number, signal.SIG_DFL)


def _line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


class _Job:
    """This process's part in the job, with the thread that listens for what the others have to say."""

    def __init__(self, settings: Settings):
        from jax._src.distributed import global_state  # JAX has no public way to the key-value store

        self.client = global_state.client
        self.index, self.count = global_state.process_id, global_state.num_processes
        self.asked, self.peer_timeout = settings.processes, settings.peer_timeout
        self.exchanges = 0
        self.stop = StopTogether(self)
        self._leaving = threading.Event()
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()

    def _listen(self) -> None:
        """Until this process leaves. A question that fails is asked again: that peers are lost, the runtime notices."""
        failing_since = None
        while not self._leaving.wait(_POLL_SECONDS):
            try:
                notices = dict(self.client.key_value_dir_get(f"{_ROOT}/notice/"))
                if failed := notices.get(f"{_ROOT}/notice/failed"):
                    self._follow(json.loads(failed))
                elif notices:
                    self.stop.learn()
                failing_since = None
            except RuntimeError as error:
                failing_since = failing_since or time.monotonic()
                if self.stop.holding and time.monotonic() - failing_since > 2 * self.peer_timeout:
                    reason = f"the processes cannot agree on a step ({_line(error)})"
                    self._say(f"asked to stop, but {reason}; stopped without saving")
                    os._exit(PREEMPTED)

    def _follow(self, failed: dict) -> None:
        """Ends this process, which may be waiting for the failed one for ever, unless it is failing by itself."""
        if self._leaving.wait(3.0):
            return
        self._say(f"stopping, as process {failed['process']} failed: {failed['error']}")
        self._meet("failed", 5.0)
        os._exit(failed["code"])

    def _say(self, message: str) -> None:
        print(f"chinchilla_jax: process {self.index}: {message}", file=sys.stderr, flush=True)

    def fail(self, error: BaseException, code: int) -> None:
        """Tells the others; lets this process exit without waiting for them."""
        if type(error).__name__ in ("JaxRuntimeError", "TimeoutError") and _CONNECTION.search(str(error)):
            time.sleep(self.peer_timeout + 10.0)  # a peer is gone: the runtime will say which, and abort
        self._leaving.set()
        notice = {"process": self.index, "error": _line(error), "code": code}
        with contextlib.suppress(RuntimeError):  # another was first, or process 0 is gone; our own error is on its way
            self.client.key_value_set(f"{_ROOT}/notice/failed", json.dumps(notice))
        self._meet("failed", 10.0)
        sys.stdout.flush()
        atexit.register(os._exit, code)  # before JAX's own handler, which would wait for peers that may not come

    def _meet(self, what: str, seconds: float) -> None:
        with contextlib.suppress(RuntimeError):
            self.client.wait_at_barrier(f"{_ROOT}/{what}", int(1000 * seconds))
        if self.index == 0:
            time.sleep(1.0)  # its end would look like a loss to those that are a moment behind

    def leave(self) -> None:
        """Leaves when all do."""
        import jax

        self._leaving.set()
        self._listener.join(2.0)  # it may be waiting for the answer of a process that has left
        jax.distributed.shutdown()


class StopTogether:
    """Has all processes stop at the same turn of their loops when one of them is asked to.

    Each process counts the turns that it has begun. When it learns that one was asked to stop, it begins no further
    turn, tells its count, and waits for the counts of all. They stop at the turn after the largest count: no process
    has begun that turn, and every process can reach it, since the turns before it wait for nobody. Listening threads
    exchange the counts, because a main thread may be waiting in a collective for slower processes.
    """

    def __init__(self, job: _Job):
        self._job, self._changed = job, threading.Condition()
        self._turns, self._asked = 0, False
        self._stop_at: int | None = None
        self.holding = False

    def reached(self, asked: bool) -> bool:
        """Call once a turn, in all processes. Whether to stop now; `asked` is whether this process was asked to."""
        if asked and not self._asked:
            self._asked = True
            self._job.client.key_value_set(f"{_ROOT}/notice/stop", str(self._job.index), allow_overwrite=True)
        with self._changed:
            self._changed.wait_for(lambda: not self.holding or self._stop_at is not None)
            self._turns += 1
            return self._turns == self._stop_at

    def learn(self) -> None:
        """Some process was asked to stop: agrees with the others on the turn. Called by the listening thread."""
        if self._stop_at is not None:
            return
        with self._changed:
            self.holding = True  # from here on no turn begins, so that a second attempt says what the first did
            begun = self._turns
        client, count, ms = self._job.client, self._job.count, 1000 * self._job.peer_timeout
        client.key_value_set(f"{_ROOT}/turns/{self._job.index}", str(begun), allow_overwrite=True)
        if self._job.index == 0:
            everybody = [int(client.blocking_key_value_get(f"{_ROOT}/turns/{i}", ms)) for i in range(count)]
            client.key_value_set(f"{_ROOT}/stop_at", str(max(everybody) + 1), allow_overwrite=True)
        agreed = int(client.blocking_key_value_get(f"{_ROOT}/stop_at", ms))
        with self._changed:
            self._stop_at = agreed
            self._changed.notify_all()


_job: _Job | None = None


def first() -> bool:
    """Whether this is the process that writes files and talks: process 0, or the only one."""
    return _job is None or _job.index == 0


def prefix() -> str:
    """`process 3: ` for the messages of one of several processes."""
    return f"process {_job.index}: " if _job else ""


def stop_reached(asked: bool) -> bool:
    """See `StopTogether.reached`; a process on its own stops when asked."""
    return _job.stop.reached(asked) if _job else asked


def exchange(what: str, mine: str) -> list[str]:
    """What each process says, in the order of processes. All have to call it, in the same order."""
    if _job is None:
        return [mine]
    _job.exchanges += 1
    key = f"{_ROOT}/exchange/{_job.exchanges}/{what}"
    _job.client.key_value_set(f"{key}/{_job.index}", mine)
    try:
        _job.client.wait_at_barrier(key, 1000 * _EXCHANGE_SECONDS)
    except RuntimeError as error:
        words = " ".join(str(error).split())
        raise TimeoutError(
            f"not all processes came to agree on {what!r} within {_EXCHANGE_SECONDS} s: {words}"
        ) from None
    if first() and _job.exchanges > 1:
        _job.client.key_value_delete(f"{_ROOT}/exchange/{_job.exchanges - 1}")  # all are past it
    values = {int(name.rpartition("/")[2]): value for name, value in _job.client.key_value_dir_get(f"{key}/")}
    return [values[i] for i in sorted(values)]  # not by the number of processes: they may not agree on it yet


def check_same(key: str, mine: str, fix: str) -> None:
    """Raises a `ConfigError` of `key` in every process unless all say the same; it names one that differs."""
    everybody = exchange(key, mine)
    for process, value in enumerate(everybody):
        if value != everybody[0]:
            raise ConfigError(key, f"process {process} has {value}, process 0 has {everybody[0]}; {fix}")


def check_job(config_hash: str, config_values: dict, code: str, devices: int) -> None:
    """Raises a `ConfigError` in every process unless all are about to do the same, with the devices of the mesh."""
    if _job is None:
        return
    import jax

    if _job.asked:
        check_same("--processes", str(_job.asked), "give every process the same number")
    check_same("code", code, "install the same version on every host")
    _check_config(config_hash, config_values)
    if jax.process_count() != _job.count or jax.device_count() != devices:
        there = f"the {jax.process_count()} processes have {jax.device_count()}"
        own = f"{jax.local_device_count()} of them process {_job.index}"
        fix = "set mesh.data, mesh.fsdp, mesh.context and mesh.tensor so that that is their product"
        raise ConfigError("mesh", f"the mesh needs {devices} devices, {there} ({own}); {fix}")


def _check_config(config_hash: str, values: dict) -> None:
    if len(set(exchange("config_hash", config_hash))) == 1:
        return
    # They differ, so one exchange of whole configs is affordable.
    reference, *others = (json.loads(text) for text in exchange("config", json.dumps(values)))
    for process, config in enumerate(others, start=1):
        for key, value, expected in different(config, reference):
            difference = f"process {process} has {value}, process 0 has {expected}"
            raise ConfigError(f"config.{key}", f"{difference}; give every process the same settings")


def different(one: dict, other: dict, prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """The keys in which two nested dictionaries differ, as `optimizer.peak_lr`, with both values; sorted."""
    for key in sorted(one.keys() | other.keys()):
        ours, theirs = one.get(key), other.get(key)
        if isinstance(ours, dict | None) and isinstance(theirs, dict | None):
            yield from different(ours or {}, theirs or {}, f"{prefix}{key}.")
        elif ours != theirs:
            yield f"{prefix}{key}", ours, theirs


def check_shared(directory: Path) -> None:
    """Checks that all processes see the same `directory`, by a file that process 0 puts there for a moment.

    A `ConfigError` in all processes names those that do not see it.
    """
    if _job is None:
        return
    existed = files.is_folder(directory)
    token = directory / f".seen_by_all_{exchange('token', os.urandom(8).hex())[0]}"
    if first():
        files.create(token, "")
    exchange("written", "")
    blind = [str(i) for i, seen in enumerate(exchange("seen", "yes" if _appears(token) else "no")) if seen == "no"]
    if first():
        files.remove(token)
        if blind and not existed and not files.glob(directory):
            files.remove(directory)
    if blind:
        fix = "it must be a folder that all hosts share, such as NFS or a mounted bucket"
        raise ConfigError(
            "--workdir", f"process {', '.join(blind)} does not see what process 0 writes to {directory}; {fix}"
        )


def _appears(path: Path, seconds: float = 5.0) -> bool:
    """Whether the file is there, soon: network file systems may remember for seconds that it was not."""
    end = time.monotonic() + seconds
    while path not in files.glob(path.parent):
        if time.monotonic() > end:
            return False
        time.sleep(0.1)
    return True
