"""Validation loss: per domain and on the mixture, in nats per token and bits per byte."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from chinchilla_jax.data import Batches
from chinchilla_jax.training import labels


def domain_sequences(weights: Mapping[str, float], total: int) -> dict[str, int]:
    """Validation sequences per domain: `total` shared out by mixture weight, at least one each."""
    return {domain: max(1, round(total * weight)) for domain, weight in weights.items()}


def evaluate(batches: Batches, run_batch: Callable[[dict], dict], batch_size: int, sequences: int) -> dict[str, float]:
    """The validation record of so many sequences, the same ones for every run on this store and mixture.

    `run_batch` makes `nll` and `weight` sums (device arrays) of a host batch of `batch_size` rows. The record has
    validation_loss (nats per token) and bits_per_byte on the mixture, and `.../DOMAIN` for each domain. The mixture
    weighs the domains' token averages by the shares of tokens that training draws from them. Where every domain has
    two sums, validation_standard_error of the mixture's loss: how far other rows of the same kind would move it.
    With a teacher it has teacher_loss and teacher_accuracy too, on as many propositions.
    """
    record, loss, bytes_per_token, variance = {}, 0.0, 0.0, 0.0
    for domain, count in domain_sequences(batches.weights, sequences).items():
        results = [run_batch(batch) for batch in batches.validation(domain, batch_size, count)]
        n_bytes = float(batches.store.row_bytes(domain, "validation")[:count].sum())
        parts = [[np.asarray(result[name], np.float64) for result in results] for name in ("nll", "weight")]
        nll, tokens = (sum(float(part.sum()) for part in of_batches) for of_batches in parts)
        record[f"validation_loss/{domain}"] = nll / tokens
        record[f"bits_per_byte/{domain}"] = nll / math.log(2.0) / n_bytes
        loss += batches.weights[domain] * nll / tokens
        bytes_per_token += batches.weights[domain] * n_bytes / tokens
        variance += (batches.weights[domain] * _standard_error(*parts)) ** 2
    if batches.teacher:
        results = [run_batch(batch) for batch in batches.validation_of_teacher(batch_size, sequences)]
        record |= labels.record([sum(float(r[name].sum()) for r in results) for name in labels.NAMES])
    record |= {"validation_standard_error": math.sqrt(variance)} if math.isfinite(variance) else {}
    return {"validation_loss": loss, "bits_per_byte": loss / math.log(2.0) / bytes_per_token, **record}


def _standard_error(nll: Sequence[np.ndarray], tokens: Sequence[np.ndarray]) -> float:
    """Of the mean loss of a token, from sums over parts of the rows: that of a ratio; infinite for a single part."""
    x, y = (np.concatenate([part.ravel() for part in parts]) for parts in (nll, tokens))
    x, y = x[y > 0], y[y > 0]
    if len(y) < 2:
        return math.inf
    left = x - y * x.sum() / y.sum()
    return math.sqrt(len(y) / (len(y) - 1) * float((left**2).sum())) / float(y.sum())
