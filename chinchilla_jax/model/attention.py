"""Causal self-attention with its projections: grouped heads, packed documents, and a kind of position."""

from __future__ import annotations

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from chinchilla_jax.config import ModelConfig
from chinchilla_jax.kernels.attention import attention
from chinchilla_jax.model.layers import RESIDUAL, WHOLE_ROWS, dense, matrix, reshard, residual_scale, vector
from chinchilla_jax.model.positions import rotary, sinusoids, xpos


class Attention(nn.Module):
    """Multi-head attention. `n_heads * head_dim` may differ from `d_model`.

    Attributes:
      attend: a function with the arguments of `kernels.attention.attention`.
    """

    config: ModelConfig
    dtype: jnp.dtype
    attend: Callable = attention

    @nn.compact
    def __call__(self, x_BxSxD: jax.Array, segment_ids_BxS: jax.Array | None = None) -> jax.Array:
        c, dtype = self.config, self.dtype
        s, d = x_BxSxD.shape[1:]
        x_BxSxD = reshard(x_BxSxD, WHOLE_ROWS, RESIDUAL)

        def project(name: str, heads: int, x: jax.Array) -> jax.Array:
            kernel = matrix(self, name, (d, heads, c.head_dim), ("embed", "heads", "head_dim"), d, dtype)
            y = dense(x, kernel.reshape(d, -1)).reshape(*x.shape[:-1], heads, c.head_dim)
            if c.biases == "all":
                y += vector(self, f"{name}_bias", (heads, c.head_dim), ("heads", "head_dim")).astype(dtype)
            return y

        q = project("query", c.n_heads, x_BxSxD)
        k = project("key", c.n_kv_heads, x_BxSxD)
        v = project("value", c.n_kv_heads, x_BxSxD)
        positions = {}
        if c.position == "relative":
            w_r = matrix(self, "relative", (d, c.n_heads, c.head_dim), ("embed", "heads", "head_dim"), d, dtype)
            r_SxD = sinusoids(jnp.arange(s - 1, -1, -1), d).astype(dtype)
            positions = {
                "r_NxHxK": jnp.einsum("sd,dhk->shk", r_SxD, w_r),
                "u_HxK": vector(self, "u", (c.n_heads, c.head_dim), ("heads", "head_dim")),
                "w_HxK": vector(self, "v", (c.n_heads, c.head_dim), ("heads", "head_dim")),
            }
        elif c.position in ("rope", "xpos"):
            if c.position == "rope":
                q_turn = k_turn = rotary(jnp.arange(s), c.head_dim, c.rope_theta)
            else:
                q_turn, k_turn = xpos(jnp.arange(s) - s // 2, c.head_dim, c.rope_theta)
            positions = {"q_turn_2xSxK": q_turn, "k_turn_2xTxK": k_turn}
        q = nn.with_logical_constraint(q, ("batch", "length", "heads", "head_dim"))
        out_BxSxHxK = self.attend(q, k, v, segment_ids_BxT=segment_ids_BxS, implementation=c.attention, **positions)
        kernel = matrix(self, "output", (c.n_heads, c.head_dim, d), ("heads", "head_dim", "embed"), c.d_attn,
                        dtype, residual_scale(c))  # fmt: skip
        y_BxSxD = dense(out_BxSxHxK.reshape(*x_BxSxD.shape[:2], -1), kernel.reshape(-1, d))
        y_BxSxD = reshard(y_BxSxD, RESIDUAL, WHOLE_ROWS)
        if c.biases != "none":
            y_BxSxD += vector(self, "output_bias", (d,), ("norm",)).astype(dtype)
        return y_BxSxD
