"""How a position enters attention: Transformer-XL relative sinusoids and rotary embeddings."""

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
    half = x_BxSxHxK.shape[-1] // 2
    frequencies = theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angles_SxK = positions_S.astype(jnp.float32)[:, None] * frequencies
    sin, cos = jnp.sin(angles_SxK)[:, None, :], jnp.cos(angles_SxK)[:, None, :]
    first, second = jnp.split(x_BxSxHxK.astype(jnp.float32), 2, axis=-1)
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return rotated.astype(x_BxSxHxK.dtype)
