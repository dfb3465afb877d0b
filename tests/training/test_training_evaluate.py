"""An evaluation is the same whatever the batches it is made in."""

import math

import numpy as np
import pytest

from chinchilla_jax.data import Batches, TokenStore, store_path
from chinchilla_jax.training.evaluate import domain_sequences, evaluate


def test_evaluation_does_not_depend_on_the_batch_size(small):
    batches = Batches(TokenStore(store_path(small.data)), small.data.mixture, 0)

    def nats(batch):
        nll = np.log1p(batch["inputs"] + 3 * batch["targets"]) * batch["weights"]
        return {"nll": nll.sum((1,)), "weight": batch["weights"].sum((1,))}

    one, other = (evaluate(batches, nats, size, 50) for size in (3, 16))
    assert one == pytest.approx(other, rel=1e-6) and len(one) == 2 + 2 * len(batches.weights)
    for domain, count in domain_sequences(batches.weights, 50).items():
        sizes = batches.store.byte_lengths[np.asarray(batches.store.array(domain, "validation"))[:count, 1:]]
        nats_per_byte = one[f"validation_loss/{domain}"] * sizes.size / sizes.sum()
        assert one[f"bits_per_byte/{domain}"] == pytest.approx(nats_per_byte / math.log(2), rel=1e-6)


def test_every_domain_is_evaluated():
    assert domain_sequences({"a": 0.7, "b": 0.299, "c": 0.001}, 100) == {"a": 70, "b": 30, "c": 1}
