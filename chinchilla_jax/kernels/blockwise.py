"""How does attention run everywhere with memory that does not grow with S x T?

Queries and keys are cut into blocks, and each block of queries goes through the blocks of keys it can see with a
softmax that is corrected as larger scores turn up (Milakov and Gimelshein 2018; Rabe and Staats 2021). The backward
pass makes the scores again from the saved log-sum-exp instead of keeping them (Dao et al. 2022, algorithm 4). Blocks
that lie wholly in the future or outside the window are not visited, whether the offset is traced or not.

Axes: n blocks of queries or keys, G groups, B rows, M heads a group, Q queries or C keys a block, W distances a block.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from chinchilla_jax.kernels.call import Attended, AttentionCall, AttentionError
from chinchilla_jax.kernels.plain import NEGATIVE, biased, shift_to_keys

BLOCK = 64  # scores of a few heads stay in a core's cache; python -m tests.benchmarks.attention_cpu


def blockwise_attention(call: AttentionCall, block: int = BLOCK) -> Attended:
    """`attention.attention`, a block of `block` x `block` scores a head at a time. Differentiable once, in reverse."""
    if block < 1:
        raise AttentionError("block", f"must be at least 1, not {block}")
    shape = call.shape
    sizes = _Sizes(shape.T, min(block, shape.S), min(block, shape.T), call.window, call.softcap)

    def in_blocks(x_BxSxHxK: jax.Array, block: int) -> jax.Array:
        x = _cut(x_BxSxHxK, block).reshape(shape.B, -1, block, shape.G, x_BxSxHxK.shape[2] // shape.G, shape.K)
        return x.transpose(1, 3, 0, 4, 2, 5)

    positions_nxGxBxMxQxK = r_GxMxRxK = segments = None
    if call.r_NxHxK is not None:
        positions_nxGxBxMxQxK = in_blocks(biased(call.q_BxSxHxK, call.position_bias_HxK, call.scale), sizes.Q)
        # Slices that reach beyond either end are moved inside: the padding is what they should find there.
        padded = jnp.pad(call.r_NxHxK, [(sizes.W, sizes.W), (0, 0), (0, 0)])
        r_GxMxRxK = padded.reshape(-1, shape.G, shape.H // shape.G, shape.K).transpose(1, 2, 0, 3)
    if call.segment_ids_BxT is not None:
        ids = ((call.ids_of_queries, sizes.Q), (call.segment_ids_BxT, sizes.C))
        segments = tuple(_cut(x, block).reshape(shape.B, -1, block).swapaxes(0, 1) for x, block in ids)
    content_nxGxBxMxQxK = in_blocks(biased(call.q_BxSxHxK, call.content_bias_HxK, call.scale), sizes.Q)
    k_nxGxBxCxK, v_nxGxBxCxK = (in_blocks(x, sizes.C)[:, :, :, 0] for x in (call.k_BxTxGxK, call.v_BxTxGxK))
    inputs = _Inputs(content_nxGxBxMxQxK, k_nxGxBxCxK, v_nxGxBxCxK, positions_nxGxBxMxQxK, r_GxMxRxK)
    out, lse = _attend(sizes, inputs, segments, jnp.asarray(call.q_offset, jnp.int32))
    out_BxSxHxK = out.transpose(2, 0, 4, 1, 3, 5).reshape(shape.B, -1, shape.H, shape.K)[:, : shape.S]
    if not call.return_lse:
        return out_BxSxHxK
    return out_BxSxHxK, lse.transpose(2, 1, 3, 0, 4).reshape(shape.B, shape.H, -1)[:, :, : shape.S]


def _cut(x_BxSx: jax.Array, block: int) -> jax.Array:
    """Pads the second axis to whole blocks."""
    return jnp.pad(x_BxSx, [(0, 0), (0, -x_BxSx.shape[1] % block)] + [(0, 0)] * (x_BxSx.ndim - 2))


@dataclasses.dataclass(frozen=True)
class _Sizes:
    """What is known before running: T keys; Q queries and C keys a block; `window` and `softcap` of the call."""

    T: int
    Q: int
    C: int
    window: int | None
    softcap: float | None

    @property
    def W(self) -> int:
        """How many distances there are between a block of queries and one of keys, and one for the shift."""
        return self.Q + self.C


# Arrays carried through a loop; None instead of those of the relative term where there is none.
_Arrays = tuple[jax.Array, ...]
_Segments = tuple[jax.Array, jax.Array] | None  # ids of queries `[n, B, Q]` and of keys `[n, B, C]`


class _Inputs(NamedTuple):
    """Everything differentiable. Biases and the scale are in `content` and `position`, as in `plain.biased`."""

    content_nxGxBxMxQxK: jax.Array
    k_nxGxBxCxK: jax.Array
    v_nxGxBxCxK: jax.Array
    position_nxGxBxMxQxK: jax.Array | None
    r_GxMxRxK: jax.Array | None


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(sizes: _Sizes, inputs: _Inputs, segments: _Segments, q_offset: jax.Array) -> tuple[jax.Array, jax.Array]:
    """`out` [n, G, B, M, Q, K] and `lse` [n, G, B, M, Q]."""

    def one_block_of_queries(_: None, n: jax.Array) -> tuple[None, tuple[jax.Array, jax.Array]]:
        def add_keys(j: jax.Array, state: _Arrays) -> _Arrays:
            largest, total, out = state
            scores, visible = _scores(sizes, inputs, segments, q_offset, n, j)[:2]
            larger = jnp.maximum(largest, jnp.max(scores, axis=-1))
            weights = jnp.where(visible, jnp.exp(scores - larger[..., None]), 0.0)
            correction = jnp.exp(largest - larger)
            v = inputs.v_nxGxBxCxK[j]
            product = _product("gbmqc,gbck->gbmqk", weights.astype(v.dtype), v)
            return larger, total * correction + jnp.sum(weights, axis=-1), out * correction[..., None] + product

        shape = inputs.content_nxGxBxMxQxK.shape[1:]
        zeros = jnp.zeros(shape[:-1], jnp.float32)
        state = zeros + NEGATIVE, zeros, jnp.zeros(shape, jnp.float32)
        largest, total, out = jax.lax.fori_loop(*_keys_in_sight(sizes, inputs, q_offset, n), add_keys, state)
        seen = total > 0
        out = out / jnp.where(seen, total, 1.0)[..., None]
        lse = jnp.where(seen, largest + jnp.log(jnp.where(seen, total, 1.0)), -jnp.inf)
        return None, (out.astype(inputs.v_nxGxBxCxK.dtype), lse)

    return jax.lax.scan(one_block_of_queries, None, jnp.arange(inputs.content_nxGxBxMxQxK.shape[0]))[1]


def _attend_forward(sizes: _Sizes, inputs: _Inputs, segments: _Segments, q_offset: jax.Array) -> tuple:
    out, lse = _attend(sizes, inputs, segments, q_offset)
    out, lse = checkpoint_name(out, "attention_output"), checkpoint_name(lse, "attention_lse")  # as the fused kernel
    return (out, lse), (inputs, segments, q_offset, out, lse)


def _attend_backward(sizes: _Sizes, saved: tuple, cotangents: tuple) -> tuple[_Inputs, None, None]:
    inputs, segments, q_offset, out, lse = saved
    d_out, d_lse = cotangents
    dtype = out.dtype
    # A query without keys has a log-sum-exp of -inf; any finite number will do, none of its pairs is visible.
    d_lse = jnp.where(jnp.isfinite(lse), d_lse, 0.0)
    lse = jnp.where(jnp.isfinite(lse), lse, 0.0)
    # d_score = weight * (d_weight - sum of weight * d_weight + d_lse); the sum is out . d_out (Dao et al. 2022).
    offset = d_lse - jnp.einsum("ngbmqk,ngbmqk->ngbmq", out, d_out, preferred_element_type=jnp.float32)

    def one_block_of_queries(d_shared: _Arrays, n: jax.Array) -> tuple[_Arrays, _Arrays]:
        def add_keys(j: jax.Array, state: _Arrays) -> _Arrays:
            d_content, d_position, d_k, d_v, d_r = state
            scores, visible, slope, place = _scores(sizes, inputs, segments, q_offset, n, j)
            weights = jnp.where(visible, jnp.exp(scores - lse[n][..., None]), 0.0)
            d_v = d_v.at[j].add(_product("gbmqc,gbmqk->gbck", weights.astype(dtype), d_out[n]))
            d_weights = _product("gbmqk,gbck->gbmqc", d_out[n], inputs.v_nxGxBxCxK[j])
            d_scores = (weights * (d_weights + offset[n][..., None]) * slope).astype(dtype)
            d_content = d_content + _product("gbmqc,gbck->gbmqk", d_scores, inputs.k_nxGxBxCxK[j])
            d_k = d_k.at[j].add(_product("gbmqc,gbmqk->gbck", d_scores, inputs.content_nxGxBxMxQxK[n]))
            if inputs.r_GxMxRxK is not None:
                by_distance = _shift_to_distances(d_scores, sizes.W)
                r = jax.lax.dynamic_slice_in_dim(inputs.r_GxMxRxK, place, sizes.W, axis=2)
                d_position = d_position + _product("gbmqw,gmwk->gbmqk", by_distance, r)
                rows = jax.lax.dynamic_slice_in_dim(d_r, place, sizes.W, axis=2)
                rows = rows + _product("gbmqw,gbmqk->gmwk", by_distance, inputs.position_nxGxBxMxQxK[n])
                d_r = jax.lax.dynamic_update_slice_in_dim(d_r, rows, place, axis=2)
            return d_content, d_position, d_k, d_v, d_r

        zeros = jnp.zeros(d_out.shape[1:], jnp.float32)
        state = zeros, None if inputs.r_GxMxRxK is None else zeros, *d_shared
        ends = _keys_in_sight(sizes, inputs, q_offset, n)
        d_content, d_position, *d_shared = jax.lax.fori_loop(*ends, add_keys, state)
        return tuple(d_shared), _cast((d_content, d_position), dtype)

    shared = inputs.k_nxGxBxCxK, inputs.v_nxGxBxCxK, inputs.r_GxMxRxK
    d_shared = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), shared)
    d_shared, d_queries = jax.lax.scan(one_block_of_queries, d_shared, jnp.arange(d_out.shape[0]))
    d_k, d_v, d_r = _cast(d_shared, dtype)
    return _Inputs(d_queries[0], d_k, d_v, d_queries[1], d_r), None, None


_attend.defvjp(_attend_forward, _attend_backward)


def _keys_in_sight(sizes: _Sizes, inputs: _Inputs, q_offset: jax.Array, n: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The first block of keys that query block n can see, and the one after the last."""
    blocks = inputs.k_nxGxBxCxK.shape[0]
    nearest = q_offset + n * sizes.Q + sizes.Q - 1
    first = 0 if sizes.window is None else (q_offset + n * sizes.Q - sizes.window + 1) // sizes.C
    return jnp.clip(first, 0, blocks), jnp.clip(nearest // sizes.C + 1, 0, blocks)


def _scores(
    sizes: _Sizes, inputs: _Inputs, segments: _Segments, q_offset: jax.Array, n: jax.Array, j: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array | float, jax.Array | None]:
    """Scores of query block n for key block j, `[G, B, M, Q, C]`, `NEGATIVE` where not visible; what is visible,
    broadcastable to the scores; the derivative of the soft cap; and the first row of r."""
    slope: jax.Array | float = 1.0
    scores = _product("gbmqk,gbck->gbmqc", inputs.content_nxGxBxMxQxK[n], inputs.k_nxGxBxCxK[j])
    distance = q_offset + n * sizes.Q - j * sizes.C + jnp.arange(sizes.Q)[:, None] - jnp.arange(sizes.C)[None, :]
    place = None
    if inputs.r_GxMxRxK is not None and inputs.position_nxGxBxMxQxK is not None:
        place = inputs.r_GxMxRxK.shape[2] - sizes.W - 1 - distance[-1, 0]  # of the farthest; clamped on use
        place = jnp.clip(place, 0, inputs.r_GxMxRxK.shape[2] - sizes.W)  # negative starts would count from the end
        r = jax.lax.dynamic_slice_in_dim(inputs.r_GxMxRxK, place, sizes.W, axis=2)
        by_distance = _product("gbmqk,gmwk->gbmqw", inputs.position_nxGxBxMxQxK[n], r)
        scores = scores + shift_to_keys(by_distance, sizes.C)
    if sizes.softcap is not None:
        bounded = jnp.tanh(scores / sizes.softcap)
        scores, slope = sizes.softcap * bounded, 1.0 - bounded * bounded
    visible = distance >= 0
    if sizes.window is not None:
        visible = visible & (distance < sizes.window)
    if sizes.T % sizes.C:
        visible = visible & (j * sizes.C + jnp.arange(sizes.C) < sizes.T)
    if segments is not None:
        visible = visible & (segments[0][n][:, None, :, None] == segments[1][j][:, None, None, :])
    return jnp.where(visible, scores, NEGATIVE), visible, slope, place


def _shift_to_distances(by_key: jax.Array, columns: int) -> jax.Array:
    """The transpose of `plain.shift_to_keys`: `[..., queries, keys]` to `[..., queries, columns]`, zero elsewhere."""
    *batch, queries, keys = by_key.shape
    leading = [(0, 0)] * len(batch)
    rows = jnp.pad(by_key, [*leading, (0, 0), (0, columns - 1 - keys)])
    line = jnp.pad(rows.reshape(*batch, queries * (columns - 1)), [*leading, (queries - 1, 1)])
    return line.reshape(*batch, queries, columns)


def _product(subscripts: str, x: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.einsum(subscripts, x, y, preferred_element_type=jnp.float32)


def _cast(tree: _Arrays, dtype: jax.typing.DTypeLike) -> _Arrays:
    return jax.tree.map(lambda x: x.astype(dtype), tree)
