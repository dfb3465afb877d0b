"""An evaluation is the same whatever the batches it is made in."""

import math

import numpy as np
import pytest

from chinchilla_jax.data import Batches, TokenStore, store_path
from chinchilla_jax.training.evaluate import _standard_error, domain_sequences, evaluate


def test_evaluation_does_not_depend_on_the_batch_size(small):
    batches = Batches(TokenStore(store_path(small.data)), small.data.mixture, 0)

    def nats(batch):
        nll = np.log1p(batch["inputs"] + 3 * batch["targets"]) * batch["weights"]
        return {"nll": nll.sum((1,)), "weight": batch["weights"].sum((1,))}

    one, other = (evaluate(batches, nats, size, 50) for size in (3, 16))
    assert one == pytest.approx(other, rel=1e-6) and len(one) == 3 + 2 * len(batches.weights)
    for domain, count in domain_sequences(batches.weights, 50).items():
        sizes = batches.store.row_bytes(domain, "validation")[:count]
        nats_per_byte = one[f"validation_loss/{domain}"] * count * batches.store.seq_len / sizes.sum()
        assert one[f"bits_per_byte/{domain}"] == pytest.approx(nats_per_byte / math.log(2), rel=1e-6)


def test_the_standard_error_is_how_far_other_rows_would_move_the_loss():
    rng = np.random.default_rng(0)
    errors, losses = [], []
    for _ in range(400):
        tokens = rng.integers(20, 200, 60).astype(float)
        nll = tokens * (3.0 + rng.standard_normal(60))
        errors.append(_standard_error([nll], [tokens]))
        losses.append(nll.sum() / tokens.sum())
    assert np.mean(errors) == pytest.approx(np.std(losses), rel=0.1)
    assert _standard_error([np.array([5.0])], [np.array([2.0])]) == math.inf


def test_every_domain_is_evaluated():
    assert domain_sequences({"a": 0.7, "b": 0.299, "c": 0.001}, 100) == {"a": 70, "b": 30, "c": 1}
