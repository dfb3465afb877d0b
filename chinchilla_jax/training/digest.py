"""Are these the numbers that were saved? A digest of every array, whatever devices it is spread over.

Of each number its bits and its place are mixed, one to one, into 32 bits, and these are added up (mod 2^32). One number
that differs changes the sum for certain; that several do and the sum does not happens once in 2^32 times. Every device
adds up its own part, so the mesh changes nothing. What it costs: `python -m tests.benchmarks.digests`.
"""

from __future__ import annotations

import concurrent.futures
import hashlib
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from chinchilla_jax.parallel.job import cores

_BITS, _PLACE, _LAST = 0x9E3779B1, 0x85EBCA77, 0xC2B2AE3D  # odd: to multiply by them loses no bit
_PIECE = 2**15


def digests_of(tree: Any) -> dict[str, int]:
    """The digest of each array of a tree, by its path. Of several processes all have to call it."""
    named = {jax.tree_util.keystr(path): x for path, x in jax.tree_util.tree_leaves_with_path(tree)}
    if jax.default_backend() == "cpu" and all(x.is_fully_addressable for x in named.values()):
        # Where they lie and with nothing to compile; NumPy leaves the other threads the interpreter.
        with concurrent.futures.ThreadPoolExecutor(cores.in_use(1)) as threads:
            sums: Any = threads.map(_on_host, named.values())
            return dict(zip(named, sums, strict=True))
    return {name: int(total) for name, total in _on_devices(named).items()}


def _on_host(x: jax.Array) -> int:
    """`_on_devices` of one array, in pieces that stay in a core's cache."""
    numbers = np.ascontiguousarray(np.asarray(x)).reshape(-1)
    bits = numbers.view(f"u{numbers.dtype.itemsize}")
    places, total = np.arange(min(_PIECE, bits.size), dtype=np.uint32) * np.uint32(_PLACE), 0
    for first in range(0, bits.size, _PIECE):
        mixed = bits[first : first + _PIECE].astype(np.uint32)
        mixed *= np.uint32(_BITS)
        mixed ^= mixed >> 16
        mixed += places[: mixed.size]
        mixed += np.uint32(first * _PLACE % 2**32)
        mixed *= np.uint32(_LAST)
        mixed ^= mixed >> 15
        total += int(mixed.sum(dtype=np.uint64))
    return total % 2**32


@jax.jit
def _on_devices(named: dict[str, jax.Array]) -> dict[str, jax.Array]:
    return jax.tree.map(_sum, named)


def _sum(x: jax.Array) -> jax.Array:
    x = x.astype(jnp.uint8) if x.dtype == jnp.bool_ else x
    bits = jax.lax.bitcast_convert_type(x, jnp.dtype(f"u{x.dtype.itemsize}")).astype(jnp.uint32)
    place, stride = jnp.zeros_like(bits), 1
    for axis in reversed(range(x.ndim)):
        place += jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis) * jnp.uint32(stride % 2**32)
        stride *= x.shape[axis]
    mixed = bits * jnp.uint32(_BITS)
    mixed = (mixed ^ (mixed >> 16)) + place * jnp.uint32(_PLACE)
    mixed = mixed * jnp.uint32(_LAST)
    return jnp.sum(mixed ^ (mixed >> 15), dtype=jnp.uint32)


def difference(saved: dict[str, int], found: dict[str, int]) -> str:
    """The arrays that are not what was saved, in words; empty if all are."""
    wrong = sorted(name for name in saved.keys() & found.keys() if saved[name] != found[name])
    more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
    return f"{wrong[0]}{more} is not what was saved: its digest differs" if wrong else ""


def digest_of_json(value: Any) -> str:
    """The SHA-256 of a JSON value, hexadecimal, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
