"""Causal self-attention with its projections: grouped heads, packed documents, a kind of position, a cache."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from chinchilla_jax.config import ModelConfig
from chinchilla_jax.kernels.attention import attention
from chinchilla_jax.model import positions
from chinchilla_jax.model.experts import Selection, attention_experts
from chinchilla_jax.model.layers import RESIDUAL, WHOLE_ROWS, create, dense, gathered, reshard
from chinchilla_jax.model.parts import POSITIONS, attention_weights


class Cache(NamedTuple):
    """Keys, before any rotation, and values of the tokens so far.

    `keys` and `values` are `[L, B, T, G, K]`, with room for T tokens; the int32 `length` `[L]` says how many there are.
    The cache of one layer has no L.
    """

    keys: jax.Array
    values: jax.Array
    length: jax.Array

    def append(self, k_BxSxGxK: jax.Array, v_BxSxGxK: jax.Array) -> Cache:
        """With S tokens more, of one layer. Whether there is room for them is not checked."""
        write = functools.partial(jax.lax.dynamic_update_slice_in_dim, start_index=self.length, axis=1)
        return Cache(write(self.keys, k_BxSxGxK), write(self.values, v_BxSxGxK), self.length + k_BxSxGxK.shape[1])


def empty_cache(config: ModelConfig, rows: int, capacity: int, dtype: jnp.dtype) -> Cache:
    """Room for `capacity` tokens in each of `rows` rows. `dtype` is the model's compute type."""
    empty = jnp.zeros((config.n_layers, rows, capacity, config.n_kv_heads, config.head_dim), dtype)
    return Cache(empty, empty, jnp.zeros(config.n_layers, jnp.int32))


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
        self, x_BxSxD: jax.Array, segment_ids_BxS: jax.Array | None = None, cache: Cache | None = None
    ) -> tuple[jax.Array, tuple[Cache | None, dict[str, jax.Array]]]:
        """What is added to the residual stream, `[B, S, D]`; this layer's cache with these tokens in it, and its
        auxiliary sums by name.
        """
        c = self.config
        w = create(self, attention_weights(c))
        q, k, v = _queries_keys_values(x_BxSxD, w, c, self.dtype)
        start = None
        if cache is not None:
            start, cache = cache.length, cache.append(k, v)
            k, v = cache.keys, cache.values
        span = positions.Span(q.shape[1], k.shape[1], start)
        arguments = POSITIONS[c.position].compute(w, c, span, self.dtype, self.project)
        arguments |= {"segment_ids_BxT": segment_ids_BxS, "q_offset": start, "implementation": c.attention}
        arguments["scale"] = c.attention_scale
        out_BxSxHxK = self.attend(q, k, v, **arguments)
        aux: dict[str, jax.Array] = {}
        if "router" in w:
            out_BxSxHxK, aux = attention_experts(out_BxSxHxK, x_BxSxD, w, c, self.select)
        return _output(out_BxSxHxK, w, self.dtype), (cache, aux)


def _queries_keys_values(
    x_BxSxD: jax.Array, w: dict[str, jax.Array], c: ModelConfig, dtype: jnp.dtype
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """`[B, S, H, K]` and twice `[B, S, G, K]`. One product for all three, so that devices add up its gradient once."""
    b, s, d = x_BxSxD.shape
    groups, per_group = c.n_kv_heads, c.n_heads // c.n_kv_heads
    names = ("query", "key", "value")
    x_BxSxD = reshard(x_BxSxD, WHOLE_ROWS, RESIDUAL)
    qkv_DxGxK = jnp.concatenate([w[name].reshape(d, groups, -1).astype(dtype) for name in names], axis=-1)
    qkv_DxGK = gathered(qkv_DxGxK.reshape(d, -1), ("embed", "heads"), dtype)
    qkv_BxSxGxK = dense(x_BxSxD, qkv_DxGK).reshape(b, s, groups, -1)
    if "query_bias" in w:
        bias_GxK = jnp.concatenate([w[f"{name}_bias"].reshape(groups, -1) for name in names], axis=-1)
        qkv_BxSxGxK += bias_GxK.astype(dtype)
    q, k, v = jnp.split(qkv_BxSxGxK, (per_group * c.head_dim, (per_group + 1) * c.head_dim), axis=-1)
    return q.reshape(b, s, c.n_heads, c.head_dim), k, v


def _output(out_BxSxHxK: jax.Array, w: dict[str, jax.Array], dtype: jnp.dtype) -> jax.Array:
    """All heads of a token, projected back onto the residual stream."""
    b, s, *_ = out_BxSxHxK.shape
    output_AxD = gathered(w["output"].reshape(-1, w["output"].shape[-1]), ("heads", "embed"), dtype)
    y_BxSxD = reshard(dense(out_BxSxHxK.reshape(b, s, -1), output_AxD), RESIDUAL, WHOLE_ROWS)
    return y_BxSxD + w["output_bias"].astype(dtype) if "output_bias" in w else y_BxSxD
