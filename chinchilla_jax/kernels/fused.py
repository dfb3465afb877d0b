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
    forward, keys = _fit(call, q_BxSxHxK.dtype.itemsize, window, tiles, backward=False)
    parts = []
    for first in range(0, call.shape.T, keys):
        here = slice(first, min(first + keys, call.shape.T))
        part = _keys_from(call, first, here.stop - first)
        parts.append(_one_call(part, q_BxSxHxK, k_BxTxGxK[:, here], v_BxTxGxK[:, here], r_NxHxK, u_HxK, w_HxK, q_ids,
                               None if kv_ids is None else kv_ids[:, here], window, softcap,
                               return_lse or keys < call.shape.T, forward, backward_tiles))  # fmt: skip
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
    outs = [o.astype(jnp.float32) for o, _ in parts]
    out = sum(jnp.swapaxes(weight, 1, 2)[..., None] * o for weight, o in zip(weights, outs, strict=True))
    lse = jnp.where(seen, highest + jnp.log(jnp.where(seen, total, 1.0)), -jnp.inf)
    return out.astype(parts[0][0].dtype), lse


def _segments(call: Arguments, segment_ids, q_segment_ids) -> tuple:
    """Ids of queries and keys. NumPy arrays stay NumPy arrays, so that what depends on them only is a constant."""
    if segment_ids is None:
        return None, None
    if q_segment_ids is None and isinstance(segment_ids, np.ndarray) and call.offset_is_static:
        return segment_ids[:, call.q_offset : call.q_offset + call.shape.S], segment_ids
    return call.q_segment_ids_BxS if q_segment_ids is None else q_segment_ids, segment_ids


def _keys_from(call: Arguments, first: int, count: int) -> Arguments:
    """The same queries, and only keys `first : first + count`."""
    return dataclasses.replace(call, shape=dataclasses.replace(call.shape, T=count), q_offset=call.q_offset - first)


