"""How is causal attention called, and which implementation serves a call?

    attention(q, k, v, r_NxHxK=r, content_bias_HxK=u, position_bias_HxK=w, segment_ids_BxT=ids)

All implementations take the same checked `AttentionCall`. What one cannot serve it refuses.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from absl import logging

from chinchilla_jax.config import ATTENTIONS
from chinchilla_jax.kernels.blockwise import BLOCK, blockwise_attention
from chinchilla_jax.kernels.call import Attended, AttentionCall, AttentionError, check
from chinchilla_jax.kernels.cudnn import cudnn_attention, on_gpu, refusal
from chinchilla_jax.kernels.plain import plain_attention
from chinchilla_jax.kernels.tiles import tpu_generation

# Scores a head up to which the plain form is faster on a CPU core, without and with the relative term. At 512 tokens
# blockwise takes 0.24 and 0.80 of its time, at 2048 0.14 and 0.30: python -m tests.benchmarks.attention_cpu long
PLAIN_UP_TO, RELATIVE_PLAIN_UP_TO = 128 * 128, 256 * 256


def attention(
    q_BxSxHxK: jax.Array, k_BxTxGxK: jax.Array, v_BxTxGxK: jax.Array, *, implementation: str = "auto", **named: Any
) -> Attended:
    """Causal scaled dot-product attention, softmax in float32.

    Query i stands at position `q_offset + i`, key j at position j. Key j is visible to query i if the distance
    `q_offset + i - j` is zero or more, and less than `window` if given, and if their segment ids are equal. The score
    of a visible pair is

        scale * ((q_i + content_bias) . k_j + (q_i + position_bias) . r_distance)

    (Dai et al. 2019, equation of section 3.3, where the biases are u and v), and then `softcap * tanh(score /
    softcap)`. A query that sees no key has output zero, log-sum-exp -inf and gradients zero.

    Args:
      q_BxSxHxK, k_BxTxGxK, v_BxTxGxK: queries, keys and values.
      named: the other fields of `AttentionCall`, which says what they are.
      implementation: "fused" (Pallas, TPU; elsewhere interpreted, slowly, for tests), "plain" (all scores in memory),
        "blockwise" (memory does not grow with S x T), "cudnn" (NVIDIA GPUs), or "auto": fused if compiled for a TPU
        (`tpu_generation`), cuDNN's on a GPU for what it serves, else `xla_form`.

    Returns:
      `[B, S, H, K]` in the type of the queries; with `return_lse` also float32 `[B, H, S]`, natural logarithm.

    Raises:
      AttentionError: names the argument that is wrong or that the implementation cannot serve.
    """
    return compute(check(q_BxSxHxK, k_BxTxGxK, v_BxTxGxK, **named), implementation)


def compute(call: AttentionCall, implementation: str) -> Attended:
    """Attention of a call that is checked; results and errors as of `attention`."""
    if implementation == "auto":
        implementation = choose(call)
    if implementation not in ATTENTIONS:
        raise AttentionError("implementation", f"{implementation!r} is none of {', '.join(ATTENTIONS)}")
    if implementation != "plain" and call.q_BxSxHxK.dtype == jnp.float64:
        raise AttentionError("q_BxSxHxK", 'is float64: cast it to float32 or bfloat16, or use implementation="plain"')
    if implementation == "fused":
        from chinchilla_jax.kernels.fused import fused_attention  # only here: elsewhere Pallas need not be loaded

        if tpu_generation() is None:
            slow = "no TPU is compiled for, so the fused kernels are interpreted, which is for tests: slow"
            logging.log_first_n(logging.WARNING, "attention: %s", 1, slow)
        return fused_attention(call)
    if call.q_turn_2xSxK is not None:
        q_BxSxHxK, k_BxTxGxK = turn(call.q_BxSxHxK, call.q_turn_2xSxK), turn(call.k_BxTxGxK, call.k_turn_2xTxK)
        call = call.replace(q_BxSxHxK=q_BxSxHxK, k_BxTxGxK=k_BxTxGxK, q_turn_2xSxK=None, k_turn_2xTxK=None)
    return {"plain": plain_attention, "blockwise": blockwise_attention, "cudnn": cudnn_attention}[implementation](call)


def choose(call: AttentionCall) -> str:
    """The implementation that `auto` stands for, logged once."""
    tpu, shape = tpu_generation(), call.shape
    unserved = refusal(call) if tpu is None and on_gpu() else None
    if tpu is not None:
        chosen = "fused"
    elif on_gpu() and unserved is None:
        chosen = "cudnn"
    else:
        chosen = xla_form(shape.S, shape.T, relative=call.r_NxHxK is not None)
    _log_choice(chosen, tpu or jax.default_backend(), unserved)
    return chosen


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


@functools.cache
def _log_choice(implementation: str, device: str, unserved: str | None) -> None:
    why = f"; cuDNN does not serve {unserved}" if unserved else ""
    logging.info("attention: implementation %s, chosen for %s%s", implementation, device, why)
