"""Whose run is it? A worker's claim on a run: a file in the run's folder, held while the worker trains it.

The file is made with O_EXCL, so of two workers one gets it. It names host, process and the process's start, and its
modification time is a heartbeat. A holder on this host is alive exactly if its process is (a laptop that slept does not
lose its runs); a holder elsewhere is taken for dead when its heartbeat stops. Taking over from the dead is done under a
lock of the study, otherwise two takers could each remove the other's fresh claim.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pathlib
import socket
import threading
import time
from collections.abc import Callable, Iterator

LEASE = "lease.json"
STALE_SECONDS = 120.0
HEARTBEAT_SECONDS = 5.0


def _host() -> str:
    """This machine, and its process numbers: containers may share a host name, but not those."""
    try:
        space = os.readlink("/proc/self/ns/pid")
    except OSError:
        space = ""
    return f"{socket.gethostname()} {space}".strip()


def _started(pid: int) -> str | None:
    """When the process `pid` started, in whatever units the system has; None if it is not running."""
    try:
        fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if fields[0] in "ZX" else fields[19]
    except OSError:
        pass
    if pathlib.Path("/proc/self/stat").exists():
        return None
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    return "unknown"


class Lease:
    """A claim that is held. Leave it with `release`."""

    def __init__(self, path: pathlib.Path, owner: dict):
        self.path, self.owner = path, owner
        self._stop = threading.Event()
        self._beat: threading.Thread | None = None

    def keep(self, lost: Callable[[], None], interval: float = HEARTBEAT_SECONDS) -> None:
        """Starts the heartbeat; `lost` is called once, from its thread, should the lease no longer be ours."""

        def beat():
            while not self._stop.wait(interval):
                if read(self.path) != self.owner:
                    if not self._stop.is_set():
                        lost()
                    return
                with contextlib.suppress(OSError):
                    os.utime(self.path)

        self._beat = threading.Thread(target=beat, name="lease", daemon=True)
        self._beat.start()

    def release(self) -> None:
        """Gives the run free."""
        self._stop.set()
        if self._beat is not None:
            self._beat.join()
        if read(self.path) == self.owner:
            self.path.unlink(missing_ok=True)


def read(path: pathlib.Path) -> dict | None:
    """Who holds the lease file `path`: {} while it is being written, None if there is none."""
    try:
        return json.loads(path.read_text(encoding="utf-8") or "{}")
    except FileNotFoundError:
        return None
    except ValueError:
        return {}


def alive(path: pathlib.Path) -> bool:
    """Whether somebody who still lives holds the lease file `path`."""
    owner = read(path)
    if owner is None:
        return False
    if owner.get("host") == _host():
        started = _started(owner["pid"])
        return started is not None and started == owner.get("process_start")
    try:
        return time.time() - path.stat().st_mtime < STALE_SECONDS
    except FileNotFoundError:
        return False


def claim(run_folder: pathlib.Path, study: pathlib.Path, worker: str) -> Lease | None:
    """The lease of `run_folder`, or None if a living worker has it. A dead one's is taken over."""
    path = run_folder / LEASE
    run_folder.mkdir(parents=True, exist_ok=True)
    owner = {"host": _host(), "pid": os.getpid(), "process_start": _started(os.getpid()), "worker": worker,
             "since": time.strftime("%Y-%m-%d %H:%M:%S")}  # fmt: skip
    with _locked(study / "leases.lock"):
        if path.exists():
            if alive(path):
                return None
            path.unlink()
        try:
            handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
        except FileExistsError:  # a file system whose locks do not reach other hosts
            return None
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(json.dumps(owner))
    return Lease(path, owner)


@contextlib.contextmanager
def _locked(path: pathlib.Path) -> Iterator[None]:
    with open(path, "w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
