"""How is causal attention called, and which implementation serves a call?

    attention(q, k, v, r_NxHxK=r, u_HxK=u, w_HxK=w, segment_ids_BxT=ids)

All implementations take the same arguments and mean the same by them. What one cannot serve it refuses.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from absl import logging

from chinchilla_jax.kernels import target
from chinchilla_jax.kernels.arguments import AttentionError, check
from chinchilla_jax.kernels.blockwise import BLOCK, blockwise_attention
from chinchilla_jax.kernels.plain import plain_attention

IMPLEMENTATIONS = ("auto", "fused", "plain", "blockwise")
# Scores a head up to which the plain form is faster on a CPU core, without and with the relative term. At 512 tokens
# blockwise takes 0.24 and 0.80 of its time, at 2048 0.14 and 0.30: python -m tests.benchmarks.attention_cpu long
PLAIN_UP_TO, RELATIVE_PLAIN_UP_TO = 128 * 128, 256 * 256


def attention(q_BxSxHxK: jax.Array, k_BxTxGxK: jax.Array, v_BxTxGxK: jax.Array, *, r_NxHxK: jax.Array | None = None,
              u_HxK: jax.Array | None = None, w_HxK: jax.Array | None = None, q_turn_2xSxK: jax.Array | None = None,
              k_turn_2xTxK: jax.Array | None = None, segment_ids_BxT: jax.Array | None = None,
              q_segment_ids_BxS: jax.Array | None = None, q_offset: int | jax.Array | None = None,
              window: int | None = None, softcap: float | None = None, scale: float | None = None,
              return_lse: bool = False, implementation: str = "auto"):  # fmt: skip
    """Causal scaled dot-product attention, softmax in float32.

    Query i stands at position `q_offset + i`, key j at position j. Key j is visible to query i if the distance
    `q_offset + i - j` is zero or more, and less than `window` if given, and if their segment ids are equal. The score
    of a visible pair is

        scale * ((q_i + u) . k_j + (q_i + w) . r_distance)

    (Dai et al. 2019, equation of section 3.3; w is the paper's v), and then `softcap * tanh(score / softcap)`. A query
    that sees no key has output zero, log-sum-exp -inf and gradients zero.

    Args:
      q_BxSxHxK: queries, float32 or bfloat16.
      k_BxTxGxK, v_BxTxGxK: keys and values of the same type; head h of H reads group h // (H / G).
      r_NxHxK: projected sinusoids of the same type, row c for the distance N - 1 - c: the farthest first. N is at least
        `min(q_offset + S, window)`, or `min(T, window)` if q_offset is traced; distances beyond count as r = 0.
      u_HxK, w_HxK: content and position biases; with r, or not at all.
      q_turn_2xSxK, k_turn_2xTxK: rotate queries and keys first, `turn`; both or neither, and not with r. They get no
        gradients. (The fused kernel does it on the chip.)
      segment_ids_BxT: int32; attention stays inside equal ids.
      q_segment_ids_BxS: those of the queries; default the ids at the queries' positions.
      q_offset: int, or an int32 scalar array for decoding with a cache; default T - S. May be negative, or T and more.
      window: how many keys a query sees at most, its own included.
      softcap: bound on the size of a score (Gemma 2, Gemma Team 2024, section 2).
      scale: default K ** -0.5.
      return_lse: whether to return the log-sum-exp of each query's scores too; it is differentiable.
      implementation: "fused" (Pallas, TPU; elsewhere interpreted, slowly, for tests), "plain" (all scores in memory),
        "blockwise" (memory does not grow with S x T), or "auto": fused if compiled for a TPU (`target.generation`),
        else `xla_form`.

    Returns:
      `[B, S, H, K]` in the type of the queries; with `return_lse` also float32 `[B, H, S]`, natural logarithm.

    Raises:
      AttentionError: names the argument that is wrong or that the implementation cannot serve.
    """
    if implementation == "auto":
        tpu = target.generation()
        queries, keys = (x.shape[1] if x.ndim == 4 else 0 for x in (q_BxSxHxK, k_BxTxGxK))  # others are refused below
        implementation = "fused" if tpu is not None else xla_form(queries, keys, relative=r_NxHxK is not None)
        _log_choice(implementation, tpu or jax.default_backend())
    if implementation == "fused" and target.generation() is None:
        _log_interpreted()
    turns = {}
    if q_turn_2xSxK is not None or k_turn_2xTxK is not None:
        turns = {"q_turn_2xSxK": q_turn_2xSxK, "k_turn_2xTxK": k_turn_2xTxK}
        if implementation != "fused":
            check(q_BxSxHxK, k_BxTxGxK, v_BxTxGxK, r_NxHxK=r_NxHxK, u_HxK=u_HxK, w_HxK=w_HxK, **turns, float64=True,
                  segment_ids_BxT=segment_ids_BxT, q_segment_ids_BxS=q_segment_ids_BxS, q_offset=q_offset,
                  window=window, softcap=softcap, scale=scale)  # fmt: skip
            q_BxSxHxK, k_BxTxGxK = turn(q_BxSxHxK, q_turn_2xSxK), turn(k_BxTxGxK, k_turn_2xTxK)
            turns = {}
    return _function(implementation)(
        q_BxSxHxK, k_BxTxGxK, v_BxTxGxK, r_NxHxK=r_NxHxK, u_HxK=u_HxK, w_HxK=w_HxK, segment_ids_BxT=segment_ids_BxT,
        q_segment_ids_BxS=q_segment_ids_BxS, q_offset=q_offset, window=window, softcap=softcap, scale=scale,
        return_lse=return_lse, **turns)  # fmt: skip


def turn(x_BxSxHxK: jax.Array, turn_2xSxK: jax.Array) -> jax.Array:
    """`x * turn[0] + partner * turn[1]`, where the partner of number i of a head is number i + K/2 (mod K).

    Rotary positions (Su et al. 2021) are cosines in `turn[0]` and sines in `turn[1]`, those of the first half negated.
    """
    cos_SxHxK, sin_SxHxK = jax.lax.stop_gradient(turn_2xSxK)[:, :, None]
    x = x_BxSxHxK.astype(jnp.promote_types(x_BxSxHxK.dtype, jnp.float32))
    first, second = jnp.split(x, 2, axis=-1)
    partner = jnp.concatenate([second, first], axis=-1)
    return (x * cos_SxHxK + partner * sin_SxHxK).astype(x_BxSxHxK.dtype)


def xla_form(queries: int, keys: int, relative: bool) -> str:
    """The faster of the two forms that run everywhere. A few queries, as in decoding, are not worth cutting up."""
    limit = RELATIVE_PLAIN_UP_TO if relative else PLAIN_UP_TO
    return "plain" if queries < BLOCK or queries * keys <= limit else "blockwise"


def _function(implementation: str) -> Callable:
    if implementation == "plain":
        return plain_attention
    if implementation == "blockwise":
        return blockwise_attention
    if implementation == "fused":
        from chinchilla_jax.kernels import fused  # only here: elsewhere Pallas need not be loaded

        return fused.fused_attention
    raise AttentionError("implementation", f"{implementation!r} is none of {', '.join(IMPLEMENTATIONS)}")


@functools.cache
def _log_interpreted() -> None:
    logging.warning("attention: no TPU is compiled for, so the fused kernels are interpreted, which is for tests: slow")


@functools.cache
def _log_choice(implementation: str, device: str) -> None:
    logging.info("attention: implementation %s, chosen for %s", implementation, device)
