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


def rotary(positions_S: jax.Array, head_dim: int, theta: float) -> jax.Array:
    """Rotary positions (Su et al. 2021), for queries as for keys: what `kernels.attention.turn` takes, `[2, S, K]`.

    The pair (i, i + K/2) of every head is rotated by `position * theta^(-2i/K)`. This is the half-split layout; the
    interleaved one of the LLaMA release is the same map after permuting the rows of the query and key projections.
    """
    half = head_dim // 2
    frequencies = theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angles = positions_S.astype(jnp.float32)[:, None] * frequencies
    sin, cos = jnp.sin(angles), jnp.cos(angles)
    return jnp.stack([jnp.concatenate([cos, cos], axis=-1), jnp.concatenate([-sin, sin], axis=-1)])


def xpos(positions_S: jax.Array, head_dim: int, theta: float) -> tuple[jax.Array, jax.Array]:
    """Rotary positions that fade with the distance (xPos, Sun et al. 2022, section 2.2), for queries and for keys.

    Besides the rotation, pair i of a query is multiplied by `zeta_i^(position / 512)` and of a key by
    `zeta_i^(-position / 512)` with `zeta_i = (2i/K + 0.4) / 1.4`, so that a product has the factor
    `zeta_i^(distance / 512)`: the pairs that turn fastest fade fastest. Only distances matter, so positions may be
    counted from anywhere, but from the same place for keys as for queries; from the middle the factors are smallest.
    """
    half = head_dim // 2
    zeta = (jnp.arange(half, dtype=jnp.float32) / half + 0.4) / 1.4
    decay_SxK = jnp.tile(zeta ** (positions_S.astype(jnp.float32)[:, None] / 512.0), 2)
    turn_2xSxK = rotary(positions_S, head_dim, theta)
    return turn_2xSxK * decay_SxK, turn_2xSxK / decay_SxK
