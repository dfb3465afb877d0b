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
from jax.ad_checkpoint import checkpoint_name

from chinchilla_jax.base.chips import CHIPS
from chinchilla_jax.kernels import target
from chinchilla_jax.kernels.call import AttentionCall, AttentionError, Shape
from chinchilla_jax.kernels.fused_kernel import Plan, backward_call, forward_call
from chinchilla_jax.kernels.plain import rows_of_distances
from chinchilla_jax.kernels.schedule import MASKED, Grid, Kind, schedule, tile_kinds
from chinchilla_jax.kernels.tiles import (
    LANES,
    SCALAR_LIMIT,
    SMALLEST,
    Tiles,
    compiler_limit,
    limit,
    ranked,
    vmem_bytes,
    whole_lanes,
)

LARGEST_HEAD = 256
FEWEST = 1024  # queries or keys that are worth a call of their own
# Names of what the backward pass needs of the forward pass, for rematerialisation policies.
OUTPUT, LSE = "attention_output", "attention_lse"


def fused_attention(call: AttentionCall, tiles: Tiles | None = None, backward_tiles: Tiles | None = None):
    """`attention.attention` by the TPU kernels of `fused_kernel`.

    Where no TPU is compiled for, the kernels run in JAX step by step: slow, for tests.

    Args:
      tiles, backward_tiles: instead of those of `tiles.ranked`.

    Raises:
      AttentionError: heads larger than 256; a TPU generation without tiles; one head whose smallest tiles do not fit
        the chip's memory.
    """
    shape = call.shape
    if shape.K > LARGEST_HEAD:
        raise AttentionError(
            "q_BxSxHxK",
            f'heads of {shape.K} are larger than {LARGEST_HEAD}, the largest of the fused kernel: use "blockwise"',
        )
    call = call.replace(q_segment_ids_BxS=call.ids_of_queries)
    at_once = _queries_at_once(_Problem.of(call), tiles, backward_tiles)
    parts = [
        _some_queries(call.of_queries(first, min(first + at_once, shape.S)), tiles, backward_tiles)
        for first in range(0, shape.S, at_once)
    ]
    if len(parts) == 1:
        return parts[0]
    if call.return_lse:
        return jnp.concatenate([out for out, _ in parts], axis=1), jnp.concatenate([lse for _, lse in parts], axis=2)
    return jnp.concatenate(parts, axis=1)


def _some_queries(call: AttentionCall, tiles: Tiles | None, backward_tiles: Tiles | None):
    """Queries that fit the chip, and of the keys that they may see as many at a time as fit."""
    if call.offset_is_static:
        call = call.of_keys(0, max(1, min(call.shape.T, call.q_offset + call.shape.S)))
    forward, at_once, _ = _fit(_Problem.of(call), tiles, backward=False)
    keys = call.shape.T
    with_lse = call.replace(return_lse=call.return_lse or at_once < keys)
    parts = [
        _one_call(with_lse.of_keys(first, min(first + at_once, keys)), forward, backward_tiles)
        for first in range(0, keys, at_once)
    ]
    if len(parts) == 1:
        return parts[0]
    out, lse = merge(parts)
    return (out, lse) if call.return_lse else out


