"""How well does a model label the propositions of its teacher, and what is the loss of the text without them?

A step minimises one mean over text and labels. These sums tell the two apart; they read the output layer at the labels
only, one position of a row, and have no gradients. No convention of the ledger counts them: they cost 1 / S of a
forward pass through the output layer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

Arrays = dict[str, jax.Array]
NAMES = ("label_nll", "labels_right", "labels")


def label_sums(x_BxSxD: jax.Array, output_VxD: jax.Array, bias_V: jax.Array | None, batch: Arrays) -> Arrays:
    """Over the propositions of a batch: nats of their labels, how many are right, how many there are.

    A label is right if it is more likely than the other one. A row has one label at most. Nothing for batches without
    `other_labels`.
    """
    if "other_labels" not in batch:
        return {}
    x_BxSxD, output_VxD, bias_V = jax.lax.stop_gradient((x_BxSxD, output_VxD, bias_V))
    here_BxS = batch["other_labels"] >= 0
    # One term of each sum is not zero, so it is exact in any type.
    x_BxD = jnp.einsum("bsd,bs->bd", x_BxSxD, here_BxS.astype(x_BxSxD.dtype))
    label_B, other_B = (jnp.sum(jnp.where(here_BxS, batch[n], 0), axis=1) for n in ("targets", "other_labels"))
    logits_BxV = jnp.einsum("bd,vd->bv", x_BxD, output_VxD, preferred_element_type=jnp.float32)
    logits_BxV = logits_BxV if bias_V is None else logits_BxV + bias_V
    logits_BxV = nn.with_logical_constraint(logits_BxV, ("batch", "vocab"))
    log_z_B = jax.nn.logsumexp(logits_BxV, axis=-1)
    of_label_B, of_other_B = (
        jnp.sum(jnp.where(jnp.arange(logits_BxV.shape[1]) == token_B[:, None], logits_BxV, 0.0), axis=-1)
        for token_B in (label_B, other_B)
    )
    is_label_B = jnp.any(here_BxS, axis=1)
    sums = log_z_B - of_label_B, of_label_B > of_other_B, jnp.ones_like(is_label_B)
    return {name: jnp.sum(jnp.where(is_label_B, value, 0.0)) for name, value in zip(NAMES, sums, strict=True)}


def of_step(metrics: Mapping[str, jax.Array], label_weight: float) -> tuple[float, list[float]]:
    """Nats per token of a step's text, NaN if it had none, and the sums of its labels.

    `metrics` are those of a train step, by weight; `label_weight` is that of a label.
    """
    weight = float(metrics["weight"])
    divisor = max(weight, 1.0)  # of every sum of the step
    nll, right, labels = (float(metrics[name]) * divisor for name in NAMES)
    text = weight - label_weight * round(labels)
    text_loss = (float(metrics["loss"]) * divisor - label_weight * nll) / text if text > 0.5 else math.nan
    return text_loss, [nll, round(right), round(labels)]


def record(sums: Sequence[float]) -> dict[str, float]:
    """What is written of sums by `NAMES`: nothing if there was no label."""
    nll, right, labels = sums
    return {"teacher_loss": nll / labels, "teacher_accuracy": right / labels} if labels else {}
