"""Which cores of a CPU does a run compute with? The last bits of its loss depend on how many, so a study plans it.

XLA cuts sums into as many parts as its CPU client has threads: one for each core that the process may use, unless
`PJRT_NPROC` says how many. So that number, set before JAX looks for devices, decides the bits; the cores that a process
is bound to decide only how fast it is. So with jax 0.10.2; with 0.12.0.1 one thread and two round alike. No JAX in this
module.
"""

from __future__ import annotations

import contextlib
import importlib.util
import math
import os
import pathlib
from collections.abc import Mapping, Sequence

from chinchilla_jax.config import RunConfig
from chinchilla_jax.parallel.job.hosts import is_cloud_tpu

# The order in which XLA reads them (xla/pjrt/utils.cc, DefaultThreadPoolSize).
_THREADS = ("PJRT_NPROC", "NPROC")
# What a worker of the `cpu` study needs at most: 0.7 GB, mostly while XLA compiles.
_WORKER_BYTES = 1e9


def available() -> list[int]:
    """Numbers of the cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def on_cpu(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether JAX will compute on the CPU: `JAX_PLATFORMS` says so, or there is no accelerator that it could use."""
    platforms = environment.get("JAX_PLATFORMS") or environment.get("JAX_PLATFORM_NAME")
    if platforms:
        return platforms.split(",")[0] == "cpu"
    tpu = importlib.util.find_spec("libtpu") is not None and is_cloud_tpu()
    dev = pathlib.Path("/dev")
    gpu = importlib.util.find_spec("jax_plugins") is not None and any([*dev.glob("nvidia[0-9]*"), *dev.glob("kfd")])
    return not (tpu or gpu)


def of_study(config: RunConfig) -> int:
    """Cores of each run of the study `config`; where a mesh pretends that a CPU is several devices, one each."""
    return max(config.study_section.cores, config.mesh.size)


def share(worker: int, cores: int, among: Sequence[int]) -> list[int]:
    """The cores of worker `worker`, `cores` of them: its own where there are enough, else in turn with others."""
    return sorted({among[(worker * cores + i) % len(among)] for i in range(cores)})


def use(cores: int, worker: int = 0) -> None:
    """Has this process compute with `cores` threads, on that many cores. Call it before JAX looks for devices.

    Where there are fewer cores the threads take turns: slower, and the same to the bit. Each `worker` of this machine
    takes the cores after those of the one before.
    """
    os.environ[_THREADS[0]] = str(cores)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, share(worker, cores, available()))


def in_use(devices: int = 1) -> int:
    """Threads that XLA's CPU client computes with in this process: at least one for each of its devices."""
    for name in _THREADS:
        with contextlib.suppress(KeyError, ValueError):
            return max(int(os.environ[name]), devices)
    return max(len(available()), devices)


def default_workers(config: RunConfig) -> int:
    """Runs of the study `config` to train at the same time: as many as have cores and memory; 2 on accelerators."""
    if not on_cpu():
        return 2
    by_cores = min(len(available()), _quota()) / of_study(config)
    return max(1, math.floor(min(by_cores, _free_memory() / _WORKER_BYTES)))  # either may be unknown, and infinite


def _quota() -> float:
    """Cores' worth of time that a container may use, inf without a limit."""
    with contextlib.suppress(OSError, ValueError):  # no container, or `max`
        quota, period = pathlib.Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return int(quota) / int(period)
    return math.inf


def _free_memory() -> float:
    """Bytes that new processes can have, inf if unknown."""
    free, group = math.inf, pathlib.Path("/sys/fs/cgroup")
    with contextlib.suppress(OSError, ValueError, IndexError):
        words = pathlib.Path("/proc/meminfo").read_text().split("MemAvailable:")[1].split()
        free = 1024.0 * int(words[0])
    with contextlib.suppress(OSError, ValueError):  # no container, or `max`
        free = min(free, int((group / "memory.max").read_text()) - int((group / "memory.current").read_text()))
    return free
