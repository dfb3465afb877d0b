"""Whose run is it? A worker's claim on a run: a file in the run's folder, held while the worker trains it.

Only one of several workers can make the file. It says who holds it: host, process, when that started, worker; its
modification time is a heartbeat. A holder on this host is alive exactly if its process is (a laptop that slept does not
lose its runs). A holder on another host is taken for dead when its heartbeat stops. A dead worker's lease is taken over
under a lock of the study, otherwise two workers could each remove the other's new claim. A bucket has no locks: a
claim, a heartbeat and a release each name the version of the file that they replace, and fail if it is another by now.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pathlib
import signal
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

from chinchilla_jax.base import files

LEASE = "lease.json"
STALE_SECONDS = 120.0
HEARTBEAT_SECONDS = 5.0


class Lease:
    """A claim that is held, until `release`. `version` is that of its file, in a bucket."""

    def __init__(self, path: pathlib.Path, holder: dict[str, Any], version: int | None = None):
        self.path, self.holder, self._version = path, holder, version
        self._stop, self._renewing = threading.Event(), threading.Lock()
        self._heartbeat: threading.Thread | None = None
        self._before_waking: Any = None

    def keep(self, lost: Callable[[], None], interval: float = HEARTBEAT_SECONDS) -> None:
        """Renews from a thread every `interval` seconds; that calls `lost`, once, if the lease is another's by then, or
        could be: without an answer from storage nobody knows. A process that was stopped asks as soon as it goes on,
        before it does anything else.
        """

        def on_waking(*_: Any) -> None:
            with contextlib.suppress(OSError):  # the thread asks again
                if not self._stop.is_set() and not self.renew():
                    lost()

        if threading.current_thread() is threading.main_thread():
            self._before_waking = signal.signal(signal.SIGCONT, on_waking)

        def beat() -> None:
            renewed = time.monotonic()
            while not self._stop.wait(interval):
                try:
                    if not self.renew():
                        break
                    renewed = time.monotonic()
                except OSError:
                    if time.monotonic() - renewed > STALE_SECONDS / 2:
                        break
            if not self._stop.is_set():
                lost()

        self._heartbeat = threading.Thread(target=beat, name="lease", daemon=True)
        self._heartbeat.start()

    def renew(self) -> bool:
        """A heartbeat; False if the lease is another's. Raises OSError where storage does not answer."""
        if self._version is None:
            if owner(self.path) != self.holder:
                return False
            files.touch(self.path)
            return True
        with self._renewing:  # of two at once one would take the other's version for another worker's
            renewed = files.replace_version(self.path, json.dumps(self.holder), self._version)
            self._version = renewed or self._version
        return renewed is not None

    def release(self) -> None:
        """Gives the run free. Another's lease is left alone."""
        self._stop.set()
        if self._before_waking is not None:
            signal.signal(signal.SIGCONT, self._before_waking)
        if self._heartbeat is not None:
            self._heartbeat.join()
        if self._version is not None:
            if files.version(self.path) == self._version:  # emulated services do not check it on removal
                files.remove_version(self.path, self._version)
        elif owner(self.path) == self.holder:
            files.remove(self.path)


def claim(run_folder: pathlib.Path, study: pathlib.Path, worker: str) -> Lease | None:
    """The lease of `run_folder`, or None if a living worker has it. A dead one's is taken over."""
    path = run_folder / LEASE
    process = {"host": _host(), "pid": os.getpid(), "process_start": _started(os.getpid())}
    holder = process | {"worker": worker, "since": time.strftime("%Y-%m-%d %H:%M:%S")}
    if files.in_bucket(path):
        before = files.version(path)
        if before and alive(path):
            return None
        version = files.replace_version(path, json.dumps(holder), before)
        return None if version is None else Lease(path, holder, version)
    with open(study / "leases.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # until the file is closed
        if files.exists(path):
            if alive(path):
                return None
            files.remove(path)
        # The lock may not reach other hosts, so this can still fail.
        return Lease(path, holder) if files.create(path, json.dumps(holder)) else None


def owner(path: pathlib.Path) -> dict[str, Any] | None:
    """Who holds the lease file `path`: {} while it is being written, None if there is none."""
    try:
        holder = files.read_json(path)
    except FileNotFoundError:
        return None
    except ValueError:
        return {}
    return holder if isinstance(holder, dict) else {}


def alive(path: pathlib.Path) -> bool:
    """Whether somebody who still lives holds the lease file `path`."""
    holder = owner(path)
    if holder is None:
        return False
    if holder.get("host") == _host() and isinstance(holder.get("pid"), int):
        return holder.get("process_start") == _started(holder["pid"]) is not None
    try:
        return time.time() - files.stamp(path)[1] / 1e9 < STALE_SECONDS
    except FileNotFoundError:
        return False


def _host() -> str:
    """This start of this machine, and its process numbers: machines made from one image may share a name, containers of
    a machine too, but not those.
    """
    parts = [socket.gethostname()]
    with contextlib.suppress(OSError):
        parts.append(pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip())
    with contextlib.suppress(OSError):
        parts.append(os.readlink("/proc/self/ns/pid"))
    return " ".join(parts)


def _started(pid: int) -> str | None:
    """When the process `pid` started, in whatever units the system has; None if it is not running."""
    try:
        fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if fields[0] in "ZX" else fields[19]
    except OSError:
        if os.path.exists("/proc/self/stat"):
            return None
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    return "unknown"
