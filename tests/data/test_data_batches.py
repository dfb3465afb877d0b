"""Batches depend on the position in training and on nothing else."""

import numpy as np
import pytest

from chinchilla_jax.data import Batches


@pytest.fixture(scope="module")
def batches(store):
    return Batches(store, "proportional", seed=5, mask_documents=True)


def _equal(one, other):
    assert one.keys() == other.keys()
    for key in one:
        assert np.array_equal(one[key], other[key]), key
        assert one[key].dtype == other[key].dtype


def test_shapes_and_types(batches, store):
    batch = batches.batch(0, 6)
    assert {key: value.dtype.name for key, value in batch.items()} == {
        "inputs": "int32", "targets": "int32", "weights": "float32", "segment_ids": "int32"}  # fmt: skip
    assert all(value.shape == (6, store.seq_len) for value in batch.values())
    assert np.array_equal(batch["inputs"][:, 1:], batch["targets"][:, :-1])
    assert "segment_ids" not in Batches(store, "uniform", seed=0).batch(0, 2)


@pytest.mark.parametrize("hosts", [1, 2, 3, 4, 12])
def test_any_number_of_hosts_sees_the_same_global_batch(batches, hosts):
    share = 12 // hosts
    parts = [batches.batch(36, 12, rows=slice(h * share, (h + 1) * share)) for h in range(hosts)]
    _equal({key: np.concatenate([part[key] for part in parts]) for key in parts[0]}, batches.batch(36, 12))


def test_neither_order_nor_batch_size_nor_a_restart_matters(batches, store):
    again = Batches(store, "proportional", seed=5, mask_documents=True)
    later, earlier = again.batch(8, 8), again.batch(0, 8)
    whole = batches.batch(0, 16)
    _equal({key: np.concatenate([earlier[key], later[key]]) for key in earlier}, whole)


def test_another_seed_gives_another_order(batches, store):
    other = Batches(store, "proportional", seed=6).batch(0, 16)
    assert not np.array_equal(other["inputs"], batches.batch(0, 16)["inputs"])


def test_one_epoch_holds_every_target_once(store):
    rows = store.rows("poems")
    batch = Batches(store, "poems=1", seed=0).batch(0, rows)
    assert batch["weights"].sum() == store.tokens("poems")
    seen = np.bincount(batch["targets"][batch["weights"] > 0], minlength=store.vocab_size)
    there = store.array("poems")[:, 1:].reshape(-1)[: store.tokens("poems")]
    assert np.array_equal(seen, np.bincount(there, minlength=store.vocab_size))


def test_a_document_is_one_segment_from_its_separator_on(batches, store):
    batch = batches.batch(0, 200)
    separators = batch["inputs"] == store.separator
    segments = np.where(batch["weights"] > 0, batch["segment_ids"], 1)
    assert separators.any() and np.all(segments[:, 0] == 1)
    assert np.array_equal(np.diff(segments, axis=1) == 1, (separators & (batch["weights"] > 0))[:, 1:])


def test_validation_covers_everything_once_and_ignores_mixture_and_seed(store, batches):
    other = Batches(store, "poems=1", seed=99, mask_documents=True)
    for domain in store.domains:
        parts = list(batches.validation(domain, 7))
        for one, two in zip(parts, other.validation(domain, 7), strict=True):
            _equal(one, two)
        assert all(part["inputs"].shape == (7, store.seq_len) for part in parts)
        weights = np.concatenate([part["weights"] for part in parts])
        targets = np.concatenate([part["targets"] for part in parts])
        assert weights.sum() == store.tokens(domain, "validation")
        there = store.array(domain, "validation")[:, 1:].reshape(-1)[: store.tokens(domain, "validation")]
        assert np.array_equal(targets[weights > 0], there)


def test_validation_stops_where_told(store, batches):
    parts = list(batches.validation("plays", 4, sequences=6))
    assert [part["weights"].any(axis=1).sum() for part in parts] == [4, 2]
