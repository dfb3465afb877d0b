"""How is attention computed on a TPU without its scores ever leaving the chip?

THE EQUATIONS (Dao et al. 2022, algorithms 1 and 4; the relative term is that of Dai et al. 2019, section 3.3, where the
position bias w is called v)

    s_ij = scale ((q_i + u) . k_j + (q_i + w) . r_{i-j})      then  s = c tanh(s / c)  if a soft cap c is given
    p_ij = exp(s_ij - lse_i),   lse_i = log sum_j exp(s_ij)
    o_i  = sum_j p_ij v_j

The forward pass reads the keys of a query tile by tile and keeps three things a query: the largest score so far m, the
sum l of exp(s - m), and the sum acc of exp(s - m) v. When a larger score comes, l and acc shrink by exp(m_old - m_new).
At the end o = acc / l and lse = m + log l. Everything is in base 2, its logarithm folded into the scale: the chip has
an exp2.

The backward pass computes p anew from lse and needs no maximum. With do the gradient of o, and di_i = do_i . o_i:

    dv_j = sum_i p_ij do_i                   dp_ij = do_i . v_j
    ds_ij = p_ij (dp_ij - di_i)              (times 1 - tanh^2 with a soft cap; di_i less the gradient of lse_i)
    dq_i = scale (sum_j ds_ij k_j + sum_j ds_ij r_{i-j})
    dk_j = scale sum_i ds_ij (q_i + u)       dr_d = scale sum_{i-j=d} ds_ij (q_i + w)
    du   = scale sum_ij ds_ij k_j            dw   = scale sum_ij ds_ij r_{i-j}

THE TILING

              keys                            One step of the grid is a block of queries of one head (and one row of the
         +------+------+------+------+        batch). Keys, values and r of that head lie in VMEM whole and stay there
    q    | diag |      :      :      |        for all its blocks of queries. The tiles of a block are those `schedule`
    u    +------+------+      :      |        lists, as a loop inside the step: nothing is fetched between them, and
    e    | whole| diag |      :      |        what was not listed costs nothing.
    r    +------+------+------+      |
    i    | whole| whole| diag |      |        A tile on the diagonal is cut into strips of `strip` queries, and each
    e    +------+------+------+------+        strip takes the keys up to its own end:
    s    | whole| whole| whole| diag |
         +------+------+------+------+            #
                                                  ##      10 of the 16 products of a tile of 4 strips
    The stages of a tile run over all strips      ###
    before the next stage starts, so that the     ####
    compiler finds independent work to overlap.

In the backward pass the same tiles are visited in the same order. dq is summed over the tiles of a block, dk and dv
over the blocks of queries, in VMEM, whole heads of them; transposed, as dk' = q' ds, so that the tile ds is used as it
lies in all its products and never transposed.

ROTATIONS

Rotary positions turn pairs of numbers of queries and keys: x becomes x cos + swap(x) sin, swap exchanging the halves of
a head. Queries are turned when their block comes, keys once a head, into VMEM; their gradients are turned back. Outside
the kernels XLA would move each of these arrays through HBM several times.

THE RELATIVE TERM

The scores q . r are a band: query a of a strip needs, for key c, the distance that is a - c away. One product gives

    t[a, m] = (q_a + w) . e[start + m],   e = r by falling distance

and row a of it, moved right by a, stands under its keys: t[a, c - a + 127] is the score of key c. The move is one
rotation of a register per 8 rows x 128 lanes whose distance grows with the row, an instruction of the chip from v5 on;
v4 gathers lanes instead, and so does everybody for the way back, which moves left.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from chinchilla_jax.kernels.schedule import KIND_BITS, KINDS, MASKED, WHOLE, Grid, Kind
from chinchilla_jax.kernels.tiles import LANES, whole_lanes

LOG2E = math.log2(math.e)
HIDDEN = -0.7 * float(np.finfo(np.float32).max)  # a masked score: less than any other, and finite
INFINITE = 1e30  # stands for the -lse of a query that saw no key: exp2(s - INFINITE) is zero

DType: TypeAlias = jax.typing.DTypeLike
Sides = tuple[int, ...]  # of an array or a block
Ref = Any  # an array in the memory of the chip, or a namespace of them by name
Index = Any  # an int, or an int32 scalar in a kernel

_ROWS_BY_ROWS = (((1,), (1,)), ((), ()))  # x y'
_PRODUCT = (((1,), (0,)), ((), ()))  # x y


@dataclasses.dataclass(frozen=True)
class Plan:
    """All that a kernel knows before it runs."""

    grid: Grid  # and kinds: see `schedule`
    kinds: tuple[Kind, ...]
    heads: int  # H query heads
    groups: int  # G groups of keys that they read
    head_dim: int  # K, padded to a multiple of 128
    strip: int  # queries of a strip in tiles on an edge of the mask
    scale: float  # see the equations
    softcap: float | None
    relative: bool  # whether there is a relative term
    turned: bool  # whether queries and keys are to be rotated; halves of a head then are padded each for itself
    distances: int  # rows of e
    rolls: bool  # whether the chip rotates each row by its own distance
    vmem_limit: int | None  # bytes the compiler may use, None for its default
    interpret: bool  # run step by step in JAX, on any platform

    @property
    def before_mask(self) -> float:
        """What the queries are multiplied by: scores then are in base 2, or in units of the soft cap."""
        return self.scale * LOG2E if self.softcap is None else self.scale / self.softcap

    @property
    def after_sum(self) -> float:
        """What sums of ds with the queries so multiplied are multiplied by: `before_mask` becomes `scale`."""
        return self.scale / self.before_mask


# ---- strips: what of a tile is computed


@dataclasses.dataclass(frozen=True)
class Strip:
    """Queries `row : row + rows` of a tile and keys `first : last` of it; the latter multiples of 128."""

    row: int
    rows: int
    first: int
    last: int

    @property
    def queries(self) -> slice:
        """Of the block of queries."""
        return slice(self.row, self.row + self.rows)

    @property
    def width(self) -> int:
        """How many keys."""
        return self.last - self.first


def strips(plan: Plan, kind: Kind) -> list[Strip]:
    """The strips of a tile of this kind. Only in a tile of known delta some keys can be left out."""
    block_q, block_kv = plan.grid.block_q, plan.grid.block_kv
    if isinstance(kind, str):
        return [Strip(0, block_q, 0, block_kv)]
    rows, cut = min(plan.strip, block_q), []
    for row in range(0, block_q, rows):
        last = min(block_kv, whole_lanes(kind + row + rows))
        first = 0 if plan.grid.window is None else max(0, kind + row - plan.grid.window + 1) // LANES * LANES
        if first < last:
            cut.append(Strip(row, rows, first, last))
    return cut


def columns(cut: list[Strip]) -> list[tuple[int, int, list[int]]]:
    """The same part of a tile cut the other way: keys from, keys to, and the strips that have them."""
    edges = sorted({edge for strip in cut for edge in (strip.first, strip.last)})
    parts = []
    for first, last in zip(edges, edges[1:], strict=False):
        having = [n for n, strip in enumerate(cut) if strip.first <= first and last <= strip.last]
        if having:
            parts.append((first, last, having))
    return parts


# ---- scores of the strips of a tile


def _dot(x: jax.Array, y: jax.Array, dims: tuple = _PRODUCT) -> jax.Array:
    precision = jax.lax.Precision.HIGHEST if x.dtype == jnp.float32 else None
    return jax.lax.dot_general(x, y, dims, preferred_element_type=jnp.float32, precision=precision)


def _keys(plan: Plan, j: Index, strip: Strip) -> pl.Slice:
    """Where the keys of a strip lie among all keys."""
    return pl.ds(pl.multiple_of(j * plan.grid.block_kv + strip.first, LANES), strip.width)


def _key_rows(plan: Plan, ref: Ref, j: Index, strip: Strip) -> jax.Array:
    """The keys of a strip, `[width, K]`."""
    rows = _keys(plan, j, strip)
    return ref.k_turned[rows, :] if plan.turned else ref.k[0, rows, :]


def _scores(plan: Plan, ref: Ref, i: Index, j: Index, kind: Kind, cut: list[Strip]) -> list[jax.Array]:
    """Scores before soft cap and mask: float32, base 2 (or units of the soft cap), `[rows, width]` a strip."""
    content = [_dot(ref.qu[s.queries, :], _key_rows(plan, ref, j, s), _ROWS_BY_ROWS) for s in cut]
    if not plan.relative:
        return content
    position = []
    for strip in cut:
        rows = []
        for row, last, start, width in _bands(plan, i, j, kind, strip):
            t = _dot(ref.qw[row : row + LANES, :], ref.e[pl.ds(start, width), :], _ROWS_BY_ROWS)
            t = _move_right(plan, t, last - strip.first)
            if last < strip.last:  # keys after the last that any of these rows sees
                t = jnp.concatenate([t, jnp.zeros((LANES, strip.last - last), jnp.float32)], axis=1)
            rows.append(t)
        position.append(jnp.concatenate(rows, axis=0))
    return [x + y for x, y in zip(content, position, strict=True)]


def _bands(plan: Plan, i: Index, j: Index, kind: Kind, strip: Strip) -> Iterator[tuple[int, int, Index, int]]:
    """For each 128 rows of a strip: first row, end of its keys, and first row and number of rows of e for them.

    Row p of e is for the distance q_offset + S - 1 - p, so that key 0 and query 0 of the call meet at p = S - 1
    whatever the offset. The first of 128 rows reaches 127 rows further into e than the last. Where causality ends the
    keys, that excess is for the future only, and left out.
    """
    for row in range(strip.row, strip.row + strip.rows, LANES):
        last, width = strip.last, strip.width + LANES
        if not isinstance(kind, str) and whole_lanes(kind + row + LANES) <= strip.last:
            last = max(whole_lanes(kind + row + LANES), strip.first + LANES)
            width = last - strip.first
        start = plan.grid.padded_queries - LANES - row + strip.first + j * plan.grid.block_kv - i * plan.grid.block_q
        yield row, last, pl.multiple_of(start, LANES), width


def _move_right(plan: Plan, t: jax.Array, width: int) -> jax.Array:
    """out[a, c] = t[a, c - a + 127], `[128, width]`."""
    if plan.interpret:
        return _move_rows_at_once(t, LANES - 1, -1, width)
    return roll_rows(t, width) if plan.rolls else move_rows(t, LANES - 1, -1, width)


def _move_left(plan: Plan, ds: jax.Array, width: int) -> jax.Array:
    """out[a, m] = ds[a, m + a - 127], zero where ds has no such column: the transpose of `_move_right`."""
    return (_move_rows_at_once if plan.interpret else move_rows)(ds, 1 - LANES, 1, width)


def roll_rows(t: jax.Array, width: int) -> jax.Array:
    """`_move_right` in one instruction a register."""
    return pltpu.roll(t, t.shape[1] - LANES + 1, 1, stride=1, stride_axis=0)[:, :width]


def _move_rows_at_once(x: jax.Array, first: int, step: int, width: int) -> jax.Array:
    """`move_rows` in one operation, which a CPU compiles sooner and a TPU does not have."""
    rows, have = x.shape
    source = jnp.arange(width)[None, :] + (first + step * jnp.arange(rows))[:, None]
    return jnp.where((source >= 0) & (source < have), jnp.take_along_axis(x, source.clip(0, have - 1), axis=1), 0.0)


def move_rows(x: jax.Array, first: int, step: int, width: int) -> jax.Array:
    """out[a, c] = x[a, c + first + step * a], zero outside x.

    Eight rows are one register high: each of its rows takes its lanes from two neighbouring registers, and from no
    third one if (first, step) is (1, 1) or (7, -1) modulo 8, as it must be.
    """
    assert (first % 8, step) in ((1, 1), (7, -1))
    lane = jax.lax.broadcasted_iota(jnp.int32, (8, LANES), 1)
    row = jax.lax.broadcasted_iota(jnp.int32, (8, LANES), 0)
    registers = x.shape[1] // LANES
    moved = []
    for top in range(0, x.shape[0], 8):
        whole, rest = divmod(first + step * top, LANES)
        source = lane + rest + step * row  # 0 to 255
        index, right = source & (LANES - 1), source >= LANES
        gathered = {}
        for n in range(max(0, whole), min(registers, whole + width // LANES + 1)):
            register = x[top : top + 8, LANES * n : LANES * (n + 1)]
            gathered[n] = jnp.take_along_axis(register, index, axis=1, mode="promise_in_bounds")
        zero = jnp.zeros((8, LANES), x.dtype)
        out = [
            jnp.where(right, gathered.get(c + 1, zero), gathered.get(c, zero))
            for c in range(whole, whole + width // LANES)
        ]
        moved.append(jnp.concatenate(out, axis=1))
    return jnp.concatenate(moved, axis=0)


def _hide(plan: Plan, ref: Ref, i: Index, j: Index, kind: Kind, strip: Strip, x: jax.Array, fill: float) -> jax.Array:
    """x `[rows, width]` with `fill` where a key is not visible."""
    grid = plan.grid
    if kind == WHOLE:
        return x
    # The first key that is hidden from some query, if only causality hides any: what lies before is left as it is.
    first = strip.first
    if not isinstance(kind, str) and grid.window is None:
        first = max(strip.first, (kind + strip.row + 1) // LANES * LANES)
        if first >= strip.last:
            return x
    shape = (strip.rows, strip.last - first)
    key = jax.lax.broadcasted_iota(jnp.int32, shape, 1)
    distance = jax.lax.broadcasted_iota(jnp.int32, shape, 0) - key + (strip.row - first)
    if kind != MASKED:
        distance += kind
    else:
        q_offset = ref.q_offset[0] if grid.q_offset is None else grid.q_offset
        distance += q_offset + i * grid.block_q - j * grid.block_kv
    visible = distance >= 0
    if grid.window is not None:
        visible &= distance < grid.window
    if kind == MASKED:
        if grid.keys < plan.grid.padded_keys and not grid.padding_is_hidden:
            visible &= key < grid.keys - j * grid.block_kv
        if grid.segments:
            visible &= _wide(ref.q_ids[strip.queries, :], strip.width) == ref.kv_ids[0, :, _keys(plan, j, strip)]
    hidden = jnp.where(visible, x[:, first - strip.first :], fill)
    return hidden if first == strip.first else jnp.concatenate([x[:, : first - strip.first], hidden], axis=1)


def _wide(x: jax.Array, width: int) -> jax.Array:
    """`[rows, 128]`, equal along the lanes, to `[rows, width]`."""
    return x if width == LANES else jnp.tile(x, (1, width // LANES))


def _column(row_1xN: jax.Array) -> jax.Array:
    """A row to a column, `[N, 128]`, equal along the lanes."""
    return jnp.broadcast_to(row_1xN, (LANES, row_1xN.shape[1])).T


def _cap(plan: Plan, s: jax.Array) -> tuple[jax.Array, jax.Array | None]:
    """Scores in base 2 after the soft cap, and the tanh they come from."""
    if plan.softcap is None:
        return s, None
    t = jnp.tanh(s)
    return t * (plan.softcap * LOG2E), t


def _scaled_queries(plan: Plan, ref: Ref, bias_ref: Ref = None) -> jax.Array:
    """Queries turned, biased and multiplied by `before_mask`, in their own type, rounded once."""
    q = ref.q[0].astype(jnp.float32)
    if plan.turned:
        q = _turn(q, ref.q_turn[0], ref.q_turn[1])
    if bias_ref is not None:
        q = q + bias_ref[...].astype(jnp.float32)
    return (q * plan.before_mask).astype(ref.q.dtype)


def _turn(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    return x * cos + pltpu.roll(x, x.shape[1] // 2, 1) * sin


def _turn_back(y: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """The transpose of `_turn`; halves swapped twice are in their places."""
    return y * cos + pltpu.roll(y * sin, y.shape[1] // 2, 1)


def _turn_keys(plan: Plan, ref: Ref) -> None:
    """Keeps all keys of the head, turned."""

    def block(j: Index, _: int) -> int:
        rows = pl.ds(pl.multiple_of(j * plan.grid.block_kv, LANES), plan.grid.block_kv)
        turned = _turn(ref.k[0, rows, :].astype(jnp.float32), ref.k_turn[0, rows, :], ref.k_turn[1, rows, :])
        ref.k_turned[rows, :] = turned.astype(ref.k.dtype)
        return 0

    jax.lax.fori_loop(0, plan.grid.blocks_kv, block, 0)


def _clear(*refs: Ref) -> None:
    for ref in refs:
        ref[...] = jnp.zeros_like(ref)


def _visit(plan: Plan, ref: Ref, b: Index, i: Index, tile: Callable[[Index, Kind], None]) -> None:
    """Calls `tile(j, kind)` for every listed tile of block i of the queries of row b."""
    blocks_q, blocks_kv = plan.grid.blocks_q, plan.grid.blocks_kv
    block = b * blocks_q + i if ref.counts.shape[0] > blocks_q else i

    def step(n: Index, _: int) -> int:
        entry = ref.entries[block * blocks_kv + n]
        for number, kind in enumerate(plan.kinds):
            pl.when(entry & (KINDS - 1) == number)(functools.partial(tile, entry >> KIND_BITS, kind))
        return 0

    jax.lax.fori_loop(0, ref.counts[block], step, 0)


# ---- forward


def _forward(*refs: Ref, plan: Plan, names: tuple[str, ...]) -> None:
    """One block of queries: `ref.o [1, block_q, K]`, `ref.lse [1, 1, 1, block_q]`."""
    ref = SimpleNamespace(**dict(zip(names, refs, strict=True)))
    b, i = pl.program_id(1), pl.program_id(2)
    if plan.turned:
        pl.when(i == 0)(lambda: _turn_keys(plan, ref))
    ref.qu[...] = _scaled_queries(plan, ref, ref.u if plan.relative else None)
    if plan.relative:
        ref.qw[...] = _scaled_queries(plan, ref, ref.w)
    if plan.grid.segments:
        ref.q_ids[...] = _column(ref.q_segments[0])
    ref.m[...] = jnp.full_like(ref.m, HIDDEN)
    _clear(ref.l, ref.acc)

    def tile(j: Index, kind: Kind) -> None:
        cut = strips(plan, kind)
        s = [_cap(plan, x)[0] for x in _scores(plan, ref, i, j, kind, cut)]
        s = [_hide(plan, ref, i, j, kind, strip, x, HIDDEN) for strip, x in zip(cut, s, strict=True)]
        m_old = [ref.m[strip.queries, :] for strip in cut]
        m = [jnp.maximum(old, jnp.max(x, axis=1, keepdims=True)) for old, x in zip(m_old, s, strict=True)]
        p = [jnp.exp2(x - _wide(new, strip.width)) for strip, x, new in zip(cut, s, m, strict=True)]
        shrink = [jnp.exp2(old - new) for old, new in zip(m_old, m, strict=True)]
        pv = [_dot(x.astype(ref.v.dtype), ref.v[0, _keys(plan, j, strip), :]) for strip, x in zip(cut, p, strict=True)]
        for n, strip in enumerate(cut):
            ref.m[strip.queries, :] = m[n]
            ref.l[strip.queries, :] = shrink[n] * ref.l[strip.queries, :] + jnp.sum(p[n], axis=1, keepdims=True)
            ref.acc[strip.queries, :] = _wide(shrink[n], plan.head_dim) * ref.acc[strip.queries, :] + pv[n]

    _visit(plan, ref, b, i, tile)
    # A query that saw no key still has its first m, and perhaps a sum of masked scores.
    saw = ref.m[...] > HIDDEN
    ref.o[0] = (ref.acc[...] * _wide(jnp.where(saw, 1.0 / ref.l[...], 0.0), plan.head_dim)).astype(ref.o.dtype)
    lse = jnp.where(saw, (ref.m[...] + jnp.log2(ref.l[...])) / LOG2E, -jnp.inf)
    ref.lse[0, 0] = lse.T[:1]


# ---- backward


def _backward(*refs: Ref, plan: Plan, names: tuple[str, ...]) -> None:
    """One block of queries: its dq, and its part of dk, dv, and of de, du and dw.

    The grid is (heads or groups, rows of the batch, heads of a group, blocks of queries); with a relative term de has
    to be summed over the rows of the batch, so that heads come first and dk and dv are summed over a group outside.
    """
    ref = SimpleNamespace(**dict(zip(names, refs, strict=True)))
    b, c, i = pl.program_id(1), pl.program_id(2), pl.program_id(3)

    @pl.when((c == 0) & (i == 0))
    def _() -> None:
        _clear(ref.dk_sum, ref.dv_sum)
        if plan.turned:
            _turn_keys(plan, ref)

    if plan.relative:
        pl.when((b == 0) & (i == 0))(lambda: _clear(ref.de, ref.du, ref.dw))
    _prepare_backward(plan, ref)
    _visit(plan, ref, b, i, functools.partial(_backward_tile, plan, ref, i))
    dq = ref.dqu[...]
    if plan.relative:
        dq += ref.dqw[...]
        ref.du[0] += jnp.sum(ref.dqu[...], axis=0, keepdims=True) * plan.scale
        ref.dw[0] += jnp.sum(ref.dqw[...], axis=0, keepdims=True) * plan.scale
    if plan.turned:
        dq = _turn_back(dq, ref.q_turn[0], ref.q_turn[1])
    ref.dq[0] = (dq * plan.scale).astype(ref.q.dtype)
    last = (c == pl.num_programs(2) - 1) & (i == pl.num_programs(3) - 1)
    pl.when(last)(lambda: _write_keys(plan, ref))


def _prepare_backward(plan: Plan, ref: Ref) -> None:
    """Keeps what all tiles of a block of queries need, some of it transposed."""
    qu = _scaled_queries(plan, ref, ref.u if plan.relative else None)
    ref.qu[...], ref.qu_t[...], ref.do_t[...] = qu, qu.T, ref.do[0].T
    _clear(ref.dqu)
    if plan.relative:
        qw = _scaled_queries(plan, ref, ref.w)
        ref.qw[...], ref.qw_t[...] = qw, qw.T
        _clear(ref.dqw)
    if plan.grid.segments:
        ref.q_ids[...] = _column(ref.q_segments[0])
    lse = ref.lse[0, 0]
    ref.lse_column[...] = _column(jnp.where(lse == -jnp.inf, INFINITE, lse * LOG2E))
    di = jnp.sum(ref.do[0].astype(jnp.float32) * ref.o[0].astype(jnp.float32), axis=1, keepdims=True)
    di = jnp.broadcast_to(di, ref.di.shape)
    ref.di[...] = di - _column(ref.dlse[0, 0]) if hasattr(ref, "dlse") else di


def _backward_tile(plan: Plan, ref: Ref, i: Index, j: Index, kind: Kind) -> None:
    """Adds what tile j of block i of the queries has to all gradients."""
    dtype = ref.q.dtype
    cut = strips(plan, kind)
    capped = [_cap(plan, x) for x in _scores(plan, ref, i, j, kind, cut)]
    p = [jnp.exp2(s - _wide(ref.lse_column[x.queries, :], x.width)) for x, (s, _) in zip(cut, capped, strict=True)]
    p = [_hide(plan, ref, i, j, kind, strip, x, 0.0) for strip, x in zip(cut, p, strict=True)]
    dp = [_dot(ref.do[0, x.queries, :], ref.v[0, _keys(plan, j, x), :], _ROWS_BY_ROWS) for x in cut]
    ds = [x * (y - _wide(ref.di[strip.queries, :], strip.width)) for strip, x, y in zip(cut, p, dp, strict=True)]
    ds = [x if t is None else x * (1.0 - t * t) for x, (_, t) in zip(ds, capped, strict=True)]
    p, low = [x.astype(dtype) for x in p], [x.astype(dtype) for x in ds]
    for first, last, having in columns(cut):
        rows = slice(cut[having[0]].row, cut[having[-1]].row + cut[having[-1]].rows)
        keys = pl.ds(pl.multiple_of(j * plan.grid.block_kv + first, LANES), last - first)

        def part(x: list, first: int = first, last: int = last, having: list[int] = having) -> jax.Array:
            return jnp.concatenate([x[n][:, first - cut[n].first : last - cut[n].first] for n in having], axis=0)

        ref.dv_sum[:, keys] += _dot(ref.do_t[:, rows], part(p))
        ref.dk_sum[:, keys] += _dot(ref.qu_t[:, rows], part(low))
    for strip, x in zip(cut, low, strict=True):
        ref.dqu[strip.queries, :] += _dot(x, _key_rows(plan, ref, j, strip))
    if not plan.relative:
        return
    for strip, x in zip(cut, ds, strict=True):
        for row, last, start, width in _bands(plan, i, j, kind, strip):
            ds_rows = x[row - strip.row : row - strip.row + LANES, : last - strip.first]
            dt = _move_left(plan, ds_rows, width).astype(dtype)
            ref.de[0, :, pl.ds(start, width)] += _dot(ref.qw_t[:, row : row + LANES], dt)
            ref.dqw[row : row + LANES, :] += _dot(dt, ref.e[pl.ds(start, width), :])


def _write_keys(plan: Plan, ref: Ref) -> None:
    """The sums of dk and dv, whole heads of them, as they are returned."""

    def block(j: Index, _: int) -> int:
        keys = pl.ds(pl.multiple_of(j * plan.grid.block_kv, LANES), plan.grid.block_kv)
        dk = (ref.dk_sum[:, keys] * plan.after_sum).T
        if plan.turned:
            dk = _turn_back(dk, ref.k_turn[0, keys, :], ref.k_turn[1, keys, :])
        ref.dk[0, keys, :] = dk.astype(ref.dk.dtype)
        ref.dv[0, keys, :] = ref.dv_sum[:, keys].T.astype(ref.dv.dtype)
        return 0

    jax.lax.fori_loop(0, plan.grid.blocks_kv, block, 0)


# ---- calls


@dataclasses.dataclass
class _Call:
    """Operands, results and scratch of a kernel, each with a name, collected for `pallas_call`."""

    plan: Plan
    inputs: list = dataclasses.field(default_factory=list)
    outputs: list = dataclasses.field(default_factory=list)
    scratch: list = dataclasses.field(default_factory=list)

    def read(self, name: str, array: jax.Array, block: Sides, index: Callable, buffers: int = 2) -> None:
        mode = None if buffers == 2 else pl.Buffered(buffers)
        self.inputs.append((name, array, pl.BlockSpec(block, index, pipeline_mode=mode)))

    def write(self, name: str, shape: Sides, dtype: DType, block: Sides, index: Callable) -> None:
        self.outputs.append((name, jax.ShapeDtypeStruct(shape, dtype), pl.BlockSpec(block, index)))

    def keep(self, name: str, shape: Sides, dtype: DType = jnp.float32) -> None:
        self.scratch.append((name, pltpu.VMEM(shape, dtype)))

    def run(self, kernel: Callable, name: str, grid: Sides, parallel: int, tables: tuple) -> list:
        names = ("entries", "counts", "q_offset", *(x[0] for x in (*self.inputs, *self.outputs, *self.scratch)))
        spec = pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=3,
            grid=grid,
            in_specs=[x[2] for x in self.inputs],
            out_specs=[x[2] for x in self.outputs],
            scratch_shapes=[x[1] for x in self.scratch],
        )
        semantics = ("parallel",) * parallel + ("arbitrary",) * (len(grid) - parallel)
        return pl.pallas_call(
            functools.partial(kernel, plan=self.plan, names=names),
            grid_spec=spec,
            out_shape=[x[1] for x in self.outputs],
            name=name,
            interpret=self.plan.interpret,
            compiler_params=pltpu.CompilerParams(dimension_semantics=semantics, vmem_limit_bytes=self.plan.vmem_limit),
        )(*tables, *(x[1] for x in self.inputs))


def forward_call(plan: Plan, tables: tuple, arrays: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
    """Runs the forward kernel.

    Args:
      tables: entries and counts of `schedule`, flat, and the offset `[1]`; int32.
      arrays: q `[B, S, H*K]`, k and v `[B, T, G*K]`; if relative e `[distances, H*K]`, u and w `[1, H*K]`; with
        segments q_segments `[B, 1, S]` and kv_ids `[B, 1, T]`; if turned q_turn `[2, S, K]` and k_turn `[2, T, K]`.
        S, T and K are padded.

    Returns:
      o `[B, S, H*K]` and lse `[B, H, 1, S]`.
    """
    block_q, size, dtype, rows = plan.grid.block_q, plan.head_dim, arrays["q"].dtype, len(arrays["q"])
    call = _Call(plan)
    _operands(call, arrays, ("q",), lambda h, b, i, *_: (h, _group(h, plan.heads // plan.groups), b, i))
    call.write("o", arrays["q"].shape, dtype, (1, block_q, size), lambda h, b, i, *_: (b, i, h))
    lse_shape = (rows, plan.heads, 1, plan.grid.padded_queries)
    call.write("lse", lse_shape, jnp.float32, (1, 1, 1, block_q), lambda h, b, i, *_: (b, h, 0, i))
    for name in ("qu", "qw") if plan.relative else ("qu",):
        call.keep(name, (block_q, size), dtype)
    for name in ("m", "l"):
        call.keep(name, (block_q, LANES))
    call.keep("acc", (block_q, size))
    if plan.grid.segments:
        call.keep("q_ids", (block_q, LANES), jnp.int32)
    o, lse = call.run(_forward, "attention_forward", (plan.heads, rows, plan.grid.blocks_q), 2, tables)
    return o, lse


def backward_call(plan: Plan, tables: tuple, arrays: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """Runs the backward kernel.

    Args:
      arrays: those of `forward_call`, its o and lse, the gradient do of o, and perhaps dlse `[B, H, 1, S]`.

    Returns:
      dq `[B, S, H*K]`, dk and dv `[B, T, G*K]`; if relative, dk and dv `[B, T, H*K]` (to be summed over the heads of a
      group; float32 if there is more than one), and in float32 de `[H, K, distances]`, still to be multiplied by
      `plan.after_sum`, du and dw `[H, 1, K]`.
    """
    block_q, size, dtype, rows = plan.grid.block_q, plan.head_dim, arrays["q"].dtype, len(arrays["q"])
    outer = plan.heads if plan.relative else plan.groups
    inner, shared = plan.heads // outer, outer // plan.groups
    call = _Call(plan)
    _operands(call, arrays, ("q", "do", "o"), lambda a, b, c, i, *_: (a * inner + c, _group(a, shared), b, i))
    for name in ("lse", "dlse"):
        if name in arrays:
            call.read(name, arrays[name], (1, 1, 1, block_q), lambda a, b, c, i, *_: (b, a * inner + c, 0, i))
    call.write("dq", arrays["q"].shape, dtype, (1, block_q, size), lambda a, b, c, i, *_: (b, i, a * inner + c))
    keys, keys_dtype = plan.grid.padded_keys, dtype if outer == plan.groups else jnp.float32
    for name in ("dk", "dv"):
        call.write(name, (rows, keys, outer * size), keys_dtype, (1, keys, size), lambda a, b, c, i, *_: (b, 0, a))
    if plan.relative:
        for name, shape in (("de", (size, plan.distances)), ("du", (1, size)), ("dw", (1, size))):
            call.write(name, (plan.heads, *shape), jnp.float32, (1, *shape), lambda a, b, c, i, *_: (a, 0, 0))
    for bias in ("u", "w") if plan.relative else ("u",):
        call.keep(f"q{bias}", (block_q, size), dtype)
        call.keep(f"q{bias}_t", (size, block_q), dtype)
        call.keep(f"dq{bias}", (block_q, size))
    call.keep("do_t", (size, block_q), dtype)
    for name in ("lse_column", "di"):
        call.keep(name, (block_q, LANES))
    for name in ("dk_sum", "dv_sum"):
        call.keep(name, (size, keys))
    if plan.grid.segments:
        call.keep("q_ids", (block_q, LANES), jnp.int32)
    grid, parallel = (outer, rows, inner, plan.grid.blocks_q), 1 if plan.relative else 2
    results = call.run(_backward, "attention_backward", grid, parallel, tables)
    return dict(zip((x[0] for x in call.outputs), results, strict=True))


def _group(head: Index, heads_per_group: int) -> Index:
    """Which group a head reads. (`//` rounds towards minus infinity, which costs more.)"""
    return head if heads_per_group == 1 else jax.lax.div(head, jnp.int32(heads_per_group))


def _operands(call: _Call, arrays: dict, by_block: tuple[str, ...], where: Callable) -> None:
    """What both kernels read: `where` turns grid indices into head, group, row of the batch and block of queries."""
    plan, size = call.plan, call.plan.head_dim

    def at(pick: Callable) -> Callable:
        return lambda *grid: pick(*where(*grid))

    for name in by_block:
        call.read(name, arrays[name], (1, plan.grid.block_q, size), at(lambda h, g, b, i: (b, i, h)))
    for name in ("k", "v"):
        call.read(name, arrays[name], (1, plan.grid.padded_keys, size), at(lambda h, g, b, i: (b, 0, g)))
    if plan.relative:
        call.read("e", arrays["e"], (plan.distances, size), at(lambda h, g, b, i: (0, h)))
        for name in ("u", "w"):
            call.read(name, arrays[name], (1, size), at(lambda h, g, b, i: (0, h)))
    if plan.turned:
        call.read("q_turn", arrays["q_turn"], (2, plan.grid.block_q, size), at(lambda h, g, b, i: (0, i, 0)))
        block = (2, plan.grid.padded_keys, size)
        call.read("k_turn", arrays["k_turn"], block, at(lambda h, g, b, i: (0, 0, 0)), buffers=1)  # never another
        call.keep("k_turned", (plan.grid.padded_keys, size), arrays["k"].dtype)
    if plan.grid.segments:
        call.read("q_segments", arrays["q_segments"], (1, 1, plan.grid.block_q), at(lambda h, g, b, i: (b, 0, i)))
        call.read("kv_ids", arrays["kv_ids"], (1, 1, plan.grid.padded_keys), at(lambda h, g, b, i: (b, 0, 0)))
