"""How are tokens multiplied by the matrices of their own experts, however many of them each expert has?

Rows are laid out expert by expert. On a TPU they are multiplied by `jax.lax.ragged_dot`, which is told how many rows
each expert has. Elsewhere that masks the rows of one expert after the other and multiplies all of them by all matrices,
so there the rows of an expert fill up whole tiles, each tile is multiplied by one matrix, and the filling is wasted: at
most a tile for each expert. Nothing is dropped in either. All moves are gathers, forward and backward: every row knows
where it comes from and where it goes.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from chinchilla_jax.kernels.tiles import tpu_generation

LARGEST_TILE = 128


class Layout(NamedTuple):
    """Where A rows, each for one of E experts or for none, lie among M places, which are cut into T tiles.

    The rows of a tile are for one expert. Indices out of range stand for nowhere: a row for no expert, an empty place.
    """

    place_A: jax.Array
    row_M: jax.Array
    sizes_E: jax.Array  # places of each expert, empty ones in its last tile included
    expert_T: jax.Array


def lay_out(expert_A: jax.Array, experts: int, tile: int = 1) -> Layout:
    """The layout of rows for the experts 0 to `experts` - 1; a row for `experts` is for none."""
    rows = expert_A.shape[0]
    places = -(-rows // tile) * tile + (experts * tile if tile > 1 else 0)
    order_A = jnp.argsort(expert_A, stable=True)
    rank_A = jnp.zeros(rows, jnp.int32).at[order_A].set(jnp.arange(rows, dtype=jnp.int32))
    counts_E = jnp.sum(jax.nn.one_hot(expert_A, experts, dtype=jnp.int32), axis=0)
    sizes_E = -(-counts_E // tile) * tile
    shift_E = (jnp.cumsum(sizes_E) - sizes_E) - (jnp.cumsum(counts_E) - counts_E)
    shift_A = shift_E.at[expert_A].get(mode="fill", fill_value=places)
    place_A = jnp.minimum(rank_A + shift_A, places)
    row_M = jnp.full(places, rows, jnp.int32).at[place_A].set(jnp.arange(rows, dtype=jnp.int32), mode="drop")
    first_T = jnp.arange(0, places, tile)
    expert_T = jnp.minimum(jnp.searchsorted(jnp.cumsum(sizes_E), first_T, side="right"), experts - 1)
    return Layout(place_A, row_M, sizes_E, expert_T)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def move(x: jax.Array, source_M: jax.Array, target_A: jax.Array, copies: int = 1) -> jax.Array:
    """`y[m] = x[source_M[m] // copies]`, or zeros where there is no such row.

    Row a of x, or copy a of a row, goes to `target_A[a]`, and nowhere else: which makes the gradient a gather too.
    """
    return x.at[source_M // copies].get(mode="fill", fill_value=0)


def _move_forward(x: jax.Array, source_M: jax.Array, target_A: jax.Array, copies: int) -> tuple:
    return move(x, source_M, target_A, copies), target_A


def _move_backward(copies: int, target_A: jax.Array, dy: jax.Array) -> tuple:
    dx_A = dy.at[target_A].get(mode="fill", fill_value=0)
    return jnp.sum(dx_A.reshape(-1, copies, *dx_A.shape[1:]), axis=1), None, None


move.defvjp(_move_forward, _move_backward)


def expert_rows(x_NxD: jax.Array, expert_A: jax.Array, w: dict[str, jax.Array]) -> jax.Array:
    """What the expert of each row makes of it, `[A, D]`; zeros for a row with no expert.

    Args:
      x_NxD: rows, or `A / N` copies of each.
      expert_A: which of the E experts; E is none.
      w: `up` `[E, D, F]`, `down` `[E, F, D]`, and perhaps `gate` as `up`, `up_bias` and `gate_bias` `[E, F]`.
    """
    experts, copies = w["up"].shape[0], expert_A.shape[0] // x_NxD.shape[0]
    ragged = tpu_generation() is not None
    to = lay_out(expert_A, experts, 1 if ragged else _tile(expert_A.shape[0], experts))
    x_MxD = move(x_NxD, to.row_M, to.place_A, copies)

    def multiply(x: jax.Array, w: jax.Array) -> jax.Array:
        return jax.lax.ragged_dot(x, w, to.sizes_E) if ragged else multiply_tiles(x, w, to.expert_T)

    def inner(name: str) -> jax.Array:
        h_MxF = multiply(x_MxD, w[name])
        if f"{name}_bias" not in w:
            return h_MxF
        tile = h_MxF.shape[0] // to.expert_T.shape[0]
        return h_MxF + jnp.repeat(w[f"{name}_bias"][to.expert_T], tile, axis=0, total_repeat_length=h_MxF.shape[0])

    h_MxF = nn.silu(inner("gate")) * inner("up") if "gate" in w else nn.gelu(inner("up"), approximate=True)
    return move(multiply(h_MxF, w["down"]), to.place_A, to.row_M)


def _tile(rows: int, experts: int) -> int:
    """Rows of a tile: about a quarter of what an expert has on average, so that an eighth is filling."""
    tile = 8
    while tile < LARGEST_TILE and 8 * tile * experts <= rows:
        tile *= 2
    return tile


@jax.custom_vjp
def multiply_tiles(x_MxD: jax.Array, w_ExDxF: jax.Array, expert_T: jax.Array) -> jax.Array:
    """Rows `[M, D]`, in tiles of equal length, each tile times the matrix of its expert: `[M, F]`.

    Tile by tile: a product of all at once would first copy a matrix for every tile. The gradient of the matrices is
    added up in float32.
    """
    x_TxPxD = x_MxD.reshape(expert_T.shape[0], -1, x_MxD.shape[-1])
    y_TxPxF = jax.lax.map(lambda tile: tile[0] @ w_ExDxF[tile[1]], (x_TxPxD, expert_T))
    return y_TxPxF.reshape(x_MxD.shape[0], -1)


def _tiles_backward(saved: tuple[jax.Array, jax.Array, jax.Array], dy_MxF: jax.Array) -> tuple:
    x_MxD, w_ExDxF, expert_T = saved

    def tile(dw_ExDxF: jax.Array, part: tuple) -> tuple[jax.Array, jax.Array]:
        x_PxD, dy_PxF, expert = part
        added_DxF = jax.lax.dot_general(x_PxD, dy_PxF, (((0,), (0,)), ((), ())), preferred_element_type=jnp.float32)
        return dw_ExDxF.at[expert].add(added_DxF), dy_PxF @ w_ExDxF[expert].T

    in_tiles = (array.reshape(expert_T.shape[0], -1, array.shape[-1]) for array in (x_MxD, dy_MxF))
    dw_ExDxF, dx_TxPxD = jax.lax.scan(tile, jnp.zeros(w_ExDxF.shape, jnp.float32), (*in_tiles, expert_T))
    return dx_TxPxD.reshape(x_MxD.shape), dw_ExDxF.astype(w_ExDxF.dtype), None


multiply_tiles.defvjp(lambda x, w, expert: (multiply_tiles(x, w, expert), (x, w, expert)), _tiles_backward)


def mix(x_BxSxD: jax.Array, gates_BxSxK: jax.Array, chosen_BxSxK: jax.Array, w: dict[str, jax.Array]) -> jax.Array:
    """The outputs of the K experts that each token has chosen, times their gates, added up: `[B, S, D]`."""
    y_AxD = expert_rows(x_BxSxD.reshape(-1, x_BxSxD.shape[-1]), chosen_BxSxK.ravel(), w)
    return jnp.sum(y_AxD.reshape(*chosen_BxSxK.shape, -1) * gates_BxSxK[..., None], axis=2)
