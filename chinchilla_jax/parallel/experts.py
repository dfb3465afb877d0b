"""How do tokens reach the experts that other devices hold?

Each device of an `expert` axis has some of the experts whole, and tokens of its own. A token's row is sent to the
devices of the experts it has chosen, once for each, computed there, and sent back. No expert has a capacity: there is
room for all tokens of all devices on each of them, and only the rows that are there are sent and multiplied, by
`jax.lax.ragged_all_to_all`. XLA has that for TPUs but not for CPUs. There every device gathers all rows and takes its
own from them, the same ones in the same order. The room costs memory: a device keeps arrays of as many rows as all
devices of the axis send together. Over `tensor` each expert is split by its inner units, as a dense layer is.

These are the products of `model/grouped.py` on each device; what its layout says of places holds here for devices.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from chinchilla_jax.kernels.tiles import tpu_generation
from chinchilla_jax.model import grouped
from chinchilla_jax.parallel.rules import mesh_axes, partition_spec
from chinchilla_jax.parallel.vocabulary import RESIDUAL

ROWS = ("batch", "length", "activation_embed")
WEIGHTS = {
    "up": ("experts", "activation_embed", "mlp"),
    "gate": ("experts", "activation_embed", "mlp"),
    "down": ("experts", "mlp", "activation_embed"),
    "up_bias": ("experts", "mlp"),
    "gate_bias": ("experts", "mlp"),
}


def mix(x_BxSxD: jax.Array, gates_BxSxK: jax.Array, chosen_BxSxK: jax.Array, w: dict[str, jax.Array]) -> jax.Array:
    """`grouped.mix` on the mesh in force, if there is one: whole arrays in and out."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.size <= 1:
        return grouped.mix(x_BxSxD, gates_BxSxK, chosen_BxSxK, w)
    inner = mesh_axes("mlp")
    spread = tuple(axis for axis in mesh_axes("residual_length") if axis not in mesh_axes("length"))

    def on_each_device(x: jax.Array, gates: jax.Array, chosen: jax.Array, w: dict[str, jax.Array]) -> jax.Array:
        y_AxD = _expert_rows(x.reshape(-1, x.shape[-1]), chosen.ravel(), w)
        y_BxSxD = jnp.sum(y_AxD.reshape(*chosen.shape, -1) * gates[..., None], axis=2)
        if inner and inner == spread:  # the parts of the inner units are added up where the stream is split
            return jax.lax.psum_scatter(y_BxSxD, inner, scatter_dimension=1, tiled=True)
        return jax.lax.psum(y_BxSxD, inner) if inner else y_BxSxD

    rows, of_rows = partition_spec(ROWS), partition_spec(("batch", "length", None))
    weights = {name: partition_spec(WEIGHTS[name]) for name in w}
    out = partition_spec(RESIDUAL) if inner == spread else rows
    mapped = jax.shard_map(
        on_each_device, mesh=mesh, in_specs=(rows, of_rows, of_rows, weights), out_specs=out, check_vma=False
    )
    return mapped(x_BxSxD, gates_BxSxK, chosen_BxSxK, w)


def _expert_rows(x_NxD: jax.Array, expert_A: jax.Array, w: dict[str, jax.Array]) -> jax.Array:
    """`grouped.expert_rows`, where a device has the experts of its place along the axes of `experts`."""
    axes = mesh_axes("experts")
    devices = jax.lax.axis_size(axes) if axes else 1
    if devices == 1:
        return grouped.expert_rows(x_NxD, expert_A, w)
    own, copies = w["up"].shape[0], expert_A.shape[0] // x_NxD.shape[0]
    to = grouped.lay_out(expert_A, devices * own)  # expert by expert, so device by device
    there, back = _routes(to.sizes_E.reshape(devices, own), axes, expert_A.shape[0], copies)
    sent_AxD = grouped.move(x_NxD, to.row_M, to.place_A, copies)
    y_RxD = grouped.expert_rows(_exchange(sent_AxD, there, back, axes), there.expert_R, w)
    return grouped.move(_exchange(y_RxD, back, there, axes), to.place_A, to.row_M)


