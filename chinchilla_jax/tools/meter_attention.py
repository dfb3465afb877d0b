"""What of attention does `preflight` have measured? A builder for the meter."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from chinchilla_jax.kernels.attention import attention
from chinchilla_jax.model.positions import rotary


def build(rows: int, heads: int, groups: int, head_dim: int, seq: int, position: str, packed: bool, dtype: str) -> dict:
    """A row or two of causal attention and its gradients, for the meter."""
    q, kv = (jax.ShapeDtypeStruct((rows, seq, n, head_dim), dtype) for n in (heads, groups))
    arrays = {"q_BxSxHxK": q, "k_BxTxGxK": kv, "v_BxTxGxK": kv}
    if position == "relative":
        bias = jax.ShapeDtypeStruct((heads, head_dim), jnp.float32)
        arrays |= {
            "r_NxHxK": jax.ShapeDtypeStruct((seq, heads, head_dim), dtype),
            "content_bias_HxK": bias,
            "position_bias_HxK": bias,
        }
    documents = jax.ShapeDtypeStruct((rows, seq), jnp.int32)

    def gradients(arrays: dict[str, jax.Array], dout: jax.Array, documents: jax.Array) -> tuple:
        fixed = {"segment_ids_BxT": documents} if packed else {}
        if position == "rope":
            turn = rotary(jnp.arange(seq), head_dim, 10000.0)
            fixed |= {"q_turn_2xSxK": turn, "k_turn_2xTxK": turn}
        out, back = jax.vjp(lambda x: attention(**x, **fixed, implementation="fused"), arrays)
        return out, back(dout)

    return {"fn": gradients, "args": (arrays, q, documents)}


def build_decoding(
    rows: int, heads: int, groups: int, head_dim: int, capacity: int, relative: bool, dtype: str
) -> dict:
    """One token's attention to a cache of `capacity` tokens, in a row or two that may begin with padding."""
    q, kv = (jax.ShapeDtypeStruct((rows, t, n, head_dim), dtype) for t, n in ((1, heads), (capacity, groups)))
    arrays = {"q_BxSxHxK": q, "k_BxTxGxK": kv, "v_BxTxGxK": kv}
    arrays |= {name: jax.ShapeDtypeStruct((rows, t), jnp.int32) for name, t in _ids(capacity).items()}
    if relative:
        bias = jax.ShapeDtypeStruct((heads, head_dim), jnp.float32)
        arrays |= {"content_bias_HxK": bias, "position_bias_HxK": bias}
        arrays["r_NxHxK"] = jax.ShapeDtypeStruct((capacity, heads, head_dim), dtype)

    def attend(arrays: dict[str, jax.Array], at: jax.Array) -> jax.Array:
        return attention(**arrays, q_offset=at, implementation="fused")

    return {"fn": attend, "args": (arrays, jax.ShapeDtypeStruct((), jnp.int32))}


def _ids(capacity: int) -> dict[str, int]:
    return {"segment_ids_BxT": capacity, "q_segment_ids_BxS": 1}
