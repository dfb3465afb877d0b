"""The machine under a run: its peak FLOP/s, and how its allocator treats large buffers."""

from __future__ import annotations

import ctypes
import functools
import os
import time

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from chinchilla_jax.base.chips import device_peak
from chinchilla_jax.base.config_values import ConfigError
from chinchilla_jax.parallel.job import cores


def peak_flops(mesh: Mesh) -> tuple[float, str]:
    """Peak FLOP/s of a mesh's devices together, those of other processes included, and what that is.

    A CPU has no agreed peak: there it is the best of a few float32 matrix products, measured once, times the processes
    in the mesh, since a process's CPU devices share its cores. That processes on one machine share them too is ignored.
    """
    kind = mesh.devices.flat[0].device_kind
    published = device_peak(kind)
    if published is not None:
        return published * mesh.devices.size, f"{kind} bfloat16, published"
    processes = {device.process_index for device in mesh.devices.flat}
    return _measured_peak() * len(processes), "float32 matrix product, measured"


def check_memory(parameters: int) -> None:
    """Refuses, by a `ConfigError`, what this machine's memory cannot hold; that of accelerators their compiler knows.

    Weights, two moments and a gradient, each float32, are there at once, in one process at least.
    """
    if jax.default_backend() != "cpu" or jax.process_count() > 1:
        return
    needed, there = 16 * parameters, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > there:
        told = f"{parameters:,} parameters need {needed / 1e9:,.1f} GB to train, and this machine has {there / 1e9:.1f}"
        raise ConfigError("model", f"{told}: choose a smaller model, or another machine")


def cpu_cores() -> int | None:
    """Threads that this process computes with, on which the last bits of a loss depend; None with accelerators."""
    return cores.in_use(jax.local_device_count()) if jax.default_backend() == "cpu" else None


@functools.cache
def _measured_peak() -> float:
    return matmul_flops(seconds=0.25)  # other programs may run for a part of it


def matmul_flops(size: int = 1024, seconds: float = 0.05) -> float:
    """Best FLOP/s of a `size` x `size` float32 product on the default device within about `seconds`."""
    a = jnp.ones((size, size), jnp.float32)
    product = jax.jit(lambda a: a @ a)
    product(a).block_until_ready()
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        product(a).block_until_ready()
        best = min(best, time.perf_counter() - start)
    return 2.0 * size**3 / best


def keep_freed_memory() -> None:
    """Tells glibc's allocator to keep large freed buffers instead of returning them to the kernel.

    A CPU step allocates its temporaries anew each time, and by default every page of them is mapped, zeroed and
    unmapped again. Does nothing on other C libraries.
    """
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return
    for m_option, value in ((-4, 0), (-1, 2**31 - 1), (-2, 64 * 2**20)):  # M_MMAP_MAX, M_TRIM_THRESHOLD, M_TOP_PAD
        mallopt(m_option, value)