class _Route(NamedTuple):
    """What a device sends to each of the devices of an axis, and gets of each: rows from where on, and how many."""

    send_from: jax.Array
    send: jax.Array
    put_at: jax.Array  # there
    receive: jax.Array
    expert_R: jax.Array  # of each row that comes in, among this device's experts


def _routes(sizes_PxE: jax.Array, axes: tuple[str, ...], rows: int, copies: int) -> tuple[_Route, _Route]:
    """The way of the rows to their experts, and back. `sizes_PxE`: rows of this device for each expert of each."""
    me, (devices, own) = jax.lax.axis_index(axes), sizes_PxE.shape
    all_QxPxE = jax.lax.all_gather(sizes_PxE, axes)  # from device q to p
    rows_QxP = jnp.sum(all_QxPxE, axis=2)
    left_QxP = jnp.cumsum(rows_QxP, axis=1) - rows_QxP  # where on q the rows for p begin
    come_QxP = jnp.cumsum(rows_QxP, axis=0) - rows_QxP  # where on p those of q begin
    # A device may be sent all tokens, each as often as it has experts a token can choose.
    room = devices * (rows // copies) * min(copies, own)
    ends = jnp.cumsum(all_QxPxE[:, me].ravel())
    place_R = jnp.searchsorted(ends, jnp.arange(room), side="right")
    expert_R = jnp.where(place_R < devices * own, place_R % own, own)
    there = _Route(left_QxP[me], rows_QxP[me], come_QxP[me], rows_QxP[:, me], expert_R)
    nobody_A = jnp.zeros(rows, jnp.int32)
    return there, _Route(come_QxP[:, me], rows_QxP[:, me], left_QxP[:, me], rows_QxP[me], nobody_A)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _exchange(x_NxD: jax.Array, route: _Route, back: _Route, axes: tuple[str, ...]) -> jax.Array:
    """The rows that come in by a route, device by device; zeros where there is room for more."""
    empty_RxD = jnp.zeros((route.expert_R.shape[0], x_NxD.shape[1]), x_NxD.dtype)
    exchange = gathered_all_to_all if tpu_generation() is None else jax.lax.ragged_all_to_all
    return exchange(x_NxD, empty_RxD, route.send_from, route.send, route.put_at, route.receive, axis_name=axes)


def _exchange_forward(x_NxD: jax.Array, route: _Route, back: _Route, axes: tuple[str, ...]) -> tuple:
    return _exchange(x_NxD, route, back, axes), (route, back)


def _exchange_backward(axes: tuple[str, ...], routes: tuple[_Route, _Route], dy_RxD: jax.Array) -> tuple:
    route, back = routes
    return _exchange(dy_RxD, back, route, axes), None, None


_exchange.defvjp(_exchange_forward, _exchange_backward)


def gathered_all_to_all(
    x_NxD: jax.Array,
    empty_RxD: jax.Array,
    send_from: jax.Array,
    send: jax.Array,
    put_at: jax.Array,
    receive: jax.Array,
    *,
    axis_name: tuple[str, ...],
) -> jax.Array:
    """`jax.lax.ragged_all_to_all` by gathering all rows, for rows that are put one device's after the other's.

    How many rows it will `receive` a device learns from those that send them.
    """
    me = jax.lax.axis_index(axis_name)
    all_x, all_from, all_send, all_at = (
        jax.lax.all_gather(array, axis_name) for array in (x_NxD, send_from, send, put_at)
    )
    from_Q, sent_Q, at_Q = all_from[:, me], all_send[:, me], all_at[:, me]
    place_R = jnp.arange(empty_RxD.shape[0])
    device_R = jnp.searchsorted(at_Q, place_R, side="right") - 1
    within_R = place_R - at_Q[device_R]
    row_R = device_R * x_NxD.shape[0] + from_Q[device_R] + within_R
    here_R = within_R < sent_Q[device_R]
    found_RxD = jnp.take(all_x.reshape(-1, x_NxD.shape[1]), jnp.where(here_R, row_R, 0), axis=0)
    return jnp.where(here_R[:, None], found_RxD, empty_RxD)