def _fit(call: Arguments, itemsize: int, window: int | None, given: Tiles | None, *,
         backward: bool) -> tuple[Tiles, int]:  # fmt: skip
    """Tiles of a pass, and how many keys at once may take part for it to fit the chip.

    The keys of a head stay in vector memory while its queries pass by. If they are too many, the pass takes halves,
    quarters and so on of them, one after the other.
    """
    generation, shape = target.generation(), call.shape
    if generation is None:
        return given or SMALLEST, shape.T
    measured = ranked(generation, backward=backward, relative=shape.N is not None, size=_up(shape.K))
    keys = shape.T
    while True:
        for tiles in [given] if given else measured if keys > LANES else [SMALLEST]:
            tiles = tiles.shrunk(shape.S, keys)
            grid = _grid(_keys_from(call, 0, keys), tiles, window, False)
            distances = 0 if shape.N is None else _distances(grid, (MASKED,))
            if vmem_bytes(tiles, backward=backward, keys=grid.padded_keys, size=_up(shape.K), distances=distances,
                          itemsize=itemsize) <= limit(generation):  # fmt: skip
                return tiles, keys
        if keys <= LANES:
            raise AttentionError("q_BxSxHxK", f"not even one tile of heads of {shape.K} and {shape.S} queries fits the "
                                 f'memory of {generation}: use "blockwise"')  # fmt: skip
        keys = _up(-(-keys // 2))


def _grid(call: Arguments, tiles: Tiles, window: int | None, segments: bool, queries_of: int = 1) -> Grid:
    """Args: queries_of: what the padded queries have to be a multiple of, besides the block."""
    multiple = math.lcm(tiles.block_q, queries_of)
    return Grid(queries=call.shape.S, keys=call.shape.T, padded_queries=-(-call.shape.S // multiple) * multiple,
                padded_keys=-(-call.shape.T // tiles.block_kv) * tiles.block_kv, block_q=tiles.block_q,
                block_kv=tiles.block_kv, q_offset=call.q_offset if call.offset_is_static else None, window=window,
                segments=segments)  # fmt: skip


def _distances(grid: Grid, kinds: tuple) -> int:
    """Rows of e that the tiles of a call can touch."""
    rows = grid.padded_queries + grid.padded_keys
    if grid.q_offset is None:
        return rows
    future = grid.block_q + grid.block_kv if MASKED in kinds else LANES  # in the tiles on the diagonal
    return max(min(rows, _up(grid.padded_queries + grid.q_offset) + future), grid.block_kv + LANES)


def _one_call(call: Arguments, q, k, v, r, u, w, q_ids, kv_ids, window, softcap, return_lse: bool, forward: Tiles,
              backward: Tiles | None):  # fmt: skip
    """Lays out and pads, runs, undoes both."""
    shape, size = call.shape, _up(call.shape.K)
    backward, at_once = _fit(call, q.dtype.itemsize, window, backward, backward=True)
    pieces = [(forward, False, 0, shape.T)]
    pieces += [(backward, True, first, min(at_once, shape.T - first)) for first in range(0, shape.T, at_once)]
    passes = tuple(
        _pass(_keys_from(call, first, count), tiles, is_backward, first, softcap, window, r is not None,
              math.lcm(forward.block_q, backward.block_q), q.dtype.itemsize,
              q_ids, None if kv_ids is None else kv_ids[:, first : first + count])
        for tiles, is_backward, first, count in pieces
    )  # fmt: skip
    plans, tables = zip(*passes, strict=True)
    queries = plans[0].plan.grid.padded_queries
    keys = max(p.first + p.plan.grid.padded_keys for p in plans)
    arrays = {"q": _lay_out(q, queries, size), "k": _lay_out(k, keys, size), "v": _lay_out(v, keys, size)}
    if r is not None:
        rows = max(p.first + p.plan.distances for p in plans)
        arrays["e"] = _lay_out(rows_of_distances(r, call.q_offset + queries - 1, rows)[None], rows, size)[0]
        arrays |= {name: _lay_out(bias[None, None], 1, size)[0] for name, bias in (("u", u), ("w", w))}
    ids = {}
    if kv_ids is not None:
        ids["q_segments"] = jnp.pad(q_ids, [(0, 0), (0, queries - shape.S)])[:, None]
        ids["kv_ids"] = jnp.pad(kv_ids, [(0, 0), (0, keys - shape.T)])[:, None]
    out, lse = _run(plans, return_lse, arrays, (tables, ids))
    out = out.reshape(shape.B, queries, shape.H, size)[:, : shape.S, :, : shape.K]
    return (out, lse[:, :, 0, : shape.S]) if return_lse else out


@dataclasses.dataclass(frozen=True)
class _Pass:
    """A kernel call on the padded keys from `first` on."""

    plan: Plan
    first: int

    def of(self, arrays: dict[str, jax.Array]) -> dict[str, jax.Array]:
        """The arrays, of keys only those that take part."""
        keys = slice(self.first, self.first + self.plan.grid.padded_keys)
        distances = slice(self.first, self.first + self.plan.distances)
        cuts = {"k": (slice(None), keys), "v": (slice(None), keys), "kv_ids": (..., keys), "e": (distances,)}
        return {name: x[cuts[name]] if name in cuts else x for name, x in arrays.items()}


def _pass(call: Arguments, tiles: Tiles, backward: bool, first: int, softcap, window, relative: bool, queries_of: int,
          itemsize: int, q_ids, kv_ids) -> tuple[_Pass, tuple]:  # fmt: skip
    """The plan of one kernel call and its tables."""
    generation, size = target.generation(), _up(call.shape.K)
    grid = _grid(call, tiles, window, kv_ids is not None, queries_of)
    kinds = tile_kinds(grid)
    distances = _distances(grid, kinds) if relative else 0
    estimate = vmem_bytes(tiles, backward=backward, keys=grid.padded_keys, size=size, distances=distances,
                          itemsize=itemsize)  # fmt: skip
    plan = Plan(grid=grid, kinds=kinds, heads=call.shape.H, groups=call.shape.G, head_dim=size, strip=tiles.strip,
                scale=call.scale, softcap=softcap, relative=relative, distances=distances,
                rolls=generation in ROLLING, vmem_limit=compiler_limit(generation, estimate),
                interpret=generation is None)  # fmt: skip
    tables = schedule(grid, kinds, call.q_offset, q_ids, kv_ids)
    offset = jnp.reshape(jnp.asarray(call.q_offset, jnp.int32), 1)
    return _Pass(plan, first), (*map(jnp.ravel, tables), offset)


def _lay_out(x_BxSxHxK: jax.Array, length: int, size: int) -> jax.Array:
    """`[B, length, H * size]`, padded with zeros."""
    b, s, h, k = x_BxSxHxK.shape
    return jnp.pad(x_BxSxHxK, [(0, 0), (0, length - s), (0, 0), (0, size - k)]).reshape(b, length, h * size)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _run(passes: tuple[_Pass, ...], lse_is_used: bool, arrays: dict, integers: tuple) -> tuple[jax.Array, jax.Array]:
    """The forward kernel, the first of the passes; `integers` are the tables of all passes and segment ids."""
    tables, ids = integers
    return forward_call(passes[0].plan, tables[0], passes[0].of(arrays | ids))


def _run_forward(passes, lse_is_used, arrays, integers):
    out, lse = _run(passes, lse_is_used, arrays, integers)
    out, lse = checkpoint_name(out, OUTPUT), checkpoint_name(lse, LSE)
    return (out, lse), (arrays, integers, out, lse)


def _run_backward(passes, lse_is_used, residuals, gradients):
    """The backward kernel, once for each set of keys: lse is of all of them, so that their gradients add up."""
    arrays, (tables, ids), out, lse = residuals
    given = arrays | ids | {"o": out, "lse": lse, "do": gradients[0]}
    if lse_is_used:
        given["dlse"] = gradients[1]
    parts = [
        (one.first, _gradients(one.plan, backward_call(one.plan, table, one.of(given))))
        for one, table in zip(passes[1:], tables[1:], strict=True)
    ]
    total = {
        name: sum(_placed(part[name], first, x.shape, {"k": 1, "v": 1, "e": 0}.get(name)) for first, part in parts)
        for name, x in arrays.items()
    }
    return {name: x.astype(arrays[name].dtype) for name, x in total.items()}, None


def _placed(x: jax.Array, first: int, shape: tuple[int, ...], axis: int | None) -> jax.Array:
    """x among zeros, from `first` on along `axis`."""
    if axis is None or x.shape == shape:
        return x
    widths = [(0, 0)] * x.ndim
    widths[axis] = (first, shape[axis] - first - x.shape[axis])
    return jnp.pad(x, widths)


def _gradients(plan: Plan, d: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """Results of the backward kernel in the layout of what they are the gradients of."""
    found = {"q": d["dq"], "k": d["dk"], "v": d["dv"]}
    if plan.relative:
        if plan.heads != plan.groups:  # a part from each head of a group
            for name in ("k", "v"):
                x = found[name]
                found[name] = x.reshape(*x.shape[:2], plan.groups, -1, plan.head_dim).sum(3).reshape(*x.shape[:2], -1)
        found["e"] = (d["de"] * plan.after_sum).transpose(2, 0, 1).reshape(plan.distances, -1)
        found |= {name: d[f"d{name}"].reshape(1, -1) for name in ("u", "w")}
    return found


_run.defvjp(_run_forward, _run_backward)


def _up(n: int) -> int:
    return -(-n // LANES) * LANES
