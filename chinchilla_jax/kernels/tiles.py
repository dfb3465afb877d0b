"""How large are the tiles of the fused kernel?

The measured orders of `tables/attention_tiles.json` say: per TPU generation, direction, with or without a relative term
and head size, the fastest first. The first that fits the memory of the chip and the sequence is taken. What was not
measured, as rows of several documents, has tiles of 512.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.resources
import json
import math

from chinchilla_jax.base.chips import CHIPS, MIB, kernel_chips
from chinchilla_jax.kernels.call import AttentionError

LANES = 128  # of a vector register
DEFAULT_LIMIT = 16 * MIB
SCALAR_LIMIT = int(0.9 * MIB)  # bytes that the tables of tiles may take of scalar memory, 1 MiB on every generation
OTHER = 3 * MIB // 8  # of a kernel, besides tiles, blocks and sums, at most


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
    keys: int,
    size: int,
    distances: int,
    itemsize: int,
    turned: bool = False,
    shared: bool = True,
    masked: bool = True,
    capped: bool = True,
) -> int:
    """Vector memory of a kernel, bytes: blocks twice (one is fetched while the other is used), sums, tiles.

    Meant as an upper bound; its constants are from what the compiler used for some 200 kernels, with and without each
    feature.

    Args:
      keys: of the call, padded.
      size: head size, padded to 128.
      distances: rows of e, 0 without a relative term.
      itemsize: bytes of an element, 2 for bfloat16.
      turned: whether keys are kept rotated, and the tables for it.
      shared: whether several heads read the same keys.
      masked: whether there are tiles whose mask is computed, `schedule.MASKED`.
      capped: whether there is a soft cap.
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


def limit(generation: str) -> int:
    """Bytes of vector memory that a kernel may plan with.

    Raises:
      AttentionError: the generation is not known here.
    """
    known = kernel_chips()
    if generation not in known:
        raise AttentionError(
            "implementation",
            f'the fused kernel has no tiles for {generation!r}; known: {", ".join(known)}; use "blockwise"',
        )
    return int(0.98 * known[generation].core.vmem)  # the compiler needs some of it for itself


def compiler_limit(generation: str | None, estimate: int) -> int | None:
    """What the compiler may use for a kernel of this estimate: no more than needed, the rest is for its neighbours."""
    if generation is None:
        return None
    return min(CHIPS[generation].core.vmem, max(DEFAULT_LIMIT, int(1.3 * estimate)))


def ranked(generation: str, *, backward: bool, relative: bool, size: int, documents: bool = False) -> list[Tiles]:
    """The best measured tiles in their order, and at the end smaller ones for what they do not fit.

    Args:
      documents: whether rows hold several. A tile where one ends is computed whole, so that large tiles lose more than
        they gain.
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
