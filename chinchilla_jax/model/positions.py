"""How a position enters attention: Transformer-XL relative sinusoids, rotary embeddings, xPos and learned rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from chinchilla_jax.config import ModelConfig
from chinchilla_jax.model.layers import gathered
from chinchilla_jax.model.rope_scaling import Scaling, read_scaling


class Span(NamedTuple):
    """Which tokens a call computes: `tokens` of them from position `start` on. They see keys at 0 to `keys` - 1.

    `start` is an int32 scalar; None means 0, and that no cache is kept. `distances` is what `keys_of_distances` gave
    for all keys, if it is known already.
    """

    tokens: int
    keys: int
    start: jax.Array | None = None
    distances: jax.Array | None = None

    def positions(self) -> jax.Array:
        """Those of the tokens, `[tokens]`."""
        return jnp.arange(self.tokens) if self.start is None else self.start + jnp.arange(self.tokens)


def project(sinusoids_NxD: jax.Array, w_DxA: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """The keys of N distances, `[N, A]`, from the weight as it is stored."""
    return jax.lax.dot(sinusoids_NxD, gathered(w_DxA, ("embed", "heads"), dtype))


def nothing(w: dict, c: ModelConfig, span: Span, dtype: jnp.dtype, project: Callable) -> dict[str, jax.Array]:
    """Attention that knows no positions, but for the causal mask."""
    return {}


def relative(w: dict, c: ModelConfig, span: Span, dtype: jnp.dtype, project: Callable) -> dict[str, jax.Array]:
    """Keys of all distances, the farthest first, and the biases of Dai et al. 2019."""
    r_NxHxK = span.distances
    if r_NxHxK is None:
        r_NxHxK = keys_of_distances(w["relative"], c, span.keys, dtype, project)
    return {"r_NxHxK": r_NxHxK, "content_bias_HxK": w["u"], "position_bias_HxK": w["v"]}


def keys_of_distances(
    w_DxHxK: jax.Array, c: ModelConfig, count: int, dtype: jnp.dtype, project: Callable = project
) -> jax.Array:
    """`[count, H, K]`: projected sinusoids of the distances `count - 1` to 0."""
    sinusoids_NxD = sinusoids(jnp.arange(count - 1, -1, -1), c.d_model).astype(dtype)
    return project(sinusoids_NxD, w_DxHxK.reshape(c.d_model, -1), dtype).reshape(count, c.n_heads, c.head_dim)


def rope(w: dict, c: ModelConfig, span: Span, dtype: jnp.dtype, project: Callable) -> dict[str, jax.Array]:
    """Rotations of the queries and keys of these tokens."""
    turn_2xSxK = rotary(span.positions(), c.head_dim, c.rope_theta, read_scaling(c.rope_scaling))
    return {"q_turn_2xSxK": turn_2xSxK, "k_turn_2xTxK": turn_2xSxK}


def faded_rope(w: dict, c: ModelConfig, span: Span, dtype: jnp.dtype, project: Callable) -> dict[str, jax.Array]:
    """Rotations of queries and keys as in xPos; positions are counted from the middle of the keys.

    Cached keys are rotated already, so where a cache is kept the middle is that of the longest row.
    """
    middle = (span.keys if span.start is None else c.max_position) // 2
    q_turn, k_turn = xpos(span.positions() - middle, c.head_dim, c.rope_theta)
    return {"q_turn_2xSxK": q_turn, "k_turn_2xTxK": k_turn}


def rows(
    table_NxD: jax.Array, tokens: int, start: jax.Array | None, first_B: jax.Array | None, dtype: jnp.dtype
) -> jax.Array:
    """The rows of a table for so many tokens from position `start` on, or 0: `[S, D]`.

    If rows of a batch begin at the positions `first_B`, `[B, S, D]`: there the table's row 0 stands.
    """
    table_NxD = gathered(table_NxD, (None, "embed"), dtype)
    if first_B is not None:
        positions_S = jnp.arange(tokens) + (0 if start is None else start)
        return jnp.take(table_NxD, jnp.maximum(positions_S - first_B[:, None], 0), axis=0)
    return table_NxD[:tokens] if start is None else jax.lax.dynamic_slice_in_dim(table_NxD, start, tokens)


def sinusoids(distances: jax.Array, d_model: int) -> jax.Array:
    """R of Dai et al. 2019 for distances `[n]`: `[n, d_model]`, all sines, then all cosines, wavelengths to 10000."""
    frequencies = 10000.0 ** (-jnp.arange(0, d_model, 2, dtype=jnp.float32) / d_model)
    angles = distances.astype(jnp.float32)[:, None] * frequencies
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


def rotary(positions_S: jax.Array, head_dim: int, theta: float, scaling: Scaling | None = None) -> jax.Array:
    """Rotary positions (Su et al. 2021), for queries as for keys: what `kernels.attention.turn` takes, `[2, S, K]`.

    The pair (i, i + K/2) of every head is rotated by `position * theta^(-2i/K)`, or by another frequency if there is a
    `scaling`. This is the half-split layout; the interleaved one of the LLaMA release is the same map after permuting
    the rows of the query and key projections. All in float32: bfloat16 has no 257.
    """
    half = head_dim // 2
    frequencies = theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
    if scaling is not None:
        frequencies = scaling(frequencies)
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
