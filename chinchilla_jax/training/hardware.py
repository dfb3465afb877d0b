"""The machine under a run: its peak FLOP/s, and how its allocator treats large buffers."""

from __future__ import annotations

import ctypes
import functools
import sys
import time

import jax
import jax.numpy as jnp

from chinchilla_jax.chips import device_peak


@functools.cache
def peak_flops() -> tuple[float, str]:
    """Peak FLOP/s of this process's devices together, and what that is.

    A CPU has no agreed peak: there it is the best of a few float32 matrix products, measured once.
    """
    device = jax.local_devices()[0]
    published = device_peak(device.device_kind)
    if published is not None:
        return published * jax.local_device_count(), f"{device.device_kind} bfloat16, published"
    return matmul_flops(), "float32 matrix product, measured"


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
    if not sys.platform.startswith("linux"):
        return
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return
    m_trim_threshold, m_top_pad, m_mmap_max = -1, -2, -4
    mallopt(m_mmap_max, 0)
    mallopt(m_trim_threshold, 2**31 - 1)
    mallopt(m_top_pad, 64 * 2**20)
