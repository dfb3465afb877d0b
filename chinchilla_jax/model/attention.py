"""Causal self-attention: grouped heads, packed documents, optional Transformer-XL relative positions."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from chinchilla_jax.config import ModelConfig
from chinchilla_jax.model.layers import dense, matrix, residual_scale, vector
from chinchilla_jax.model.positions import relative_shift, rotate, sinusoids

NEGATIVE = -1e30  # finite, so that a row with every key masked has no NaN gradient


def attend(q_BxSxHxK: jax.Array, k_BxTxGxK: jax.Array, v_BxTxGxK: jax.Array, *, r_TxHxK: jax.Array | None = None,
           u_HxK: jax.Array | None = None, w_HxK: jax.Array | None = None,
           segment_ids_BxT: jax.Array | None = None) -> jax.Array:  # fmt: skip
    """Scaled dot-product attention, softmax in float32.

    With `r`, `u` and `w` the score of query i for key j is (q_i + u) . k_j + (q_i + w) . r_{i-j} (Dai et al. 2019,
    equation of section 3.3; w is the paper's v).

    Args:
      q_BxSxHxK: queries; the last S of the T positions.
      k_BxTxGxK, v_BxTxGxK: keys and values; head h of H uses group h // (H / G).
      r_TxHxK: projected sinusoids, row c for the distance T - 1 - c.
      u_HxK, w_HxK: content and position biases.
      segment_ids_BxT: attention stays inside equal ids.

    Returns:
      `[B, S, H, K]` in the type of the queries.
    """
    b, s, h, k = q_BxSxHxK.shape
    t, g = k_BxTxGxK.shape[1:3]
    scale = k**-0.5
    if g != h:
        k_BxTxGxK, v_BxTxGxK = jnp.repeat(k_BxTxGxK, h // g, axis=2), jnp.repeat(v_BxTxGxK, h // g, axis=2)
    content = q_BxSxHxK if u_HxK is None else q_BxSxHxK + u_HxK.astype(q_BxSxHxK.dtype)
    scores = jnp.einsum("bshk,bthk->bhst", content * scale, k_BxTxGxK, preferred_element_type=jnp.float32)
    if r_TxHxK is not None:
        position = (q_BxSxHxK + w_HxK.astype(q_BxSxHxK.dtype)) * scale
        # One product per row, as for the keys: its gradient then is one too, and a sum over rows at the end.
        r_BxTxHxK = jnp.broadcast_to(r_TxHxK, (b, *r_TxHxK.shape))
        by_distance = jnp.einsum("bshk,bthk->bhst", position, r_BxTxHxK, preferred_element_type=jnp.float32)
        scores = scores + relative_shift(by_distance)
    visible = jnp.arange(t)[None, :] <= jnp.arange(s)[:, None] + (t - s)
    if segment_ids_BxT is not None:
        same = segment_ids_BxT[:, t - s :, None] == segment_ids_BxT[:, None, :]
        visible = visible & same[:, None]
    weights = jax.nn.softmax(jnp.where(visible, scores, NEGATIVE), axis=-1).astype(q_BxSxHxK.dtype)
    return jnp.einsum("bhst,bthk->bshk", weights, v_BxTxGxK)


class Attention(nn.Module):
    """Multi-head attention with its projections. `n_heads * head_dim` may differ from `d_model`."""

    config: ModelConfig
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x_BxSxD: jax.Array, segment_ids_BxS: jax.Array | None = None) -> jax.Array:
        c, dtype = self.config, self.dtype
        s, d = x_BxSxD.shape[1:]

        def project(name: str, heads: int, x: jax.Array) -> jax.Array:
            kernel = matrix(self, name, (d, heads, c.head_dim), ("embed", "heads", "head_dim"), d)
            y = dense(x, kernel.reshape(d, -1).astype(dtype)).reshape(*x.shape[:-1], heads, c.head_dim)
            if c.biases == "all":
                y += vector(self, f"{name}_bias", (heads, c.head_dim), ("heads", "head_dim")).astype(dtype)
            return y

        q = project("query", c.n_heads, x_BxSxD)
        k = project("key", c.n_kv_heads, x_BxSxD)
        v = project("value", c.n_kv_heads, x_BxSxD)
        relative = {}
        if c.position == "relative":
            w_r = matrix(self, "relative", (d, c.n_heads, c.head_dim), ("embed", "heads", "head_dim"), d)
            r_SxD = sinusoids(jnp.arange(s - 1, -1, -1), d).astype(dtype)
            relative = {
                "r_TxHxK": jnp.einsum("sd,dhk->shk", r_SxD, w_r.astype(dtype)),
                "u_HxK": vector(self, "u", (c.n_heads, c.head_dim), ("heads", "head_dim")),
                "w_HxK": vector(self, "v", (c.n_heads, c.head_dim), ("heads", "head_dim")),
            }
        elif c.position == "rope":
            q, k = rotate(q, jnp.arange(s), c.rope_theta), rotate(k, jnp.arange(s), c.rope_theta)
        q = nn.with_logical_constraint(q, ("batch", "length", "heads", "head_dim"))
        out_BxSxHxK = attend(q, k, v, segment_ids_BxT=segment_ids_BxS, **relative)
        kernel = matrix(self, "output", (c.n_heads, c.head_dim, d), ("heads", "head_dim", "embed"), c.d_attn,
                        residual_scale(c))  # fmt: skip
        y_BxSxD = dense(out_BxSxHxK.reshape(*x_BxSxD.shape[:2], -1), kernel.reshape(-1, d).astype(dtype))
        if c.biases != "none":
            y_BxSxD += vector(self, "output_bias", (d,), ("norm",)).astype(dtype)
        return y_BxSxD
