"""How does a call of attention become calls of the TPU kernels, and their gradients those of the arguments?

Arrays are padded and laid out here (queries `[B, S, H*K]`: a block of one head is a block of columns, so no array is
transposed), tiles chosen, tables of tiles made. JAX differentiates that; the kernels have a rule of their own.
"""

from __future__ import annotations

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from chinchilla_jax.kernels import target
from chinchilla_jax.kernels.arguments import Arguments, AttentionError, check
from chinchilla_jax.kernels.fused_kernel import LANES, Plan, backward_call, forward_call
from chinchilla_jax.kernels.plain import rows_of_distances
from chinchilla_jax.kernels.schedule import MASKED, Grid, schedule, tile_kinds
from chinchilla_jax.kernels.tiles import ROLLING, SMALLEST, Tiles, compiler_limit, limit, ranked, vmem_bytes

LARGEST_HEAD = 256
# Names of what the backward pass needs of the forward pass, for rematerialisation policies.
OUTPUT, LSE = "attention_output", "attention_lse"


def fused_attention(q_BxSxHxK: jax.Array, k_BxTxGxK: jax.Array, v_BxTxGxK: jax.Array, *,
                    r_NxHxK: jax.Array | None = None, u_HxK: jax.Array | None = None, w_HxK: jax.Array | None = None,
                    segment_ids_BxT: jax.Array | None = None, q_segment_ids_BxS: jax.Array | None = None,
                    q_offset: int | jax.Array | None = None, window: int | None = None, softcap: float | None = None,
                    scale: float | None = None, return_lse: bool = False, tiles: Tiles | None = None,
                    backward_tiles: Tiles | None = None):  # fmt: skip
    """`attention.attention`, which documents the arguments, by the TPU kernels of `fused_kernel`.

    Where no TPU is compiled for, the kernels run in JAX step by step: slow, for tests.

    Args:
      tiles, backward_tiles: instead of those of `tiles.ranked`.

    Raises:
      AttentionError: see `attention.attention`; heads larger than 256; a TPU generation without tiles; one head whose
        smallest tiles do not fit the chip's memory.
    """
    call = check(q_BxSxHxK, k_BxTxGxK, v_BxTxGxK, r_NxHxK=r_NxHxK, u_HxK=u_HxK, w_HxK=w_HxK,
                 segment_ids_BxT=segment_ids_BxT, q_segment_ids_BxS=q_segment_ids_BxS, q_offset=q_offset, window=window,
                 softcap=softcap, scale=scale)  # fmt: skip
    if call.shape.K > LARGEST_HEAD:
        raise AttentionError("q_BxSxHxK", f"heads of {call.shape.K} are larger than {LARGEST_HEAD}, the largest of the "
                             'fused kernel: use "blockwise"')  # fmt: skip
    q_ids, kv_ids = _segments(call, segment_ids_BxT, q_segment_ids_BxS)
    forward, backward, keys = _fit(call, q_BxSxHxK.dtype.itemsize, window, tiles, backward_tiles)
    parts = []
    for first in range(0, call.shape.T, keys):
        here = slice(first, min(first + keys, call.shape.T))
        part = dataclasses.replace(call, shape=dataclasses.replace(call.shape, T=here.stop - first),
                                   q_offset=call.q_offset - first)  # fmt: skip
        parts.append(_one_call(part, q_BxSxHxK, k_BxTxGxK[:, here], v_BxTxGxK[:, here], r_NxHxK, u_HxK, w_HxK, q_ids,
                               None if kv_ids is None else kv_ids[:, here], window, softcap,
                               return_lse or keys < call.shape.T, (forward, backward)))  # fmt: skip
    if len(parts) == 1:
        return parts[0]
    out, lse = merge(parts)
    return (out, lse) if return_lse else out


def merge(parts: list[tuple[jax.Array, jax.Array]]) -> tuple[jax.Array, jax.Array]:
    """Attention to all keys from attention to disjoint sets of them.

    Args:
      parts: outputs `[B, S, H, K]` and log-sum-exps `[B, H, S]`, one pair a set.

    Returns:
      output in the type of the parts, and log-sum-exp.
    """
    lses = jnp.stack([lse for _, lse in parts])
    highest = jax.lax.stop_gradient(jnp.max(lses, axis=0))
    highest = jnp.where(highest == -jnp.inf, 0.0, highest)
    shares = jnp.exp(lses - highest)
    total = jnp.sum(shares, axis=0)
    seen = total > 0.0
    weights = jnp.where(seen, shares / jnp.where(seen, total, 1.0), 0.0)
    out = sum(jnp.swapaxes(w, 1, 2)[..., None] * o.astype(jnp.float32) for w, (o, _) in zip(weights, parts, strict=True))
    lse = jnp.where(seen, highest + jnp.log(jnp.where(seen, total, 1.0)), -jnp.inf)
    return out.astype(parts[0][0].dtype), lse


