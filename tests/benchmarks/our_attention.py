"""What does our fused attention compile to? Builders of the same programs as those of the public kernels.

As in `public_attention`: bf16, batch 1, causal, FLOPs of the unmasked half; queries [1, seq, heads, head_dim]. The
kernels are told apart by their names, `attention_forward...` and `attention_backward...`.
"""

import dataclasses
from contextlib import AbstractContextManager
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from chinchilla_jax.kernels.attention import attention, turn
from chinchilla_jax.kernels.tiles import compile_for
from chinchilla_jax.model.positions import rotary
from chinchilla_jax.model.transformer import REMAT
from tests.benchmarks.public_attention import program, useful_flops

DOCUMENT = 512  # tokens: four documents in a row of 2048


def _segment_ids(seq: int) -> np.ndarray:
    return (np.arange(seq, dtype=np.int32) // DOCUMENT)[None]


def _fused(q, k, v, r=None, u=None, w=None, segment_ids=None):
    return attention(q, k, v, r_NxHxK=r, content_bias_HxK=u, position_bias_HxK=w, segment_ids_BxT=segment_ids,
                     implementation="fused")  # fmt: skip


def _tokens(seq: int, head_dim: int, heads: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((1, seq, heads, head_dim), jnp.bfloat16)


def plain(seq: int, head_dim: int, heads: int, gradients: bool = True) -> dict:
    """Queries, keys, values."""
    shapes = (_tokens(seq, head_dim, heads),) * 3
    return program(_fused, shapes, useful_flops(seq, head_dim, heads, gradients), gradients)


def relative(seq: int, head_dim: int, heads: int, gradients: bool = True) -> dict:
    """And Transformer-XL's r of `seq` rows, u and w, with their gradients. FLOPs are those of `plain`."""
    r = jax.ShapeDtypeStruct((seq, heads, head_dim), jnp.bfloat16)
    bias = jax.ShapeDtypeStruct((heads, head_dim), jnp.bfloat16)
    shapes = (*(_tokens(seq, head_dim, heads),) * 3, r, bias, bias)
    return program(_fused, shapes, useful_flops(seq, head_dim, heads, gradients), gradients)


def unaligned(seq: int, head_dim: int, heads: int, gradients: bool = True) -> dict:
    """`packed`, but documents end 200 tokens after the borders of tiles: many tiles hold the end of one."""
    segment_ids = np.pad(_segment_ids(seq), [(0, 0), (200, 0)], mode="edge")[:, :seq]

    def attend(q, k, v):
        return _fused(q, k, v, segment_ids=segment_ids)

    flops = useful_flops(DOCUMENT, head_dim, heads, gradients) * (seq // DOCUMENT)
    return program(attend, (_tokens(seq, head_dim, heads),) * 3, flops, gradients)


def recomputed(seq: int, head_dim: int, heads: int, gradients: bool = True) -> dict:
    """`plain` in a layer of which only the input is kept: `train.remat=full`."""
    return _rematerialised("full", seq, head_dim, heads, gradients)


def kept(seq: int, head_dim: int, heads: int, gradients: bool = True) -> dict:
    """`plain` in a layer of which attention's output and log-sum-exp are kept too: `train.remat=attention`."""
    return _rematerialised("attention", seq, head_dim, heads, gradients)


def _rematerialised(policy: str, seq: int, head_dim: int, heads: int, gradients: bool) -> dict:
    attend = jax.checkpoint(_fused, policy=REMAT[policy])
    shapes = (_tokens(seq, head_dim, heads),) * 3
    return program(attend, shapes, useful_flops(seq, head_dim, heads, gradients), gradients)


def rotated(seq: int, head_dim: int, heads: int, gradients: bool = True) -> dict:
    """`plain` with RoPE inside the kernels."""

    def attend(q, k, v):
        table = rotary(jnp.arange(seq), head_dim, 10000.0)
        return attention(q, k, v, q_turn_2xSxK=table, k_turn_2xTxK=table, implementation="fused")

    shapes = (_tokens(seq, head_dim, heads),) * 3
    return program(attend, shapes, useful_flops(seq, head_dim, heads, gradients), gradients)


def rotated_before(seq: int, head_dim: int, heads: int, gradients: bool = True) -> dict:
    """`plain` with RoPE before the kernels, as XLA does it: look at its fusions."""

    def attend(q, k, v):
        table = rotary(jnp.arange(seq), head_dim, 10000.0)
        return _fused(turn(q, table), turn(k, table), v)

    shapes = (_tokens(seq, head_dim, heads),) * 3
    return program(attend, shapes, useful_flops(seq, head_dim, heads, gradients), gradients)


def packed(seq: int, head_dim: int, heads: int, gradients: bool = True) -> dict:
    """Queries, keys and values of documents of `DOCUMENT` tokens, known when compiling: so is what can be skipped."""
    segment_ids = _segment_ids(seq)

    def attend(q, k, v):
        return _fused(q, k, v, segment_ids=segment_ids)

    flops = useful_flops(DOCUMENT, head_dim, heads, gradients) * (seq // DOCUMENT)
    return program(attend, (_tokens(seq, head_dim, heads),) * 3, flops, gradients)


@dataclasses.dataclass(frozen=True)
class VisitedTiles:
    """Of a head: tiles that a kernel visits, tiles that hold a visible pair, scores in the former over such pairs."""

    block_q: int
    block_kv: int
    visited: int
    unmasked: int
    scores_per_pair: float


def visited_tiles(gen: str, seq: int, head_dim: int, heads: int) -> dict[str, VisitedTiles]:
    """Of the kernels "forward" and "backward" of `packed`, for the tiles that the op chooses.

    What is visited is counted in the kernel's schedule, what is visible pair by pair.
    """
    from chinchilla_jax.kernels import fused

    grids: dict[str, list] = {"forward": [], "backward": []}

    def noting(name: str) -> AbstractContextManager:
        call = getattr(fused, f"{name}_call")

        def noted(plan, *args):
            grids[name].append(plan.grid)
            return call(plan, *args)

        return mock.patch.object(fused, f"{name}_call", noted)

    built = packed(seq, head_dim, heads)
    with compile_for(gen), noting("forward"), noting("backward"):
        jax.eval_shape(built["fn"], *built["args"])
    return {name: _count(parts) for name, parts in grids.items()}


def _count(grids: list) -> VisitedTiles:
    """Over `schedule.Grid`s; where keys are taken in parts, the first of a part is key -q_offset."""
    from chinchilla_jax.kernels.schedule import schedule, tile_kinds

    visited = unmasked = pairs = 0
    for grid in grids:
        q_ids, ids = _segment_ids(grid.queries), _segment_ids(grid.queries)[:, -grid.q_offset :][:, : grid.keys]
        visited += int(schedule(grid, tile_kinds(grid), grid.q_offset, q_ids, ids)[1].sum())
        visible = grid.q_offset + np.arange(grid.queries)[:, None] >= np.arange(grid.keys)
        visible &= q_ids[0][:, None] == ids[0]
        pairs += int(visible.sum())
        for axis, block in enumerate((grid.block_q, grid.block_kv)):
            visible = np.logical_or.reduceat(visible, np.arange(0, visible.shape[axis], block), axis=axis)
        unmasked += int(visible.sum())
    tile = grids[0].block_q * grids[0].block_kv
    return VisitedTiles(grids[0].block_q, grids[0].block_kv, visited, unmasked, visited * tile / pairs)
