"""Cross-entropy over the vocabulary, in float32, without ever holding all logits.

A row of logits is 4 V / 2 D times as large as the row of the last layer's output (8 times in Chinchilla 70B). So logits
are made chunk by chunk of the tokens. The loss is a sum: what a chunk adds to the gradients is known as soon as its
logits are, so nothing of it is kept for a backward pass, or computed twice.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from chinchilla_jax.model.layers import sum_of_outer_products
from chinchilla_jax.parallel.vocabulary import OUTPUT_GRADIENTS, OUTPUT_LAYER, SUMS, TOKENS, Axes, on_each_device

# Logits of one chunk on one device. The gradient of the output matrix is added up once for each chunk.
CHUNK_BYTES = 128 * 2**20
Sums = tuple[Array, dict[str, Array]]  # what to minimise, and what to report: `nll` and `weight`


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def output_loss(
    x_BxSxD: Array, w_VxD: Array, bias_V: Array | None, targets_BxS: Array, weights_BxS: Array, z_loss: float
) -> Sums:
    """What to minimise, in nats, summed over tokens and not yet divided by their number, and the sums to report.

    Targets and weights are `[B, S]`, or `[B, S, K]` where a row predicts K tokens at once, all by the same logits.

    Sums and not means, so that microbatches and hosts with unequal numbers of real tokens add up to the token-weighted
    mean of the global batch. x is the last layer's output, w the output matrix, whole in the model width. `z_loss` is a
    factor of log(Z)^2 (Chowdhery et al. 2022, section 5), which is minimised but not in the reported nats.
    """

    def all_chunks(axes: Axes, x_BxSxD: Array, w_VxD: Array, bias_V: Array | None, *rows_BxS: Array) -> Sums:
        def chunk(sums: Sums, part: tuple[Array, ...]) -> tuple[Sums, None]:
            logits_NxV, log_z_N = _scores(axes, part[0], w_VxD, bias_V)
            aims = _aims(axes, logits_NxV, log_z_N, *part[1:])
            return jax.tree.map(jnp.add, sums, _sums(aims, log_z_N, z_loss)), None

        return axes.sum_of_tokens(_over_chunks(chunk, _zeros(), w_VxD, x_BxSxD, *rows_BxS)[0])

    return on_each_device(all_chunks, OUTPUT_LAYER, SUMS)(x_BxSxD, w_VxD, bias_V, targets_BxS, weights_BxS)


def _forward(
    x_BxSxD: Array, w_VxD: Array, bias_V: Array | None, targets_BxS: Array, weights_BxS: Array, z_loss: float
) -> tuple[Sums, list[Array]]:
    """Sums and, for a cotangent of one, the gradients."""

    def all_chunks(axes: Axes, x_BxSxD: Array, w_VxD: Array, bias_V: Array | None, *rows_BxS: Array) -> tuple:
        def chunk(carry: tuple, part: tuple[Array, ...]) -> tuple[tuple, Array]:
            sums, dw_VxD, dbias_V = carry
            x_NxD = part[0]
            logits_NxV, log_z_N = _scores(axes, x_NxD, w_VxD, bias_V)
            aims = _aims(axes, logits_NxV, log_z_N, *part[1:])
            sums = jax.tree.map(jnp.add, sums, _sums(aims, log_z_N, z_loss))
            softmax_NxV = jnp.exp(logits_NxV - log_z_N[:, None])
            scale_N = _total(aim.weights for aim in aims) * (1.0 + 2.0 * z_loss * log_z_N)
            hit_NxV = _total(jnp.where(aim.is_target, aim.weights[:, None], 0.0) for aim in aims)
            dlogits_NxV = softmax_NxV * scale_N[:, None] - hit_NxV
            if bias_V is not None:
                dbias_V += jnp.sum(dlogits_NxV, axis=0)
            dlogits_NxV = dlogits_NxV.astype(x_NxD.dtype)
            dw_VxD += sum_of_outer_products(dlogits_NxV, x_NxD, jnp.float32)
            return (sums, dw_VxD, dbias_V), jax.lax.dot(dlogits_NxV, w_VxD)

        dbias_V = None if bias_V is None else jnp.zeros(bias_V.shape, jnp.float32)
        zeros = _zeros(), jnp.zeros(w_VxD.shape, jnp.float32), dbias_V
        (sums, dw_VxD, dbias_V), dx_CxNxD = _over_chunks(chunk, zeros, w_VxD, x_BxSxD, *rows_BxS)
        sums, dx_BxSxD = axes.sum_of_tokens(sums), axes.residual(dx_CxNxD.reshape(x_BxSxD.shape))
        return sums, dx_BxSxD, axes.table_gradient(dw_VxD, w_VxD.dtype), axes.sum_of_tokens(dbias_V)

    run = on_each_device(all_chunks, OUTPUT_LAYER, (SUMS, *OUTPUT_GRADIENTS))
    sums, *gradients = run(x_BxSxD, w_VxD, bias_V, targets_BxS, weights_BxS)
    return sums, gradients


def _backward(z_loss: float, gradients: list[Array], cotangents: Sums) -> tuple[Array | None, ...]:
    by_objective, _ = cotangents
    dx_BxSxD, dw_VxD, dbias_V = jax.tree.map(lambda g: (by_objective * g).astype(g.dtype), gradients)
    return dx_BxSxD, dw_VxD, dbias_V, None, None


output_loss.defvjp(_forward, _backward)


def token_nats(x_BxSxD: Array, w_VxD: Array, bias_V: Array | None, targets_BxS: Array) -> Array:
    """Nats of every token, `[B, S]` in float32. It has no gradient of its own, as `output_loss` has."""
    return token_scores(x_BxSxD, w_VxD, bias_V, targets_BxS)[0]


def token_scores(x_BxSxD: Array, w_VxD: Array, bias_V: Array | None, targets_BxS: Array) -> tuple[Array, Array]:
    """Nats of every token, and whether none is likelier in its place: `[B, S]`, float32 and bool. No gradient."""

    def all_chunks(axes: Axes, x_BxSxD: Array, w_VxD: Array, bias_V: Array | None, targets_BxS: Array) -> tuple:
        def chunk(carry: None, part: tuple[Array, ...]) -> tuple[None, tuple[Array, Array]]:
            logits_NxV, log_z_N = _scores(axes, part[0], w_VxD, bias_V)
            nll_N = _aim(axes, logits_NxV, log_z_N, part[1]).nll
            highest_N = axes.max_of_vocab(jnp.max(logits_NxV, axis=-1))
            return carry, (nll_N, nll_N <= log_z_N - highest_N)

        chunks = _over_chunks(chunk, None, w_VxD, x_BxSxD, targets_BxS)[1]
        return jax.tree.map(lambda x: x.reshape(targets_BxS.shape), chunks)

    return on_each_device(all_chunks, OUTPUT_LAYER[:4], (TOKENS, TOKENS))(x_BxSxD, w_VxD, bias_V, targets_BxS)


def _zeros() -> Sums:
    zero = jnp.zeros((), jnp.float32)
    return zero, {"nll": zero, "weight": zero}


def _over_chunks(chunk: Callable, carry: Any, w_VxD: Array, *arrays_BxS: Array) -> tuple[Any, Any]:
    """Scans over chunks of the tokens of this device; what each returns besides the carry is stacked."""
    tokens = arrays_BxS[0].shape[0] * arrays_BxS[0].shape[1]
    least = min(tokens, 4 * tokens * w_VxD.shape[0] / CHUNK_BYTES)
    chunks = next(n for n in range(1, tokens + 1) if n >= least and tokens % n == 0)
    parts = tuple(array.reshape(chunks, tokens // chunks, *array.shape[2:]) for array in arrays_BxS)
    if chunks == 1:
        return chunk(carry, jax.tree.map(lambda part: part[0], parts))
    return jax.lax.scan(chunk, carry, parts)


def _scores(axes: Axes, x_NxD: Array, w_VxD: Array, bias_V: Array | None) -> tuple[Array, Array]:
    """Logits of this device's part of the vocabulary, and log Z of all."""
    logits_NxV = jax.lax.dot_general(x_NxD, w_VxD, (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32)
    if bias_V is not None:
        logits_NxV += bias_V
    top_N = axes.max_of_vocab(jnp.max(logits_NxV, axis=-1))
    z_N = axes.sum_of_vocab(jnp.sum(jnp.exp(logits_NxV - top_N[:, None]), axis=-1))
    return logits_NxV, top_N + jnp.log(z_N)


class _Aim(NamedTuple):
    """A target for each row: which logits of this device are theirs `[N, V]`, their nats and their weights `[N]`."""

    is_target: Array
    nll: Array
    weights: Array


def _aim(axes: Axes, logits_NxV: Array, log_z_N: Array, targets_N: Array, weights_N: Array | None = None) -> _Aim:
    rows = logits_NxV.shape[1]
    is_target_NxV = jnp.arange(rows) == (targets_N - axes.first_row(rows))[:, None]
    label_N = axes.sum_of_vocab(jnp.sum(jnp.where(is_target_NxV, logits_NxV, 0.0), axis=-1))
    return _Aim(is_target_NxV, log_z_N - label_N, weights_N)


def _aims(axes: Axes, logits_NxV: Array, log_z_N: Array, targets: Array, weights: Array) -> list[_Aim]:
    """The targets of each row, one after the other where there are several."""
    if targets.ndim == 1:
        return [_aim(axes, logits_NxV, log_z_N, targets, weights)]
    return [_aim(axes, logits_NxV, log_z_N, targets[:, k], weights[:, k]) for k in range(targets.shape[1])]


def _sums(aims: list[_Aim], log_z_N: Array, z_loss: float) -> Sums:
    nll = _total(jnp.sum(aim.nll * aim.weights) for aim in aims)
    weights_N = _total(aim.weights for aim in aims)
    objective = nll + z_loss * jnp.sum(jnp.square(log_z_N) * weights_N) if z_loss else nll
    return objective, {"nll": nll, "weight": jnp.sum(weights_N)}


def _total(terms: Iterable[Array]) -> Array:
    return functools.reduce(jnp.add, terms)
