"""Which TPU generation is a kernel compiled for, and how large are its tiles there?

Tiles and two instructions differ between generations, and a kernel has to know while it is traced. On a TPU the devices
say so. Where a program is compiled ahead of time, on a machine without one, `compile_for` says it.

The measured orders of `tables/attention_tiles.json` say: per TPU generation, direction, with or without a relative term
and head size, the fastest first. The first that fits the memory of the chip and the sequence is taken. What was not
measured, as rows of several documents, has tiles of 512.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib.resources
import json
import math
import re
from collections.abc import Iterator

import jax

from chinchilla_jax.base.chips import CHIPS, MIB, Core, chip_of, kernel_chips
from chinchilla_jax.kernels.call import AttentionError

LANES = 128  # of a vector register
DEFAULT_LIMIT = 16 * MIB
SCALAR_LIMIT = int(0.9 * MIB)  # bytes that the tables of tiles may take of scalar memory, 1 MiB on every generation
OTHER = 3 * MIB // 8  # of a kernel, besides tiles, blocks and sums, at most
# Part of the key of JAX's caches: what was traced for one generation is not used for another.
_compile_for = jax.make_user_context(default_value=None)


@contextlib.contextmanager
def compile_for(device_kind: str) -> Iterator[None]:
    """Kernels traced inside are for devices of this kind, whatever this machine has.

    A kind is what devices say (`device.device_kind`), or the short name of a generation, `v5e`. One that is not in the
    table of chips is an `AttentionError`.
    """
    known = kernel_chips()
    if re.fullmatch(r"v\d\w*", device_kind) and device_kind not in known:
        one_of = f"one of {', '.join(sorted(known))}"
        raise AttentionError("device_kind", f"{device_kind!r} is no TPU generation known here; {one_of}")
    with _compile_for(device_kind):
        yield


def tpu_generation() -> str | None:
    """The TPU generation that is compiled for, `v4`, `v5e`, `v5p`, `v6e` or `v7x`; None if it is not a TPU.

    Asks `compile_for` first, then the mesh in use, then the default device. A kind of TPU that is not in the table
    keeps the name its devices have, so that whoever looks up its block sizes can say what is missing.
    """
    kind = _compile_for.value
    if kind is None:
        device = jax.sharding.get_abstract_mesh().abstract_device
        kind = device.device_kind if device is not None else jax.devices()[0].device_kind
    chip = CHIPS.get(kind) or chip_of(kind)
    if chip is not None and chip.core is not None:
        return chip.name
    return kind if kind.startswith("TPU") else None


def whole_lanes(n: int) -> int:
    """The least multiple of 128 that is not below n."""
    return -(-n // LANES) * LANES


@dataclasses.dataclass(frozen=True)
class Tiles:
    """Sides of a tile in queries and keys, and the queries of a strip on the diagonal; multiples of 128."""

    block_q: int
    block_kv: int
    strip: int = 128

    def shrunk(self, queries: int, keys: int) -> Tiles:
        """Tiles that waste less on short sequences: padding stays under an eighth where 128 allows it."""
        block_q, block_kv = _shrink(self.block_q, queries), _shrink(self.block_kv, keys)
        return Tiles(block_q, block_kv, math.gcd(self.strip, block_q))


def _shrink(block: int, length: int) -> int:
    while block > LANES and -(-length // block) * block > max(1.125 * length, whole_lanes(length)):
        block = max(LANES, block // 2 // LANES * LANES)
    return block


SMALLEST = Tiles(LANES, LANES)


def vmem_bytes(
    tiles: Tiles,
    *,
    backward: bool,
    keys: int,  # of the call, padded
    size: int,  # of a head, padded to 128
    distances: int,  # rows of e, 0 without a relative term
    itemsize: int,  # bytes of an element, 2 for bfloat16
    turned: bool = False,  # whether keys are kept rotated, and the tables for it
    shared: bool = True,  # whether several heads read the same keys
    masked: bool = True,  # whether there are tiles whose mask is computed, `schedule.MASKED`
    capped: bool = True,  # whether there is a soft cap
) -> int:
    """Vector memory of a kernel, bytes: blocks twice (one is fetched while the other is used), sums, tiles.

    Meant as an upper bound; its constants are from what the compiler used for some 200 kernels, with and without each
    feature.
    """
    block, relative = tiles.block_q * size, distances > 0
    rows = (2 + masked) * tiles.block_q * LANES * 4
    alive = 2 + relative  # float32 tiles at a time, at most
    if itemsize == 4:  # products of full precision take several passes
        alive += 4 if backward else 1
    elif backward:
        alive += min(masked + capped, 2 - relative)
    temporaries = OTHER + alive * tiles.block_q * tiles.block_kv * 4
    whole = 2 * itemsize * size * (2 * keys + distances)  # k, v and e
    if turned:
        whole += size * (keys * (itemsize + 2 * 4) + 2 * 2 * 4 * tiles.block_q)
    if not backward:
        return whole + (2 * 2 + 1 + relative) * itemsize * block + 4 * block + rows + temporaries
    written = 4 if relative and shared else itemsize  # a part of dk and dv from each head, to be summed outside
    sums = 4 * size * (2 * keys + 2 * distances) + 2 * written * size * 2 * keys  # dk, dv; de is its own result
    kept = (3 + 2 * relative) * itemsize * block + (1 + relative) * 4 * block + rows
    return whole + sums + kept + 2 * 4 * itemsize * block + temporaries


def core_of(generation: str) -> Core:
    """What a core of this generation can do; raises `AttentionError` if the generation is not known here."""
    chip = CHIPS.get(generation)
    if chip is None or chip.core is None:
        why = f"the fused kernel has no tiles for {generation!r}; known: {', '.join(kernel_chips())}"
        raise AttentionError("implementation", f'{why}; use "blockwise"')
    return chip.core


def limit(generation: str) -> int:
    """Bytes of vector memory that a kernel may plan with: the compiler needs some of it for itself."""
    return int(0.98 * core_of(generation).vmem)


def compiler_limit(generation: str | None, estimate: int) -> int | None:
    """What the compiler may use for a kernel of this estimate: no more than needed, the rest is for its neighbours."""
    if generation is None:
        return None
    return min(core_of(generation).vmem, max(DEFAULT_LIMIT, int(1.3 * estimate)))


def ranked(generation: str, *, backward: bool, relative: bool, size: int, documents: bool = False) -> list[Tiles]:
    """The best measured tiles in their order, and at the end smaller ones for what they do not fit.

    Where rows hold several documents, a tile in which one ends is computed whole: large ones lose more than they gain.
    """
    if documents:
        return [Tiles(512, 512)]
    key = table_key(generation, backward=backward, relative=relative, size=size)
    return [*_table().get(key, []), Tiles(512, 512)]


def table_key(generation: str, *, backward: bool, relative: bool, size: int) -> str:
    """The name of an order in the table; size is that of a head, padded to 128."""
    return f"{generation} {'relative' if relative else 'plain'} {'backward' if backward else 'forward'} {size}"


@functools.cache
def _table() -> dict[str, list[Tiles]]:
    text = (importlib.resources.files("chinchilla_jax") / "tables" / "attention_tiles.json").read_text()
    return {key: [Tiles(*row[:3]) for row in rows] for key, rows in json.loads(text)["tiles"].items()}
