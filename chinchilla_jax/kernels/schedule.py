"""Which tiles of the score matrix have to be visited, and how is each of them masked?

The S x T scores are cut into tiles, `block_q` queries by `block_kv` keys. A tile no query of which sees a key is never
visited: nothing of it is multiplied. The rest are listed, for each block of queries its blocks of keys, and every entry
says what kind of tile it is:

    whole      every query sees every key: no mask
    delta d    the first query stands d positions after the first key. The mask then is known before running, and of
               the tile on the diagonal only the lower half is computed.
    masked     the mask is computed: documents that meet inside the tile, an offset known only at run time, the end of
               the keys

The lists are read by the kernels from scalar memory. They are constants unless they depend on data.
"""

from __future__ import annotations

import dataclasses
from types import ModuleType
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

WHOLE, MASKED = "whole", "masked"
Ids: TypeAlias = jax.Array | np.ndarray | None
Kind = str | int  # WHOLE, MASKED, or the delta of a tile
KIND_BITS = 3
KINDS = 1 << KIND_BITS  # an entry is block * KINDS + index of its kind
MAX_DELTAS = 4  # each is code of its own in the kernels; what is rarer is masked


@dataclasses.dataclass(frozen=True)
class Grid:
    """The score matrix of one call and how it is cut."""

    queries: int  # S, without padding
    keys: int  # T
    padded_queries: int  # with padding; multiples of the sides of a tile
    padded_keys: int
    block_q: int  # sides of a tile
    block_kv: int
    q_offset: int | None  # position of the first query; None if it is only known at run time
    window: int | None  # keys a query sees at most
    segments: bool  # whether attention stays inside documents

    @property
    def blocks_q(self) -> int:
        """Blocks of queries."""
        return self.padded_queries // self.block_q

    @property
    def blocks_kv(self) -> int:
        """Blocks of keys."""
        return self.padded_keys // self.block_kv

    @property
    def padding_is_hidden(self) -> bool:
        """Whether no query stands after the last key, so that causality alone hides the padded keys."""
        return self.q_offset is not None and self.q_offset + self.queries <= self.keys


def _positions(grid: Grid, q_offset: int | jax.Array, xp: ModuleType) -> tuple:
    """Of every tile, `[blocks_q, blocks_kv]` each: delta, whether some query sees a key, whether all see all."""
    first_q = xp.arange(grid.blocks_q)[:, None] * grid.block_q
    first_kv = xp.arange(grid.blocks_kv)[None, :] * grid.block_kv
    last_q = xp.minimum(first_q + grid.block_q, grid.queries) - 1
    last_kv = xp.minimum(first_kv + grid.block_kv, grid.keys) - 1
    delta = q_offset + first_q - first_kv
    farthest = q_offset + last_q - first_kv
    visible = (farthest >= 0) & (first_q < grid.queries) & (first_kv < grid.keys)
    whole = (delta - (grid.block_kv - 1) >= 0) & (first_kv + grid.block_kv <= grid.keys)
    if grid.window is not None:
        visible &= q_offset + first_q - last_kv < grid.window
        whole &= farthest < grid.window
    return delta, visible, whole


def _maskable_by_position(grid: Grid) -> np.ndarray:
    """Blocks of keys, `[blocks_kv]`, for whose mask the distances of keys suffice: no padded key among them shows."""
    ends = (np.arange(grid.blocks_kv) + 1) * grid.block_kv
    return (ends <= grid.keys) | grid.padding_is_hidden


def tile_kinds(grid: Grid) -> tuple[Kind, ...]:
    """The kinds of tile a call can have, at most `KINDS`: the kernels hold code for these and no others."""
    if grid.q_offset is None:
        return (WHOLE, MASKED)
    delta, visible, whole = _positions(grid, grid.q_offset, np)
    partial = visible & ~whole
    partial &= _maskable_by_position(grid)
    deltas, counts = np.unique(delta[partial], return_counts=True)
    kept = sorted(int(d) for d in deltas[np.argsort(-counts, kind="stable")[:MAX_DELTAS]])
    masked = grid.segments or len(deltas) > len(kept) or bool((visible & ~whole & ~partial).any())
    return ((WHOLE,) if (visible & whole).any() else ()) + tuple(kept) + ((MASKED,) if masked else ())


def schedule(
    grid: Grid, kinds: tuple[Kind, ...], q_offset: int | jax.Array, q_ids_BxS: Ids = None, ids_BxT: Ids = None
) -> tuple[jax.Array, jax.Array]:
    """The tiles to visit.

    Args:
      kinds: of `tile_kinds`.
      q_offset: int, or an int32 scalar array where `grid.q_offset` is None.
      q_ids_BxS, ids_BxT: int32, if `grid.segments`. NumPy arrays give constants.

    Returns:
      entries `[R, blocks_q, blocks_kv]`, of which the first counts `[R, blocks_q]` are meant, in the order of the keys;
      int32, and R is B if they depend on the segments, else 1.
    """
    static = grid.q_offset is not None and not isinstance(ids_BxT, jax.Array)
    xp = np if static and not isinstance(q_ids_BxS, jax.Array) else jnp
    delta, visible, whole = (x[None] for x in _positions(grid, q_offset, xp))
    one_document = True
    if grid.segments:
        first_q, last_q = _extremes(q_ids_BxS, grid.block_q, grid.blocks_q, xp)
        first_kv, last_kv = _extremes(ids_BxT, grid.block_kv, grid.blocks_kv, xp)
        visible = visible & (first_q[:, :, None] <= last_kv[:, None, :]) & (first_kv[:, None, :] <= last_q[:, :, None])
        one_document = (first_q == last_q)[:, :, None] & (first_kv == last_kv)[:, None, :]
    code = xp.full(visible.shape, len(kinds) - 1)
    for number, kind in enumerate(kinds):
        if kind == WHOLE:
            code = xp.where(whole & one_document, number, code)
        elif kind != MASKED:
            code = xp.where((delta == kind) & ~whole & one_document & _maskable_by_position(grid), number, code)
    order = xp.argsort(~visible, axis=-1, stable=True)  # the visible ones first
    entries = order * KINDS + xp.take_along_axis(code, order, axis=-1)
    return entries.astype(xp.int32), visible.sum(-1).astype(xp.int32)


def _extremes(ids: jax.Array, block: int, blocks: int, xp: ModuleType) -> tuple:
    """Least and greatest id of every block, `[B, blocks]`."""
    padded = xp.pad(ids, [(0, 0), (0, blocks * block - ids.shape[1])], mode="edge").reshape(len(ids), blocks, block)
    return padded.min(-1), padded.max(-1)
