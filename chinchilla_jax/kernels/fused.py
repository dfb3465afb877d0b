"""How does a call of attention become calls of the TPU kernels, and their gradients those of the arguments?

Arrays are padded and laid out here (queries `[B, S, H*K]`: a block of one head is a block of columns, so no array is
transposed), tiles chosen, tables of tiles made. JAX differentiates that; the kernels have a rule of their own.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from chinchilla_jax.kernels.call import Attended, AttentionCall, AttentionError
from chinchilla_jax.kernels.fused_kernel import Plan, backward_call, forward_call
from chinchilla_jax.kernels.plain import rows_of_distances
from chinchilla_jax.kernels.schedule import MASKED, Grid, Kind, schedule, tile_kinds
from chinchilla_jax.kernels.tiles import (
    LANES,
    SCALAR_LIMIT,
    SMALLEST,
    Tiles,
    compiler_limit,
    core_of,
    limit,
    ranked,
    tpu_generation,
    vmem_bytes,
    whole_lanes,
)

LARGEST_HEAD = 256
FEWEST = 1024  # queries or keys that are worth a call of their own
# Names of what the backward pass needs of the forward pass, for rematerialisation policies.
OUTPUT, LSE = "attention_output", "attention_lse"


def fused_attention(call: AttentionCall, tiles: Tiles | None = None, backward_tiles: Tiles | None = None) -> Attended:
    """`attention.attention` by the TPU kernels of `fused_kernel`, with tiles of `tiles.ranked` unless they are given.

    Where no TPU is compiled for, the kernels run in JAX step by step: slow, for tests.

    Raises:
      AttentionError: heads larger than 256; a TPU generation without tiles; one head whose smallest tiles do not fit
        the chip's memory.
    """
    shape = call.shape
    if shape.K > LARGEST_HEAD:
        large = f"heads of {shape.K} are larger than {LARGEST_HEAD}, the largest of the fused kernel"
        raise AttentionError("q_BxSxHxK", f'{large}: use "blockwise"')
    call = call.replace(q_segment_ids_BxS=call.ids_of_queries)
    at_once = _queries_at_once(call, tiles, backward_tiles)
    cuts = (call.of_queries(first, min(first + at_once, shape.S)) for first in range(0, shape.S, at_once))
    parts = [_some_queries(cut, tiles, backward_tiles) for cut in cuts]
    if len(parts) == 1:
        return parts[0]
    if call.return_lse:
        return jnp.concatenate([out for out, _ in parts], axis=1), jnp.concatenate([lse for _, lse in parts], axis=2)
    return jnp.concatenate(parts, axis=1)


def _some_queries(call: AttentionCall, tiles: Tiles | None, backward_tiles: Tiles | None) -> Attended:
    """Queries that fit the chip, and of the keys that they may see as many at a time as fit."""
    if call.offset_is_static:
        call = call.of_keys(0, max(1, min(call.shape.T, call.q_offset + call.shape.S)))
    keys = call.shape.T
    fit = _fit(call, _Part(call.shape.S, keys, call.q_offset), tiles, backward=False)
    assert fit is not None, "`_queries_at_once` saw to that"
    forward, at_once, _ = fit
    with_lse = call.replace(return_lse=call.return_lse or at_once < keys)
    cuts = (with_lse.of_keys(first, min(first + at_once, keys)) for first in range(0, keys, at_once))
    parts = [_one_call(cut, forward, backward_tiles) for cut in cuts]
    if len(parts) == 1:
        return parts[0]
    out, lse = merge(parts)
    return (out, lse) if call.return_lse else out


class _Part(NamedTuple):
    """Queries and keys of a call that a kernel takes at once, and where the first query stands among these keys."""

    queries: int
    keys: int
    q_offset: int | jax.Array


def _plan(call: AttentionCall, part: _Part, tiles: Tiles, *, backward: bool, queries_of: int = 1) -> tuple[Plan, int]:
    """The plan of a kernel call, and its estimated memory. Padded queries are a multiple of `queries_of`, too."""
    generation, shape, multiple = tpu_generation(), call.shape, math.lcm(tiles.block_q, queries_of)
    grid = Grid(
        queries=part.queries,
        keys=part.keys,
        padded_queries=-(-part.queries // multiple) * multiple,
        padded_keys=-(-part.keys // tiles.block_kv) * tiles.block_kv,
        block_q=tiles.block_q,
        block_kv=tiles.block_kv,
        q_offset=part.q_offset if isinstance(part.q_offset, int) else None,
        window=call.window,
        segments=call.segment_ids_BxT is not None,
    )
    kinds = tile_kinds(grid)
    distances = _distances(grid, kinds, tiles.strip) if call.r_NxHxK is not None else 0
    estimate = vmem_bytes(
        tiles,
        backward=backward,
        keys=grid.padded_keys,
        size=whole_lanes(shape.K),
        distances=distances,
        itemsize=call.q_BxSxHxK.dtype.itemsize,
        turned=call.q_turn_2xSxK is not None,
        shared=shape.G < shape.H,
        masked=MASKED in kinds,
        capped=call.softcap is not None,
    )
    plan = Plan(
        grid=grid,
        kinds=kinds,
        heads=shape.H,
        groups=shape.G,
        head_dim=whole_lanes(shape.K),
        strip=tiles.strip,
        scale=call.scale,
        softcap=call.softcap,
        relative=call.r_NxHxK is not None,
        turned=call.q_turn_2xSxK is not None,
        distances=distances,
        rolls=generation is not None and core_of(generation).rolls,
        vmem_limit=compiler_limit(generation, estimate),
        interpret=generation is None,
    )
    return plan, estimate


def _distances(grid: Grid, kinds: tuple[Kind, ...], strip: int) -> int:
    """Rows of e that tiles of these kinds, in strips of so many queries, can touch."""
    rows = grid.padded_queries + grid.padded_keys
    if grid.q_offset is None:
        return rows
    future = grid.block_q + grid.block_kv if MASKED in kinds else strip  # of the tiles on the diagonal
    return max(min(rows, whole_lanes(grid.padded_queries + grid.q_offset) + future), grid.block_kv + LANES)


def merge(parts: list[tuple[jax.Array, jax.Array]]) -> tuple[jax.Array, jax.Array]:
    """Attention to all keys from attention to sets of them: pairs of output `[B, S, H, K]` and lse `[B, H, S]`."""
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


def _queries_at_once(call: AttentionCall, *prescribed: Tiles | None) -> int:
    """How many queries may go at once: as many as have tiles of a good size in both passes, or else any tiles.

    Tiles of the forward and of the backward pass may be prescribed.
    """
    shape, counts = call.shape, [call.shape.S]
    while counts[-1] > LANES:
        counts.append(whole_lanes(-(-counts[-1] // 2)))
    for good in (True, False):
        for count in counts:
            last = _Part(count, shape.T, call.q_offset + (shape.S - count))  # the farthest from keys
            fits = [_fit(call, last, tiles, backward=n > 0) for n, tiles in enumerate(prescribed)]
            if all(fit and (fit[2] or not good) for fit in fits) and (count >= FEWEST or not good or count == shape.S):
                return count
    nothing = f"not even one tile of heads of {shape.K} fits the memory of {tpu_generation()} with {shape.T} keys"
    raise AttentionError("q_BxSxHxK", f'{nothing}: use "blockwise"')


def _fit(
    call: AttentionCall, part: _Part, prescribed: Tiles | None, *, backward: bool
) -> tuple[Tiles, int, bool] | None:
    """Tiles of a pass, how many keys at once may take part for it to fit the chip, and whether the tiles are good ones.

    The keys of a head stay in vector memory while its queries pass by. If they are too many, the pass takes halves,
    quarters and so on of them, one after the other: sooner than small tiles, which cost more. None: nothing fits.
    """
    generation = tpu_generation()
    if generation is None:
        return prescribed or SMALLEST, part.keys, True
    if prescribed:
        good = small = [prescribed]
    else:
        relative, documents = call.r_NxHxK is not None, call.segment_ids_BxT is not None
        size = whole_lanes(call.shape.K)
        good = ranked(generation, backward=backward, relative=relative, size=size, documents=documents)
        small = [Tiles(256, 256), SMALLEST]
    for candidates, fewest, are_good in ((good, FEWEST, True), (small, LANES, False)):
        keys = part.keys
        while True:
            for tiles in candidates:
                tiles = tiles.shrunk(part.queries, keys)
                _, estimate = _plan(call, part._replace(keys=keys), tiles, backward=backward)
                if estimate <= limit(generation):
                    return tiles, keys, are_good
            if keys <= fewest:
                break
            keys = whole_lanes(-(-keys // 2))
    return None


def _one_call(call: AttentionCall, forward: Tiles, backward: Tiles | None) -> Attended:
    """Lays out and pads, runs, undoes both."""
    shape, size = call.shape, whole_lanes(call.shape.K)
    fit = _fit(call, _Part(shape.S, shape.T, call.q_offset), backward, backward=True)
    assert fit is not None, "`_queries_at_once` saw to that"
    backward, at_once, _ = fit
    queries_of = math.lcm(forward.block_q, backward.block_q)
    passes, tables = [], []
    pieces = [(0, shape.T, forward, False)]
    pieces += [(first, min(at_once, shape.T - first), backward, True) for first in range(0, shape.T, at_once)]
    for first, count, tiles, is_backward in pieces:
        part = _Part(shape.S, count, call.q_offset - first)
        plan, _ = _plan(call, part, tiles, backward=is_backward, queries_of=queries_of)
        passes.append(_Pass(plan, first))
        tables.append(_tables(call, part, plan, first))
    queries = passes[0].plan.grid.padded_queries
    keys = max(p.first + p.plan.grid.padded_keys for p in passes)
    halves = 1 if call.q_turn_2xSxK is None else 2
    arrays = {
        "q": _lay_out(call.q_BxSxHxK, queries, size, halves),
        "k": _lay_out(call.k_BxTxGxK, keys, size, halves),
        "v": _lay_out(call.v_BxTxGxK, keys, size),
    }
    constants = {}
    if call.r_NxHxK is not None:
        rows = max(p.first + p.plan.distances for p in passes)
        e = rows_of_distances(call.r_NxHxK, call.q_offset + queries - 1, rows)
        arrays["e"] = _lay_out(e[None], rows, size)[0]
        for name, bias in (("u", "content_bias_HxK"), ("w", "position_bias_HxK")):
            arrays[name] = _lay_out(call.arrays[bias][None, None], 1, size)[0]
    if call.q_turn_2xSxK is not None:
        for name, turn, length in (("q_turn", "q_turn_2xSxK", queries), ("k_turn", "k_turn_2xTxK", keys)):
            constants[name] = _lay_out(call.arrays[turn][:, :, None].astype(jnp.float32), length, size, halves)
    if call.segment_ids_BxT is not None:
        constants["q_segments"] = jnp.pad(call.q_segment_ids_BxS, [(0, 0), (0, queries - shape.S)])[:, None]
        constants["kv_ids"] = jnp.pad(call.segment_ids_BxT, [(0, 0), (0, keys - shape.T)])[:, None]
    out, lse = _run(tuple(passes), call.return_lse, arrays, (tuple(tables), constants))
    out = out.reshape(shape.B, queries, shape.H, size)[:, : shape.S, :, : shape.K]
    return (out, lse[:, :, 0, : shape.S]) if call.return_lse else out


@dataclasses.dataclass(frozen=True)
class _Pass:
    """A kernel call on the padded keys from `first` on."""

    plan: Plan
    first: int

    def of(self, arrays: dict[str, jax.Array]) -> dict[str, jax.Array]:
        """The arrays, of keys only those that take part."""
        keys = slice(self.first, self.first + self.plan.grid.padded_keys)
        distances = slice(self.first, self.first + self.plan.distances)
        cuts = dict.fromkeys(("k", "v", "k_turn"), (slice(None), keys)) | {"kv_ids": (..., keys), "e": (distances,)}
        return {name: x[cuts[name]] if name in cuts else x for name, x in arrays.items()}


def _tables(call: AttentionCall, part: _Part, plan: Plan, first: int) -> tuple[jax.Array, ...]:
    """Of a kernel call on the keys from `first` on: the tiles to visit, and the offset."""
    generation, ids = tpu_generation(), call.segment_ids_BxT
    kv_ids = None if ids is None else ids[:, first : first + part.keys]
    tables = schedule(plan.grid, plan.kinds, part.q_offset, call.q_segment_ids_BxS, kv_ids)
    if generation is not None and 4 * sum(table.size for table in tables) > SCALAR_LIMIT:
        what = f"the list of tiles of {call.shape.B} rows of {part.queries} queries and {part.keys} keys"
        fix = f"does not fit the scalar memory of {generation}: fewer rows on a device"
        raise AttentionError("segment_ids_BxT", f"{what} {fix}")
    offset = jnp.reshape(jnp.asarray(part.q_offset, jnp.int32), 1)
    return (*(table.reshape(-1) for table in tables), offset)  # flat: scalar memory pads rows


def _lay_out(x_BxSxHxK: jax.Array, length: int, size: int, halves: int = 1) -> jax.Array:
    """`[B, length, H * size]`, padded with zeros: the heads at their end, or at the end of each half."""
    b, s, h, k = x_BxSxHxK.shape
    cut = x_BxSxHxK.reshape(b, s, h, halves, k // halves)
    widths = [(0, 0), (0, length - s), (0, 0), (0, 0), (0, (size - k) // halves)]
    return jnp.pad(cut, widths).reshape(b, length, h * size)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _run(passes: tuple[_Pass, ...], lse_is_used: bool, arrays: dict, constants: tuple) -> tuple[jax.Array, jax.Array]:
    """The forward kernel, the first of the passes. `constants`: tables of all passes, and arrays without gradients."""
    tables, fixed = constants
    return forward_call(passes[0].plan, tables[0], passes[0].of(arrays | fixed))


def _run_forward(passes: tuple[_Pass, ...], lse_is_used: bool, arrays: dict, constants: tuple) -> tuple:
    out, lse = _run(passes, lse_is_used, arrays, constants)
    out, lse = checkpoint_name(out, OUTPUT), checkpoint_name(lse, LSE)
    return (out, lse), (arrays, constants, out, lse)


def _run_backward(
    passes: tuple[_Pass, ...], lse_is_used: bool, residuals: tuple, gradients: tuple
) -> tuple[dict, None]:
    """The backward kernel, once for each set of keys: lse is of all of them, so that their gradients add up."""
    arrays, (tables, fixed), out, lse = residuals
    real = jnp.arange(lse.shape[-1]) < passes[0].plan.grid.queries
    lse = jnp.where(real, lse, -jnp.inf)  # padded queries saw no key: tiles of this pass may show them others
    inputs = arrays | fixed | {"o": out, "lse": lse, "do": gradients[0]}
    if lse_is_used:
        inputs["dlse"] = jnp.where(lse == -jnp.inf, 0.0, gradients[1])  # nothing there to have a gradient
    parts = [
        (one.first, _gradients(one.plan, backward_call(one.plan, table, one.of(inputs))))
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
    gradients = {"q": d["dq"], "k": d["dk"], "v": d["dv"]}
    if plan.relative:
        if plan.heads != plan.groups:  # each head of a group has its own gradient of the keys: they are added up
            for name in ("k", "v"):
                x = gradients[name].reshape(*d["dk"].shape[:2], plan.groups, -1, plan.head_dim)
                gradients[name] = x.sum(3).reshape(*x.shape[:2], -1)
        gradients["e"] = (d["de"] * plan.after_sum).transpose(2, 0, 1).reshape(plan.distances, -1)
        gradients |= {name: d[f"d{name}"].reshape(1, -1) for name in ("u", "w")}
    return gradients


_run.defvjp(_run_forward, _run_backward)
