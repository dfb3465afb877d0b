"""What is attention by its definition? All S x T scores at once: the reference, and the fast form for short rows.

On a CPU a row of a few hundred tokens has its scores in the cache, and few large products beat many small ones.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from chinchilla_jax.kernels.call import Attended, AttentionCall

NEGATIVE = -1e30  # finite, so that a row with every key masked has no NaN gradient


def plain_attention(call: AttentionCall) -> Attended:
    """`attention.attention` with every score in memory. Computes in float64 throughout where the queries have it."""
    q_BxSxHxK, dtype = call.q_BxSxHxK, call.q_BxSxHxK.dtype
    wide = jnp.promote_types(dtype, jnp.float32)
    content_BxSxHxK = biased(q_BxSxHxK, call.content_bias_HxK, call.scale)
    scores_BxHxSxT = _scores(content_BxSxHxK, call.k_BxTxGxK, wide)
    if call.r_NxHxK is not None:
        position_BxSxHxK = biased(q_BxSxHxK, call.position_bias_HxK, call.scale)
        scores_BxHxSxT = scores_BxHxSxT + relative_scores(position_BxSxHxK, call, wide)
    if call.softcap is not None:
        scores_BxHxSxT = call.softcap * jnp.tanh(scores_BxHxSxT / call.softcap)
    visible = _visible(call)
    scores_BxHxSxT = jnp.where(visible, scores_BxHxSxT, NEGATIVE)
    if call.return_lse:
        lse_BxHxS = jax.nn.logsumexp(scores_BxHxSxT, axis=-1)
        weights_BxHxSxT = jnp.exp(scores_BxHxSxT - lse_BxHxS[..., None])
    else:
        weights_BxHxSxT = jax.nn.softmax(scores_BxHxSxT, axis=-1)
    if not call.every_query_sees_a_key:
        weights_BxHxSxT = jnp.where(visible, weights_BxHxSxT, 0.0)
    out_BxSxHxK = _mix(weights_BxHxSxT.astype(dtype), call.v_BxTxGxK)
    if not call.return_lse:
        return out_BxSxHxK
    return out_BxSxHxK, jnp.where(jnp.any(visible, axis=-1), lse_BxHxS, -jnp.inf)


def biased(q_BxSxHxK: jax.Array, bias_HxK: jax.Array | None, scale: float) -> jax.Array:
    """`(q + bias) * scale`, rounded once to the type of the queries."""
    wide = jnp.promote_types(q_BxSxHxK.dtype, jnp.float32)
    q = q_BxSxHxK.astype(wide)
    return ((q if bias_HxK is None else q + bias_HxK.astype(wide)) * scale).astype(q_BxSxHxK.dtype)


def _few(queries: int, head_size: int) -> bool:
    """Whether the scores are fewer than the numbers in a copy of the keys, as in decoding: then copies cost most."""
    return queries < head_size


def _scores(q_BxSxHxK: jax.Array, k_BxTxGxK: jax.Array, wide: jax.typing.DTypeLike) -> jax.Array:
    """`q . k`, `[B, H, S, T]`."""
    (b, s, h, size), (t, g) = q_BxSxHxK.shape, k_BxTxGxK.shape[1:3]
    if not _few(s, size):
        k_BxTxHxK = _for_each_head(k_BxTxGxK, h)
        return jnp.einsum("bshk,bthk->bhst", q_BxSxHxK, k_BxTxHxK, preferred_element_type=wide)
    q_BxGxMxK = q_BxSxHxK.swapaxes(1, 2).reshape(b, g, -1, size)  # the heads of a group as further queries
    # The keys come first: as the second factor the CPU backend would transpose them, all for few queries.
    scores_BxGxTxM = jnp.einsum("btgk,bgmk->bgtm", k_BxTxGxK, q_BxGxMxK, preferred_element_type=wide)
    return scores_BxGxTxM.swapaxes(2, 3).reshape(b, h, s, t)


def _mix(weights_BxHxSxT: jax.Array, v_BxTxGxK: jax.Array) -> jax.Array:
    """`weights . v`, `[B, S, H, K]`."""
    (b, h, s, t), (g, size) = weights_BxHxSxT.shape, v_BxTxGxK.shape[2:]
    if not _few(s, size):
        return jnp.einsum("bhst,bthk->bshk", weights_BxHxSxT, _for_each_head(v_BxTxGxK, h))
    out_BxGxMxK = jnp.einsum("bgmt,btgk->bgmk", weights_BxHxSxT.reshape(b, g, -1, t), v_BxTxGxK)
    return out_BxGxMxK.reshape(b, h, s, size).swapaxes(1, 2)


def _for_each_head(x_BxTxGxK: jax.Array, heads: int) -> jax.Array:
    groups = x_BxTxGxK.shape[2]
    return x_BxTxGxK if groups == heads else jnp.repeat(x_BxTxGxK, heads // groups, axis=2)


def rows_of_distances(r_NxHxK: jax.Array, farthest: int | jax.Array, count: int) -> jax.Array:
    """`count` rows of r, the first for the distance `farthest`, each next one nearer; zero where r has no row."""
    first = r_NxHxK.shape[0] - 1 - farthest
    if isinstance(farthest, int):
        padding = [(-first, first + count - r_NxHxK.shape[0], 0), (0, 0, 0), (0, 0, 0)]
        return jax.lax.pad(r_NxHxK, jnp.zeros((), r_NxHxK.dtype), padding)
    padded = jnp.pad(r_NxHxK, [(count, count), (0, 0), (0, 0)])
    return jax.lax.dynamic_slice_in_dim(padded, first + count, count)  # clamped starts find nothing but zeros


def shift_to_keys(by_distance: jax.Array, keys: int) -> jax.Array:
    """Turns columns of distances into columns of keys without a gather: `[..., queries, columns]`, more than keys, to
    `[..., queries, keys]`.

    Column c of row i is for the key `c - (queries - 1 - i)`: each row one further left than the row below. Read as one
    long line that starts at the first row's key 0, the next row's key 0 is `columns - 1` further on (compare appendix B
    of Dai et al. 2019, which pads instead). Keys without a column, which can only be on the right, get other rows'
    values: mask them.
    """
    *batch, queries, columns = by_distance.shape
    line = by_distance.reshape(*batch, queries * columns)[..., queries - 1 : queries - 1 + queries * (columns - 1)]
    return line.reshape(*batch, queries, columns - 1)[..., :keys]


def relative_scores(position_BxSxHxK: jax.Array, call: AttentionCall, wide: jax.typing.DTypeLike) -> jax.Array:
    """`position_i . r_{distance of i and j}`, `[B, H, S, T]`; arbitrary for keys in the future."""
    assert call.r_NxHxK is not None
    shape, columns = call.shape, call.shape.S + call.shape.T
    if call.offset_is_static:  # columns for negative distances are left out, as far as the shift allows
        columns = max(shape.T + 1, min(columns, call.q_offset + shape.S))
    r_MxHxK = rows_of_distances(call.r_NxHxK, call.q_offset + shape.S - 1, columns)
    if _few(shape.S, shape.K):
        by_distance = jnp.einsum("bshk,mhk->bhsm", position_BxSxHxK, r_MxHxK, preferred_element_type=wide)
    else:  # one product per row, as for the keys: its gradient then is one too, and a sum over rows at the end
        r_BxMxHxK = jnp.broadcast_to(r_MxHxK, (shape.B, *r_MxHxK.shape))
        by_distance = jnp.einsum("bshk,bmhk->bhsm", position_BxSxHxK, r_BxMxHxK, preferred_element_type=wide)
    return shift_to_keys(by_distance, shape.T)


def _visible(call: AttentionCall) -> jax.Array:
    """Which keys a query sees, `[S, T]`, or `[B, 1, S, T]` with segments."""
    distance = call.q_offset + jnp.arange(call.shape.S)[:, None] - jnp.arange(call.shape.T)[None, :]
    visible = distance >= 0
    if call.window is not None:
        visible = visible & (distance < call.window)
    ids = call.ids_of_queries
    if ids is not None and call.segment_ids_BxT is not None:
        same = ids[:, :, None] == call.segment_ids_BxT[:, None, :]
        visible = visible & same[:, None]
    return visible
