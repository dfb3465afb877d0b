"""How does a query see keys that other devices hold, when the tokens of a row are split over a mesh axis?

Device i of c holds tokens `i * S/c` to `(i + 1) * S/c`. Two ways, both exact:

    heads  Tokens are exchanged for heads (DeepSpeed-Ulysses, Jacobs et al. 2023): each device gets whole rows of one
           part in c of the heads, computes them as if there was no such axis, and gives the tokens back. All devices
           have the same work. Heads and groups of keys must divide over the devices.
    keys   Keys and values are gathered; a device keeps its number of queries. Since the last queries see most keys, the
           row is cut into 2c pieces and device i takes pieces i and 2c - 1 - i (Grattafiori et al. 2024, section
           3.3.2; compare Brandon et al. 2023): all have the same work again.

By measurement (`python -m tests.benchmarks.context_attention`) the first is the cheaper one, and both are cheaper than
a ring (Liu et al. 2023). These functions run inside `shard_map`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from chinchilla_jax.kernels.call import AttentionCall


def exchange_heads(op: Callable, call: AttentionCall, axis: str) -> Any:
    """Attention of rows split over the mesh axis `axis`; each device computes whole rows of its part of the heads.

    `op` computes an `AttentionCall`. `call` has queries, keys and values of this device's tokens, `[B, S/c, ...]`; of
    everything else what belongs to its part of the heads, for whole rows. Returns outputs for this device's tokens and
    all heads it was given; with `return_lse` also the log-sum-exps `[B, H/c, S]` of its part of the heads.
    """
    q, k, v = (_tokens_for_heads(x, axis) for x in (call.q_BxSxHxK, call.k_BxTxGxK, call.v_BxTxGxK))
    result = op(call.replace(q_BxSxHxK=q, k_BxTxGxK=k, v_BxTxGxK=v))
    if call.return_lse:
        return _heads_for_tokens(result[0], axis), result[1]
    return _heads_for_tokens(result, axis)


def _tokens_for_heads(x_BxSxHxK: jax.Array, axis: str) -> jax.Array:
    """`[B, S/c, H, K]` to `[B, S, H/c, K]`.

    Cut and stacked by hand: left to `all_to_all`, or written as a transpose, the TPU compiler copies everything twice.
    """
    (b, s, h, k), c = x_BxSxHxK.shape, jax.lax.axis_size(axis)
    sent = jnp.stack(jnp.split(x_BxSxHxK.reshape(b, s, h * k), c, axis=2))
    received = jax.lax.all_to_all(sent, axis, split_axis=0, concat_axis=0)
    return received.swapaxes(0, 1).reshape(b, c * s, h // c, k)


def _heads_for_tokens(x_BxSxHxK: jax.Array, axis: str) -> jax.Array:
    """`[B, S, H/c, K]` to `[B, S/c, H, K]`."""
    (b, s, h, k), c = x_BxSxHxK.shape, jax.lax.axis_size(axis)
    sent = x_BxSxHxK.reshape(b, c, s // c, h * k).swapaxes(0, 1)
    received = jax.lax.all_to_all(sent, axis, split_axis=0, concat_axis=0)
    return jnp.concatenate(list(received), axis=2).reshape(b, s // c, c * h, k)


def gather_keys(op: Callable, call: AttentionCall, axis: str) -> Any:
    """Attention of rows split over `axis`; each device computes a fair share of the queries with all keys.

    `call` has queries, keys and values of this device's tokens, `[B, S/c, ...]`, with S/c even; everything else is for
    whole rows. Returns outputs for this device's tokens; with `return_lse` also their log-sum-exps `[B, H, S/c]`.
    """
    devices, device = jax.lax.axis_size(axis), jax.lax.axis_index(axis)
    size = call.q_BxSxHxK.shape[1] // 2
    k, v = (jax.lax.all_gather(x, axis, axis=1, tiled=True) for x in (call.k_BxTxGxK, call.v_BxTxGxK))
    whole = call.replace(k_BxTxGxK=k, v_BxTxGxK=v, return_lse=True)

    def attend(q_BxPxHxK: jax.Array, piece: jax.Array, pieces: int) -> Any:
        """Queries of the piece with this number, one of the first `pieces`: they see no keys of the others."""
        start, seen = piece * size, whole.of_keys(0, pieces * size)
        ids = whole.segment_ids_BxT if whole.q_segment_ids_BxS is None else whole.q_segment_ids_BxS
        turns, ids = (
            None if x is None else jax.lax.dynamic_slice_in_dim(x, start, size, axis=1)
            for x in (whole.q_turn_2xSxK, ids)
        )
        return op(seen.replace(q_BxSxHxK=q_BxPxHxK, q_turn_2xSxK=turns, q_segment_ids_BxS=ids, q_offset=start))

    early, late = _to_fair_shares(call.q_BxSxHxK, axis, along=1)
    early, early_lse = attend(early, device, devices)
    late, late_lse = attend(late, 2 * devices - 1 - device, 2 * devices)
    out_BxSxHxK = _to_tokens(early, late, axis, along=1)
    return (out_BxSxHxK, _to_tokens(early_lse, late_lse, axis, along=2)) if call.return_lse else out_BxSxHxK


def _to_fair_shares(x: jax.Array, axis: str, along: int) -> tuple[jax.Array, jax.Array]:
    """Piece i and piece 2c - 1 - i of a row for device i, which holds pieces 2i and 2i + 1."""
    swapped = jax.lax.axis_index(axis) % 2 == 1
    even, odd = (
        jax.lax.ppermute(half, axis, moves)
        for half, moves in zip(jnp.split(x, 2, axis=along), _moves(jax.lax.axis_size(axis)), strict=True)
    )
    return jnp.where(swapped, odd, even), jnp.where(swapped, even, odd)


def _to_tokens(early: jax.Array, late: jax.Array, axis: str, along: int) -> jax.Array:
    """Undoes `_to_fair_shares`."""
    swapped = jax.lax.axis_index(axis) % 2 == 1
    halves = jnp.where(swapped, late, early), jnp.where(swapped, early, late)
    back = [[(target, source) for source, target in moves] for moves in _moves(jax.lax.axis_size(axis))]
    sent = [jax.lax.ppermute(half, axis, moves) for half, moves in zip(halves, back, strict=True)]
    return jnp.concatenate(sent, axis=along)


def _moves(devices: int) -> list[list[tuple[int, int]]]:
    """From which device to which the even pieces go, and the odd ones: each is a permutation of the devices.

    Even pieces below c are early ones and go to devices of even number, the others are late and go to odd ones.
    """
    return [
        [(piece // 2, min(piece, 2 * devices - 1 - piece)) for piece in range(first, 2 * devices, 2)]
        for first in (0, 1)
    ]
