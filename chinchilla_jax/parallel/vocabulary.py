"""How is the vocabulary split? Each device has some rows of the embedding, and looks up the tokens that are in them.

Left to the partitioner, a look-up gathers the table on every device, and adds up its gradient over all of them. Here
every device works on its part of the table, and what has to move is written out. `training/loss.py` does the same with
the output layer.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from chinchilla_jax.parallel.rules import mesh_axes, partition_spec

# Logical axes of arrays that every device holds a part of.
TABLE = ("vocab", "activation_embed")
TABLE_GRADIENT = ("vocab", "embed")
TOKENS = ("batch", "length")
RESIDUAL = ("batch", "residual_length", "activation_embed")
# Of the output layer: its rows `[B, S, D]`, table, bias, targets and weights; gradients of the first three; sums.
OUTPUT_LAYER = (("batch", "length", "activation_embed"), TABLE, ("vocab",), TOKENS, TOKENS)
OUTPUT_GRADIENTS = (RESIDUAL, TABLE_GRADIENT, ("vocab",))
SUMS = ()


class Axes(NamedTuple):
    """Mesh axes over which tokens, the rows of the table and its width are split; none where there is no mesh."""

    tokens: tuple[str, ...] = ()
    vocab: tuple[str, ...] = ()
    embed: tuple[str, ...] = ()

    def sum_of_tokens(self, x: Any) -> Any:
        """The sum over devices with other tokens; of a tree of arrays."""
        return _added(x, self.tokens)

    def sum_of_vocab(self, x: jax.Array) -> jax.Array:
        """The sum over devices with other rows of the table."""
        return _added(x, self.vocab)

    def max_of_vocab(self, x: jax.Array) -> jax.Array:
        """The largest value over devices with other rows of the table."""
        return jax.lax.pmax(x, self.vocab) if self.vocab else x

    def residual(self, x_BxSxD: jax.Array) -> jax.Array:
        """`sum_of_vocab` as the residual stream is laid out: each device with its part of a length that is split."""
        split = set(self.vocab) <= set(mesh_axes("residual_length"))
        return _scattered(x_BxSxD, self.vocab, 1) if split else self.sum_of_vocab(x_BxSxD)

    def first_row(self, rows: int) -> jax.Array | int:
        """The token of this device's first row of the table, where every device has `rows` of them."""
        return rows * jax.lax.axis_index(self.vocab) if self.vocab else 0

    def table_gradient(self, gradient_VxD: jax.Array, dtype: jnp.dtype) -> jax.Array:
        """What all devices add for these rows, summed in the compute type and left where the weight is stored."""
        others = tuple(axis for axis in self.tokens if axis not in self.embed)
        summed_VxD = _added(_scattered(gradient_VxD.astype(dtype), self.embed, 1), others)
        # libtpu 0.0.42 fails on a scatter whose result, cast, is all that a loop over microbatches adds up.
        return jax.lax.optimization_barrier(summed_VxD) if self.embed else summed_VxD


def on_each_device(function: Callable, in_axes: tuple, out_axes: tuple) -> Callable:
    """`function(axes, ...)` on each device of the mesh in force, with its parts; as it is where there is no mesh.

    The logical axes of arguments and results are given, those of results as one tuple or as a tuple of tuples.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.size <= 1:
        return functools.partial(function, Axes())
    axes = Axes(mesh_axes("batch", "length"), mesh_axes("vocab"), mesh_axes("embed"))
    in_specs = tuple(map(partition_spec, in_axes))
    several = out_axes and isinstance(out_axes[0], tuple)
    out_specs = tuple(map(partition_spec, out_axes)) if several else partition_spec(out_axes)
    of_device = functools.partial(function, axes)
    return jax.shard_map(of_device, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)


def _added(x: Any, axes: tuple[str, ...]) -> Any:
    return jax.lax.psum(x, axes) if axes else x


def _scattered(x: jax.Array, axes: tuple[str, ...], dimension: int) -> jax.Array:
    """The sum over these mesh axes, each device with its part of a dimension."""
    return jax.lax.psum_scatter(x, axes, scatter_dimension=dimension, tiled=True) if axes else x


@jax.custom_vjp
def lookup(table_VxD: jax.Array, tokens_BxS: jax.Array) -> jax.Array:
    """Rows of a table that is whole in the model width, `[B, S, D]`, laid out as the residual stream.

    The gradient is added up in float32: a frequent token gets thousands of terms.
    """
    return _lookup_forward(table_VxD, tokens_BxS)[0]


def _lookup_forward(table_VxD: jax.Array, tokens_BxS: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    def look_up(axes: Axes, table_VxD: jax.Array, tokens_BxS: jax.Array) -> jax.Array:
        rows_BxS, mine_BxS = _my_rows(axes, table_VxD.shape[0], tokens_BxS)
        x_BxSxD = jnp.where(mine_BxS[..., None], jnp.take(table_VxD, rows_BxS, axis=0), 0)
        return axes.residual(x_BxSxD)

    x_BxSxD = on_each_device(look_up, (TABLE, TOKENS), RESIDUAL)(table_VxD, tokens_BxS)
    return x_BxSxD, (jnp.zeros((0, *table_VxD.shape), table_VxD.dtype), tokens_BxS)  # no more than shape and type


def _lookup_backward(saved: tuple[jax.Array, jax.Array], dx_BxSxD: jax.Array) -> tuple[jax.Array, None]:
    like_VxD, tokens_BxS = saved
    vocab_size, dtype = like_VxD.shape[1], like_VxD.dtype

    def add_up(axes: Axes, tokens_BxS: jax.Array, dx_BxSxD: jax.Array) -> jax.Array:
        rows = vocab_size // (jax.lax.axis_size(axes.vocab) if axes.vocab else 1)
        if axes.vocab:
            dx_BxSxD = jax.lax.all_gather(dx_BxSxD, axes.vocab, axis=1, tiled=True)
        rows_BxS, mine_BxS = _my_rows(axes, rows, tokens_BxS)
        dx_BxSxD = jnp.where(mine_BxS[..., None], dx_BxSxD, 0)

        # Row by row: float32 copies of all rows would be the largest array of a step.
        def add_row(gradient_VxD: jax.Array, row: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
            rows_S, dx_SxD = row
            return gradient_VxD.at[rows_S].add(dx_SxD.astype(jnp.float32)), None

        zeros_VxD = jnp.zeros((rows, dx_BxSxD.shape[-1]), jnp.float32)
        gradient_VxD, _ = jax.lax.scan(add_row, zeros_VxD, (rows_BxS, dx_BxSxD))
        return axes.table_gradient(gradient_VxD, dtype)

    return on_each_device(add_up, (TOKENS, RESIDUAL), TABLE_GRADIENT)(tokens_BxS, dx_BxSxD), None


lookup.defvjp(_lookup_forward, _lookup_backward)


def _my_rows(axes: Axes, rows: int, tokens_BxS: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Rows of this device's part of the table, and whether they are those of the tokens."""
    rows_BxS = tokens_BxS - axes.first_row(rows)
    return jnp.clip(rows_BxS, 0, rows - 1), (rows_BxS >= 0) & (rows_BxS < rows)
