"""How does attention run on an NVIDIA GPU? By the fused kernels of cuDNN, which JAX calls for bfloat16.

The relative term is given to them as a bias on the scores, which XLA makes in the type of the queries: one product and
one shift, for so many rows at a time that no bias is larger than `BIAS_BYTES`. It is made again for the backward pass,
and the forward kernel runs again with it: kept, it would be `[B, H, S, T]` for each layer.
"""

from __future__ import annotations

import functools
import math

import jax
import jax.extend
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from chinchilla_jax.kernels.call import Attended, AttentionCall, AttentionError
from chinchilla_jax.kernels.plain import biased, relative_scores

BIAS_BYTES = 2**30
BACKEND = "cudnn"  # of `jax.nn.dot_product_attention`; tests without a GPU compare with another


def on_gpu() -> bool:
    """Whether programs are compiled for a GPU of NVIDIA. JAX calls those of AMD `gpu` as well."""
    return jax.default_backend() == "gpu" and "cuda" in jax.extend.backend.get_backend().platform_version


def refusal(call: AttentionCall) -> str | None:
    """What of a call cuDNN cannot serve, in words; None if it serves it all.

    Its log-sum-exp is rounded to bfloat16 and has no gradient, its backward pass wants even lengths, a mask of
    documents would be an array of S x T, and what it does about a bias within a window is not documented.
    """
    shape, newest = call.shape, _capability()
    at_the_keys = call.offset_is_static and call.q_offset == 0 and shape.S == shape.T
    largest = 256 if newest >= (9, 0) else 128
    faults = (
        (newest < (8, 0), "GPUs before Ampere"),
        (call.q_BxSxHxK.dtype != jnp.bfloat16, str(call.q_BxSxHxK.dtype)),
        (call.softcap is not None, "a soft cap"),
        (call.segment_ids_BxT is not None, "packed documents"),
        (call.return_lse, "the log-sum-exp"),
        (not at_the_keys, "an offset between queries and keys"),
        (shape.S % 2 > 0, "an odd number of tokens"),
        (shape.K % 8 > 0 or shape.K > largest, f"heads of {shape.K} (multiples of 8 up to {largest} are)"),
        (call.window is not None and call.r_NxHxK is not None, "a window beside relative positions"),
    )
    return next((what for wrong, what in faults if wrong), None)


def _capability() -> tuple[int, int]:
    """That of the GPU here; without one that of Hopper."""
    if not on_gpu():
        return 9, 0
    major, minor = str(jax.local_devices()[0].compute_capability).split(".")
    return int(major), int(minor)


def cudnn_attention(call: AttentionCall) -> Attended:
    """`attention.attention` of a call without rotations. Raises AttentionError for what `refusal` names."""
    if what := refusal(call):
        raise AttentionError("implementation", f'"cudnn" does not serve {what}: use "auto"')
    if BACKEND == "cudnn" and not on_gpu():
        raise AttentionError("implementation", '"cudnn" needs an NVIDIA GPU: use "auto"')
    if call.r_NxHxK is None:
        out_BxSxHxK = _scored(call, call.q_BxSxHxK, None, call.scale)
    else:
        out_BxSxHxK = _some_rows_at_a_time(call)
    return checkpoint_name(out_BxSxHxK, "attention_output")  # as the other forms: policies of remat know it


def _some_rows_at_a_time(call: AttentionCall) -> jax.Array:
    count = _rows_at_a_time(call)

    @functools.partial(jax.checkpoint, prevent_cse=count == call.shape.B)  # a loop keeps it apart already
    def of_rows(arrays: dict[str, jax.Array]) -> jax.Array:
        part = call.replace(**arrays)
        bias_BxHxSxT = relative_scores(biased(part.q_BxSxHxK, part.position_bias_HxK, part.scale), part, jnp.bfloat16)
        return _scored(part, biased(part.q_BxSxHxK, part.content_bias_HxK, part.scale), bias_BxHxSxT, 1.0)

    rows = {name: x for name, x in call.arrays.items() if name in ("q_BxSxHxK", "k_BxTxGxK", "v_BxTxGxK")}
    if count == call.shape.B:
        return of_rows(rows)
    out = jax.lax.map(of_rows, {name: x.reshape(-1, count, *x.shape[1:]) for name, x in rows.items()})
    return out.reshape(-1, *out.shape[2:])


def _rows_at_a_time(call: AttentionCall) -> int:
    """The largest divisor of B with which a bias is not too large; at least 1."""
    shape = call.shape
    fit = max(1, BIAS_BYTES // (2 * math.prod((shape.H, shape.S, shape.T))))
    return max(count for count in range(1, shape.B + 1) if shape.B % count == 0 and count <= fit)


def _scored(call: AttentionCall, q_BxSxHxK: jax.Array, bias_BxHxSxT: jax.Array | None, scale: float) -> jax.Array:
    window = None if call.window is None or call.window >= call.shape.T else (call.window - 1, 0)
    arrays = (q_BxSxHxK, call.k_BxTxGxK, call.v_BxTxGxK, bias_BxHxSxT)
    return jax.nn.dot_product_attention(
        *arrays, scale=scale, is_causal=True, local_window_size=window, implementation=BACKEND
    )