@dataclasses.dataclass(frozen=True)
class _Problem:
    """What tiles are chosen for: a part of the queries and keys of a call, `shape` and `q_offset` those of the part."""

    call: AttentionCall
    shape: Shape
    q_offset: int | jax.Array

    @classmethod
    def of(cls, call: AttentionCall) -> _Problem:
        """All queries and keys."""
        return cls(call, call.shape, call.q_offset)

    @property
    def relative(self) -> bool:
        """Whether there is a relative term."""
        return self.call.r_NxHxK is not None

    @property
    def turned(self) -> bool:
        """Whether queries and keys are to be rotated."""
        return self.call.q_turn_2xSxK is not None

    @property
    def segments(self) -> bool:
        """Whether attention stays inside documents."""
        return self.call.segment_ids_BxT is not None

    @property
    def size(self) -> int:
        """Numbers a head has when padded."""
        return whole_lanes(self.shape.K)

    def with_keys(self, first: int, count: int) -> _Problem:
        """The same queries, and only keys `first : first + count`."""
        shape = dataclasses.replace(self.shape, T=count)
        return dataclasses.replace(self, shape=shape, q_offset=self.q_offset - first)

    def with_queries(self, first: int, count: int) -> _Problem:
        """The same keys, and only queries `first : first + count`."""
        shape = dataclasses.replace(self.shape, S=count)
        return dataclasses.replace(self, shape=shape, q_offset=self.q_offset + first)

    def grid(self, tiles: Tiles, queries_of: int = 1) -> Grid:
        """Args: queries_of: what the padded queries have to be a multiple of, besides the block."""
        s, t, multiple = self.shape.S, self.shape.T, math.lcm(tiles.block_q, queries_of)
        return Grid(
            queries=s,
            keys=t,
            padded_queries=-(-s // multiple) * multiple,
            padded_keys=-(-t // tiles.block_kv) * tiles.block_kv,
            block_q=tiles.block_q,
            block_kv=tiles.block_kv,
            q_offset=self.q_offset if isinstance(self.q_offset, int) else None,
            window=self.call.window,
            segments=self.segments,
        )

    def distances(self, grid: Grid, kinds: tuple[Kind, ...], strip: int) -> int:
        """Rows of e that tiles of these kinds, in strips of so many queries, can touch."""
        if not self.relative:
            return 0
        rows = grid.padded_queries + grid.padded_keys
        if grid.q_offset is None:
            return rows
        future = grid.block_q + grid.block_kv if MASKED in kinds else strip  # of the tiles on the diagonal
        return max(min(rows, whole_lanes(grid.padded_queries + grid.q_offset) + future), grid.block_kv + LANES)

    def vmem_bytes(self, tiles: Tiles, grid: Grid, distances: int, backward: bool) -> int:
        """Estimated memory of a kernel."""
        return vmem_bytes(
            tiles,
            backward=backward,
            keys=grid.padded_keys,
            size=self.size,
            distances=distances,
            itemsize=self.call.q_BxSxHxK.dtype.itemsize,
            turned=self.turned,
            shared=self.shape.G < self.shape.H,
            masked=MASKED in tile_kinds(grid),
            capped=self.call.softcap is not None,
        )


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


def _queries_at_once(problem: _Problem, *tiles: Tiles | None) -> int:
    """How many queries may go at once: as many as have tiles of a good size in both passes, or else any tiles.

    Args:
      tiles: of the forward and of the backward pass, if they are prescribed.

    Raises:
      AttentionError: not even one tile fits the chip.
    """
    shape, counts = problem.shape, [problem.shape.S]
    while counts[-1] > LANES:
        counts.append(whole_lanes(-(-counts[-1] // 2)))
    for good in (True, False):
        for count in counts:
            part = problem.with_queries(shape.S - count, count)  # the last: the farthest from keys
            fits = [_fit(part, one, backward=backward) for one, backward in zip(tiles, (False, True), strict=True)]
            if all(fit and (fit[2] or not good) for fit in fits) and (count >= FEWEST or not good or count == shape.S):
                return count
    raise AttentionError(
        "q_BxSxHxK",
        f"not even one tile of heads of {shape.K} fits the memory of "
        f'{target.generation()} with {shape.T} keys: use "blockwise"',
    )


def _fit(problem: _Problem, prescribed: Tiles | None, *, backward: bool) -> tuple[Tiles, int, bool] | None:
    """Tiles of a pass, how many keys at once may take part for it to fit the chip, and whether the tiles are good ones.

    The keys of a head stay in vector memory while its queries pass by. If they are too many, the pass takes halves,
    quarters and so on of them, one after the other: sooner than small tiles, which cost more. None: nothing fits.
    """
    generation, shape = target.generation(), problem.shape
    if generation is None:
        return prescribed or SMALLEST, shape.T, True
    good = small = [prescribed]
    if prescribed is None:
        good = ranked(
            generation,
            backward=backward,
            relative=problem.relative,
            size=problem.size,
            documents=problem.segments,
        )
        small = [Tiles(256, 256), SMALLEST]
    for candidates, fewest, are_good in ((good, FEWEST, True), (small, LANES, False)):
        keys = shape.T
        while True:
            for tiles in candidates:
                tiles = tiles.shrunk(shape.S, keys)
                grid = problem.with_keys(0, keys).grid(tiles)
                kinds = (MASKED,) if problem.segments else tile_kinds(grid)
                distances = problem.distances(grid, kinds, tiles.strip)
                if problem.vmem_bytes(tiles, grid, distances, backward) <= limit(generation):
                    return tiles, keys, are_good
            if keys <= fewest:
                break
            keys = whole_lanes(-(-keys // 2))
    return None


def _one_call(call: AttentionCall, forward: Tiles, backward: Tiles | None):
    """Lays out and pads, runs, undoes both."""
    problem = _Problem.of(call)
    shape, size = problem.shape, problem.size
    backward, at_once, _ = _fit(problem, backward, backward=True)
    queries_of = math.lcm(forward.block_q, backward.block_q)
    pieces = [(0, shape.T, forward, False)]
    pieces += [(first, min(at_once, shape.T - first), backward, True) for first in range(0, shape.T, at_once)]
    passes, tables = zip(*(_pass(problem, queries_of, *piece) for piece in pieces), strict=True)
    queries = passes[0].plan.grid.padded_queries
    keys = max(p.first + p.plan.grid.padded_keys for p in passes)
    halves = 2 if problem.turned else 1
    arrays = {
        "q": _lay_out(call.q_BxSxHxK, queries, size, halves),
        "k": _lay_out(call.k_BxTxGxK, keys, size, halves),
        "v": _lay_out(call.v_BxTxGxK, keys, size),
    }
    constants = {}
    if problem.relative:
        rows = max(p.first + p.plan.distances for p in passes)
        e = rows_of_distances(call.r_NxHxK, call.q_offset + queries - 1, rows)
        arrays["e"] = _lay_out(e[None], rows, size)[0]
        for name, bias_HxK in (("u", call.content_bias_HxK), ("w", call.position_bias_HxK)):
            arrays[name] = _lay_out(bias_HxK[None, None], 1, size)[0]
    if problem.turned:
        for name, turn, length in (("q_turn", call.q_turn_2xSxK, queries), ("k_turn", call.k_turn_2xTxK, keys)):
            constants[name] = _lay_out(turn[:, :, None].astype(jnp.float32), length, size, halves)
    if problem.segments:
        constants["q_segments"] = jnp.pad(call.q_segment_ids_BxS, [(0, 0), (0, queries - shape.S)])[:, None]
        constants["kv_ids"] = jnp.pad(call.segment_ids_BxT, [(0, 0), (0, keys - shape.T)])[:, None]
    out, lse = _run(passes, call.return_lse, arrays, (tables, constants))
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


def _pass(
    problem: _Problem, queries_of: int, first: int, count: int, tiles: Tiles, backward: bool
) -> tuple[_Pass, tuple]:
    """The plan of the kernel call on `count` keys from `first` on, and its tables."""
    generation, call, part = target.generation(), problem.call, problem.with_keys(first, count)
    grid = part.grid(tiles, queries_of)
    kinds = tile_kinds(grid)
    distances = part.distances(grid, kinds, tiles.strip)
    plan = Plan(
        grid=grid,
        kinds=kinds,
        heads=part.shape.H,
        groups=part.shape.G,
        head_dim=part.size,
        strip=tiles.strip,
        scale=call.scale,
        softcap=call.softcap,
        relative=part.relative,
        turned=part.turned,
        distances=distances,
        rolls=generation is not None and CHIPS[generation].core.rolls,
        vmem_limit=compiler_limit(generation, part.vmem_bytes(tiles, grid, distances, backward)),
        interpret=generation is None,
    )
    kv_ids = call.segment_ids_BxT[:, first : first + count] if part.segments else None
    tables = schedule(grid, kinds, part.q_offset, call.q_segment_ids_BxS, kv_ids)
    if generation is not None and 4 * sum(table.size for table in tables) > SCALAR_LIMIT:
        raise AttentionError(
            "segment_ids_BxT",
            f"the list of tiles of {part.shape.B} rows of {part.shape.S} queries "
            f"and {count} keys does not fit the scalar memory of {generation}: fewer rows on a device",
        )
    offset = jnp.reshape(jnp.asarray(part.q_offset, jnp.int32), 1)
    return _Pass(plan, first), (*(table.reshape(-1) for table in tables), offset)  # flat: scalar memory pads rows


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


def _run_forward(passes, lse_is_used, arrays, constants):
    out, lse = _run(passes, lse_is_used, arrays, constants)
    out, lse = checkpoint_name(out, OUTPUT), checkpoint_name(lse, LSE)
    return (out, lse), (arrays, constants, out, lse)


def _run_backward(passes, lse_is_used, residuals, gradients):
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
