"""How a position enters attention: Transformer-XL relative sinusoids, rotary embeddings and xPos."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def sinusoids(distances: jax.Array, d_model: int) -> jax.Array:
    """R of Dai et al. 2019: `[len(distances), d_model]`, all sines first, then all cosines, wavelengths to 10000.

    Args:
      distances: `[n]`, how far back a key lies.
    """
    frequencies = 10000.0 ** (-jnp.arange(0, d_model, 2, dtype=jnp.float32) / d_model)
    angles = distances.astype(jnp.float32)[:, None] * frequencies
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


def rotate(x_BxSxHxK: jax.Array, positions_S: jax.Array, theta: float) -> jax.Array:
    """Rotary positions (Su et al. 2021): rotates the pair (i, i + K/2) of every head by `position * theta^(-2i/K)`.

    This is the half-split layout; the interleaved one of the LLaMA release is the same map after permuting the rows
    of the query and key projections.
    """
    return _rotate(x_BxSxHxK, positions_S, theta).astype(x_BxSxHxK.dtype)


def xpos(q_BxSxHxK: jax.Array, k_BxSxGxK: jax.Array, positions_S: jax.Array, theta: float) -> tuple:
    """Rotary positions that fade with the distance (xPos, Sun et al. 2022, section 2.2): queries and keys.

    Besides the rotation, pair i of a query is multiplied by `zeta_i^(position / 512)` and of a key by
    `zeta_i^(-position / 512)` with `zeta_i = (2i/K + 0.4) / 1.4`, so that a product has the factor
    `zeta_i^(distance / 512)`: the pairs that turn fastest fade fastest. Only distances matter, so positions may be
    counted from anywhere, but from the same place for keys as for queries; from the middle the factors are smallest.
    """
    half = q_BxSxHxK.shape[-1] // 2
    zeta = (jnp.arange(half, dtype=jnp.float32) / half + 0.4) / 1.4
    decay_SxK = zeta ** (positions_S.astype(jnp.float32)[:, None] / 512.0)
    decay_SxHxK = jnp.tile(decay_SxK, 2)[:, None, :]
    q = _rotate(q_BxSxHxK, positions_S, theta) * decay_SxHxK
    k = _rotate(k_BxSxGxK, positions_S, theta) / decay_SxHxK
    return q.astype(q_BxSxHxK.dtype), k.astype(k_BxSxGxK.dtype)


def _rotate(x_BxSxHxK: jax.Array, positions_S: jax.Array, theta: float) -> jax.Array:
    """`rotate`, in float32."""
    half = x_BxSxHxK.shape[-1] // 2
    frequencies = theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angles_SxK = positions_S.astype(jnp.float32)[:, None] * frequencies
    sin, cos = jnp.sin(angles_SxK)[:, None, :], jnp.cos(angles_SxK)[:, None, :]
    first, second = jnp.split(x_BxSxHxK.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
