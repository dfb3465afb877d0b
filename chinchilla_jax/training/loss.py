"""Cross-entropy over the vocabulary, in float32."""

from __future__ import annotations

import jax
import jax.numpy as jnp


@jax.custom_vjp
def cross_entropy(logits_BxSxV: jax.Array, targets_BxS: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Negative log-likelihood in nats and log Z of every position, `[B, S]` float32 each.

    The backward pass is one fused sweep over the logits, softmax less one-hot: the scatter that indexing would
    transpose to is slow everywhere.
    """
    return _forward(logits_BxSxV, targets_BxS)[0]


def _forward(logits_BxSxV, targets_BxS):
    logits_BxSxV = logits_BxSxV.astype(jnp.float32)
    log_z_BxS = jax.nn.logsumexp(logits_BxSxV, axis=-1)
    label_BxS = jnp.take_along_axis(logits_BxSxV, targets_BxS[..., None], axis=-1)[..., 0]
    return (log_z_BxS - label_BxS, log_z_BxS), (logits_BxSxV, targets_BxS, log_z_BxS)


def _backward(saved, cotangents):
    logits_BxSxV, targets_BxS, log_z_BxS = saved
    d_nll_BxS, d_log_z_BxS = cotangents
    softmax_BxSxV = jnp.exp(logits_BxSxV - log_z_BxS[..., None])
    is_target = jnp.arange(logits_BxSxV.shape[-1]) == targets_BxS[..., None]
    d_logits = softmax_BxSxV * (d_nll_BxS + d_log_z_BxS)[..., None] - jnp.where(is_target, d_nll_BxS[..., None], 0.0)
    return d_logits, None


cross_entropy.defvjp(_forward, _backward)


def weighted_sums(logits_BxSxV: jax.Array, targets_BxS: jax.Array, weights_BxS: jax.Array,
                  z_loss: float) -> tuple[jax.Array, dict[str, jax.Array]]:  # fmt: skip
    """What to minimise, summed over tokens and not yet divided by their number, and the sums to report.

    Sums and not means, so that microbatches and hosts with unequal numbers of real tokens add up to the token-weighted
    mean of the global batch. `z_loss` multiplies log(Z)^2 (Chowdhery et al. 2022, section 5).
    """
    nll_BxS, log_z_BxS = cross_entropy(logits_BxSxV, targets_BxS)
    nll = jnp.sum(nll_BxS * weights_BxS)
    objective = nll
    if z_loss:
        objective = objective + z_loss * jnp.sum(jnp.square(log_z_BxS) * weights_BxS)
    return objective, {"nll": nll, "weight": jnp.sum(weights_BxS)}
