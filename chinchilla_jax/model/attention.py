"""Causal self-attention with its projections: grouped heads, packed documents, and a kind of position."""

from __future__ import annotations

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from chinchilla_jax.config import ModelConfig
from chinchilla_jax.kernels.attention import attention
from chinchilla_jax.model.layers import (
    RESIDUAL,
    WHOLE_ROWS,
    dense,
    gathered,
    parameter,
    reshard,
    residual_scale,
    sum_of_outer_products,
    vector,
)
from chinchilla_jax.model.positions import rotary, sinusoids, xpos


@jax.custom_vjp
def project_distances(sinusoids_NxD: jax.Array, w_DxA: jax.Array) -> jax.Array:
    """The keys of all distances, `[N, A]`, from a weight that is left in parts.

    Distances are the same for all rows: each device multiplies its part of the model width, and the products are added
    up over devices, in float32. The gradient of the weight then needs no communication.
    """
    return _project_distances_forward(sinusoids_NxD, w_DxA)[0]


def _project_distances_forward(sinusoids_NxD, w_DxA):
    sinusoids_NxD = nn.with_logical_constraint(sinusoids_NxD, (None, "embed"))
    r_NxA = jax.lax.dot(sinusoids_NxD, w_DxA, preferred_element_type=jnp.float32)
    return nn.with_logical_constraint(r_NxA, (None, "heads")).astype(w_DxA.dtype), sinusoids_NxD


def _project_distances_backward(sinusoids_NxD, dr_NxA):
    dr_NxA = nn.with_logical_constraint(dr_NxA, (None, "heads"))
    return None, nn.with_logical_constraint(sum_of_outer_products(sinusoids_NxD, dr_NxA), ("embed", "heads"))


project_distances.defvjp(_project_distances_forward, _project_distances_backward)


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
        b, s, d = x_BxSxD.shape
        groups, per_group = c.n_kv_heads, c.n_heads // c.n_kv_heads
        axes = ("embed", "heads", "head_dim")
        x_BxSxD = reshard(x_BxSxD, WHOLE_ROWS, RESIDUAL)

        # One product for all three, group by group: what they take from their input is added up over devices once.
        weights = {name: parameter(self, name, (d, heads, c.head_dim), axes, d)
                   for name, heads in (("query", c.n_heads), ("key", groups), ("value", groups))}  # fmt: skip
        qkv_DxGxK = jnp.concatenate([w.reshape(d, groups, -1).astype(dtype) for w in weights.values()], axis=-1)
        qkv_DxGK = gathered(qkv_DxGxK.reshape(d, -1), ("embed", "heads"), dtype)
        qkv_BxSxGxK = dense(x_BxSxD, qkv_DxGK).reshape(b, s, groups, -1)
        if c.biases == "all":
            biases = [vector(self, f"{name}_bias", w.shape[1:], ("heads", "head_dim")) for name, w in weights.items()]
            qkv_BxSxGxK += jnp.concatenate([bias.reshape(groups, -1) for bias in biases], axis=-1).astype(dtype)
        q, k, v = jnp.split(qkv_BxSxGxK, (per_group * c.head_dim, (per_group + 1) * c.head_dim), axis=-1)
        q = q.reshape(b, s, c.n_heads, c.head_dim)

        positions = {}
        if c.position == "relative":
            w_r = parameter(self, "relative", (d, c.n_heads, c.head_dim), axes, d)
            r_NxD = sinusoids(jnp.arange(s - 1, -1, -1), d).astype(dtype)
            # Where rows are short for the width, their keys are less to send than the weight: 6d against 20s bytes.
            if 10 * s < 3 * d:
                r_NxA = project_distances(r_NxD, w_r.reshape(d, -1).astype(dtype))
            else:
                r_NxA = dense(r_NxD, gathered(w_r.reshape(d, -1), ("embed", "heads"), dtype))
            positions = {
                "r_NxHxK": r_NxA.reshape(s, c.n_heads, c.head_dim),
                "content_bias_HxK": vector(self, "u", (c.n_heads, c.head_dim), ("heads", "head_dim")),
                "position_bias_HxK": vector(self, "v", (c.n_heads, c.head_dim), ("heads", "head_dim")),
            }
        elif c.position in ("rope", "xpos"):
            if c.position == "rope":
                q_turn = k_turn = rotary(jnp.arange(s), c.head_dim, c.rope_theta)
            else:
                q_turn, k_turn = xpos(jnp.arange(s) - s // 2, c.head_dim, c.rope_theta)
            positions = {"q_turn_2xSxK": q_turn, "k_turn_2xTxK": k_turn}
        out_BxSxHxK = self.attend(q, k, v, segment_ids_BxT=segment_ids_BxS, implementation=c.attention, **positions)
        output = parameter(self, "output", (c.n_heads, c.head_dim, d), ("heads", "head_dim", "embed"), c.d_attn,
                           residual_scale(c))  # fmt: skip
        output_AxD = gathered(output.reshape(-1, d), ("heads", "embed"), dtype)
        y_BxSxD = reshard(dense(out_BxSxHxK.reshape(b, s, -1), output_AxD), RESIDUAL, WHOLE_ROWS)
        if c.biases != "none":
            y_BxSxD += vector(self, "output_bias", (d,), ("norm",)).astype(dtype)
        return y_BxSxD