def _segments(call: Arguments, segment_ids, q_segment_ids) -> tuple:
    """Ids of queries and keys. NumPy arrays stay NumPy arrays, so that what depends on them only is a constant."""
    if segment_ids is None:
        return None, None
    if q_segment_ids is None and isinstance(segment_ids, np.ndarray) and call.offset_is_static:
        return segment_ids[:, call.q_offset : call.q_offset + call.shape.S], segment_ids
    return call.q_segment_ids_BxS if q_segment_ids is None else q_segment_ids, segment_ids


def _fit(call: Arguments, itemsize: int, window: int | None, forward: Tiles | None,
         backward: Tiles | None) -> tuple[Tiles, Tiles, int]:  # fmt: skip
    """Tiles of both passes, and how many keys a call may have for them to fit the chip.

    Keys of a head stay in vector memory while its queries pass by. If there are too many, attention to halves, quarters
    and so on of the keys is computed one after the other, and merged.
    """
    generation, shape = target.generation(), call.shape
    if generation is None:
        return forward or SMALLEST, backward or SMALLEST, shape.T
    size, keys = _up(shape.K), shape.T
    while True:
        chosen = []
        for is_backward, given in ((False, forward), (True, backward)):
            for tiles in [given] if given else ranked(generation, backward=is_backward, relative=shape.N is not None,
                                                      size=size):  # fmt: skip
                tiles = tiles.shrunk(shape.S, keys)
                if _bytes(call, tiles, keys, window, is_backward, itemsize) <= limit(generation):
                    chosen.append(tiles)
                    break
        if len(chosen) == 2:
            return *chosen, keys
        if keys <= LANES:
            raise AttentionError("q_BxSxHxK", f"not even one tile of heads of {shape.K} and {shape.S} queries fits the "
                                 f'memory of {generation}: use "blockwise"')  # fmt: skip
        keys = _up(-(-keys // 2))


def _bytes(call: Arguments, tiles: Tiles, keys: int, window: int | None, backward: bool, itemsize: int) -> int:
    shape = dataclasses.replace(call.shape, T=keys)
    grid, _ = _grids(dataclasses.replace(call, shape=shape), (tiles, tiles), window, False)
    distances = 0 if shape.N is None else _distances(grid, (MASKED,))
    return vmem_bytes(tiles, backward=backward, keys=grid.padded_keys, size=_up(shape.K), distances=distances,
                      itemsize=itemsize)  # fmt: skip


def _grids(call: Arguments, tiles: tuple[Tiles, Tiles], window: int | None, segments: bool) -> list[Grid]:
    """Of the forward and the backward pass, which see the same padded arrays."""

    def padded(length: int, blocks: list[int]) -> int:
        multiple = math.lcm(*blocks)
        return -(-length // multiple) * multiple

    return [
        Grid(queries=call.shape.S, keys=call.shape.T, padded_queries=padded(call.shape.S, [t.block_q for t in tiles]),
             padded_keys=padded(call.shape.T, [t.block_kv for t in tiles]), block_q=own.block_q,
             block_kv=own.block_kv, q_offset=call.q_offset if call.offset_is_static else None, window=window,
             segments=segments)
        for own in tiles
    ]  # fmt: skip


def _distances(grid: Grid, kinds: tuple) -> int:
    """Rows of e that the tiles of a call can touch."""
    rows = grid.padded_queries + grid.padded_keys
    if grid.q_offset is None:
        return rows
    future = grid.block_q + grid.block_kv if MASKED in kinds else LANES  # in the tiles on the diagonal
    return max(min(rows, _up(grid.padded_queries + grid.q_offset) + future), grid.block_kv + LANES)


def _one_call(call: Arguments, q, k, v, r, u, w, q_ids, kv_ids, window, softcap, return_lse: bool,
              tiles: tuple[Tiles, Tiles]):  # fmt: skip
    """Lays out and pads, runs, undoes both."""
    shape, generation, itemsize = call.shape, target.generation(), q.dtype.itemsize
    size = _up(shape.K)
    grids = _grids(call, tiles, window, kv_ids is not None)
    kinds = [tile_kinds(grid) for grid in grids]
    distances = 0 if r is None else max(_distances(*pair) for pair in zip(grids, kinds, strict=True))
    plans = tuple(
        Plan(grid=grid, kinds=kind, heads=shape.H, groups=shape.G, head_dim=size, strip=own.strip, scale=call.scale,
             softcap=softcap, relative=r is not None, distances=distances,
             rolls=generation is None or generation in ROLLING, interpret=generation is None,
             vmem_limit=compiler_limit(generation, vmem_bytes(
                 own, backward=backward, keys=grid.padded_keys, size=size, distances=distances, itemsize=itemsize)))
        for grid, kind, own, backward in zip(grids, kinds, tiles, (False, True), strict=True)
    )  # fmt: skip
    offset = jnp.reshape(jnp.asarray(call.q_offset, jnp.int32), 1)
    tables = tuple(
        (*map(jnp.ravel, schedule(grid, kind, call.q_offset, q_ids, kv_ids)), offset)
        for grid, kind in zip(grids, kinds, strict=True)
    )
    queries, keys = grids[0].padded_queries, grids[0].padded_keys
    arrays = {"q": _lay_out(q, queries, size), "k": _lay_out(k, keys, size), "v": _lay_out(v, keys, size)}
    if r is not None:
        farthest = call.q_offset + queries - 1
        arrays["e"] = _lay_out(rows_of_distances(r, farthest, distances)[None], distances, size)[0]
        arrays |= {name: _lay_out(bias[None, None], 1, size)[0] for name, bias in (("u", u), ("w", w))}
    ids = {}
    if kv_ids is not None:
        ids["q_segments"] = jnp.pad(q_ids, [(0, 0), (0, queries - shape.S)])[:, None]
        ids["kv_ids"] = jnp.pad(kv_ids, [(0, 0), (0, keys - shape.T)])[:, None]
    out, lse = _run(plans, return_lse, arrays, (tables, ids))
    out = out.reshape(shape.B, queries, shape.H, size)[:, : shape.S, :, : shape.K]
    return (out, lse[:, :, 0, : shape.S]) if return_lse else out


def _lay_out(x_BxSxHxK: jax.Array, length: int, size: int) -> jax.Array:
    """`[B, length, H * size]`, padded with zeros."""
    b, s, h, k = x_BxSxHxK.shape
    return jnp.pad(x_BxSxHxK, [(0, 0), (0, length - s), (0, 0), (0, size - k)]).reshape(b, length, h * size)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _run(plans: tuple[Plan, Plan], lse_is_used: bool, arrays: dict, integers: tuple) -> tuple[jax.Array, jax.Array]:
    """The forward kernel; `integers` are the tables of both passes and segment ids."""
    tables, ids = integers
    return forward_call(plans[0], tables[0], arrays | ids)


def _run_forward(plans, lse_is_used, arrays, integers):
    out, lse = _run(plans, lse_is_used, arrays, integers)
    out, lse = checkpoint_name(out, OUTPUT), checkpoint_name(lse, LSE)
    return (out, lse), (arrays, integers, out, lse)


def _run_backward(plans, lse_is_used, residuals, gradients):
    arrays, (tables, ids), out, lse = residuals
    plan, (dout, dlse) = plans[1], gradients
    used = {"dlse": dlse} if lse_is_used else {}
    d = backward_call(plan, tables[1], arrays | ids | {"o": out, "lse": lse, "do": dout} | used)
    result = {"q": d["dq"]}
    for name in ("k", "v"):
        x = d[f"d{name}"]
        if x.shape != arrays[name].shape:  # a part from each head of a group
            x = x.reshape(*x.shape[:2], plan.groups, -1, plan.head_dim).sum(3).reshape(arrays[name].shape)
        result[name] = x
    if plan.relative:
        result["e"] = (d["de"] * plan.after_sum).transpose(2, 0, 1).reshape(arrays["e"].shape)
        result |= {name: d[f"d{name}"].reshape(1, -1) for name in ("u", "w")}
    return {name: x.astype(arrays[name].dtype) for name, x in result.items()}, None


_run.defvjp(_run_forward, _run_backward)


def _up(n: int) -> int:
    return -(-n // LANES) * LANES
