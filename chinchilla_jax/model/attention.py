"""Causal self-attention with its projections: grouped heads, packed documents, a kind of position, a cache."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from chinchilla_jax.config import ModelConfig
from chinchilla_jax.kernels.attention import attention, turn
from chinchilla_jax.model import positions
from chinchilla_jax.model.cache import Past
from chinchilla_jax.model.experts import Selection, attention_experts
from chinchilla_jax.model.layers import RESIDUAL, WHOLE_ROWS, create, dense, gathered, reshard
from chinchilla_jax.model.parts import POSITIONS, attention_weights


class Attention(nn.Module):
    """Multi-head attention; `attend`, `project` and `select` as in `Transformer`.

    `n_heads * head_dim` need not be `d_model`.
    """

    config: ModelConfig
    dtype: jnp.dtype
    attend: Callable = attention
    project: Callable = positions.project
    select: Selection = Selection()

    @nn.compact
    def __call__(
        self, x_BxSxD: jax.Array, segment_ids_BxS: jax.Array | None = None, past: Past | None = None
    ) -> tuple[jax.Array, tuple[tuple[jax.Array, jax.Array] | None, dict[str, jax.Array]]]:
        """What is added to the residual stream, `[B, S, D]`; with a past the keys and values for the cache; and
        auxiliary sums by name.
        """
        c = self.config
        w = create(self, attention_weights(c))
        q, k, v = _queries_keys_values(x_BxSxD, w, c, self.dtype)
        new = None
        if past is None:
            span = positions.Span(q.shape[1], k.shape[1])
            arguments = POSITIONS[c.position].compute(w, c, span, self.dtype, self.project)
            arguments |= {"segment_ids_BxT": segment_ids_BxS, "q_offset": None}
        else:
            span = past.span(q.shape[1])
            arguments = POSITIONS[c.position].compute(w, c, span, self.dtype, self.project)
            q, k, arguments = _turned(q, k, arguments)
            seen, new = past.with_new(k.swapaxes(1, 2), v.swapaxes(1, 2))
            k, v = (x_BxGxTxK.swapaxes(1, 2) for x_BxGxTxK in seen)
            arguments |= past.visible(q.shape[1])
        arguments |= {"scale": c.attention_scale, "implementation": c.attention}
        out_BxSxHxK = self.attend(q, k, v, **arguments)
        aux: dict[str, jax.Array] = {}
        if "router" in w:
            out_BxSxHxK, aux = attention_experts(out_BxSxHxK, x_BxSxD, w, c, self.select)
        return _output(out_BxSxHxK, w, self.dtype), (new, aux)


def _turned(q: jax.Array, k: jax.Array, arguments: dict[str, Any]) -> tuple[jax.Array, jax.Array, dict[str, Any]]:
    """Queries and keys rotated, if they are to be, and the other arguments: a cache keeps rotated keys."""
    left = {name: x for name, x in arguments.items() if name not in ("q_turn_2xSxK", "k_turn_2xTxK")}
    if len(left) == len(arguments):
        return q, k, left
    return turn(q, arguments["q_turn_2xSxK"]), turn(k, arguments["k_turn_2xTxK"]), left


def _queries_keys_values(
    x_BxSxD: jax.Array, w: dict[str, jax.Array], c: ModelConfig, dtype: jnp.dtype
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """`[B, S, H, K]` and twice `[B, S, G, K]`. One product for all three, so that devices add up its gradient once.

    Of a single token three: to join the weights takes longer than the product.
    """
    b, s, d = x_BxSxD.shape
    groups, per_group = c.n_kv_heads, c.n_heads // c.n_kv_heads
    names = ("query", "key", "value")
    x_BxSxD = reshard(x_BxSxD, WHOLE_ROWS, RESIDUAL)
    if s == 1:
        q, k, v = (_projected(x_BxSxD, w, name, dtype) for name in names)
        return q, k, v
    qkv_DxGxK = jnp.concatenate([w[name].reshape(d, groups, -1).astype(dtype) for name in names], axis=-1)
    qkv_DxGK = gathered(qkv_DxGxK.reshape(d, -1), ("embed", "heads"), dtype)
    qkv_BxSxGxK = dense(x_BxSxD, qkv_DxGK).reshape(b, s, groups, -1)
    if "query_bias" in w:
        bias_GxK = jnp.concatenate([w[f"{name}_bias"].reshape(groups, -1) for name in names], axis=-1)
        qkv_BxSxGxK += bias_GxK.astype(dtype)
    q, k, v = jnp.split(qkv_BxSxGxK, (per_group * c.head_dim, (per_group + 1) * c.head_dim), axis=-1)
    return q.reshape(b, s, c.n_heads, c.head_dim), k, v


def _projected(x_BxSxD: jax.Array, w: dict[str, jax.Array], name: str, dtype: jnp.dtype) -> jax.Array:
    """`[B, S, heads, K]`: the product with one of the weights, and its bias."""
    weight_DxA = gathered(w[name].reshape(x_BxSxD.shape[-1], -1), ("embed", "heads"), dtype)
    x = dense(x_BxSxD, weight_DxA).reshape(*x_BxSxD.shape[:2], *w[name].shape[1:])
    return x + w[f"{name}_bias"].astype(dtype) if f"{name}_bias" in w else x


def _output(out_BxSxHxK: jax.Array, w: dict[str, jax.Array], dtype: jnp.dtype) -> jax.Array:
    """All heads of a token, projected back onto the residual stream."""
    b, s, *_ = out_BxSxHxK.shape
    output_AxD = gathered(w["output"].reshape(-1, w["output"].shape[-1]), ("heads", "embed"), dtype)
    y_BxSxD = reshard(dense(out_BxSxHxK.reshape(b, s, -1), output_AxD), RESIDUAL, WHOLE_ROWS)
    return y_BxSxD + w["output_bias"].astype(dtype) if "output_bias" in w else y_BxSxD
