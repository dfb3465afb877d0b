"""Global batches are the same tokens, however many hosts put them together, and when their number changes."""

import dataclasses
import hashlib

import jax
import numpy as np
import pytest

from chinchilla_jax.data import Batches, Teacher, TokenStore, prepare, store_path
from chinchilla_jax.parallel.mesh import assemble, local_rows, make_mesh
from chinchilla_jax.tools.parity import main
from chinchilla_jax.training.step import make_program
from tests.distributed.conftest import on

MESHES = [(1, 8, 1), (2, 2, 2), (8, 1, 1), (1, 1, 8), (4, 1, 2), (2, 1, 1, 4)]


def batch_sharding(run, mesh):
    """Of a run that can be laid out on any mesh of eight devices."""
    model = dataclasses.replace(run.model, n_heads=8, n_kv_heads=8)
    train = dataclasses.replace(run.train, batch_size=16)
    config = on(dataclasses.replace(run, model=model, train=train), *mesh)
    return make_program(config, make_mesh(config.mesh)).batch_sharding


@pytest.fixture(scope="module")
def batches(run):
    return Batches(TokenStore(store_path(run.data)), run.data.mixture, run.train.seed, mask_documents=True)


def of_hosts(batches, sharding, hosts, first, shape):
    """The tokens `[n, S]` of a global batch, each host contributing what it would build; rows no host builds are -1."""
    devices = np.asarray(jax.devices()).reshape(hosts, -1)
    tokens = np.full((shape[0] * shape[1], shape[2]), -1)
    built = 0
    for host in devices:
        for rows in local_rows(shape, sharding, set(host)):
            tokens[rows.ravel()] = batches.batch(first, len(tokens), rows.ravel())["inputs"]
            built += rows.size
    return tokens, built


@pytest.mark.parametrize("mesh", MESHES, ids=str)
def test_one_two_four_and_eight_hosts_build_the_same_batches(run, batches, mesh):
    """Also a run whose hosts change in the middle, and whose batch doubles."""
    sharding = batch_sharding(run, mesh)
    digests = {}
    for plan in [(1,) * 6, (2,) * 6, (4,) * 6, (8,) * 6, (4, 4, 2, 2, 1, 8)]:
        digest, first = hashlib.sha256(), 0
        for step, hosts in enumerate(plan):
            n = 16 if step < 4 else 32
            tokens, _ = of_hosts(batches, sharding, hosts, first, (2, n // 2, run.data.seq_len))
            digest.update(tokens.tobytes())
            first += n
        digests[plan] = digest.hexdigest()
    straight = np.concatenate([batches.batch(0, 64)["inputs"], batches.batch(64, 64)["inputs"]])
    assert set(digests.values()) == {hashlib.sha256(straight.astype(np.int64).tobytes()).hexdigest()}


def test_a_host_builds_no_more_than_its_devices_hold(run, batches):
    sharding = batch_sharding(run, (1, 8, 1))
    assert of_hosts(batches, sharding, 4, 0, (2, 8, run.data.seq_len))[1] == 16
    split = batch_sharding(run, (1, 1, 8))
    assert of_hosts(batches, split, 4, 0, (2, 8, run.data.seq_len))[1] == 4 * 16, "each host has a part of every row"


@pytest.mark.parametrize("mesh", MESHES, ids=str)
def test_assembled_arrays_are_those_placed_whole(run, batches, mesh):
    sharding = batch_sharding(run, mesh)
    shape = (2, 8, run.data.seq_len)
    found = assemble(lambda rows: batches.batch(48, 16, rows), shape, sharding)
    whole = {name: rows.reshape(shape) for name, rows in batches.batch(48, 16).items()}
    assert found.keys() == whole.keys() == {"inputs", "targets", "weights", "segment_ids"}
    for name, array in found.items():
        assert array.sharding == sharding and array.dtype == whole[name].dtype
        np.testing.assert_array_equal(array, whole[name])


def test_propositions_are_assembled_like_any_rows(run, tmp_path):
    file = tmp_path / "parity.jsonl"
    main([str(file), "--count=100"])
    data = dataclasses.replace(run.data, teacher=str(file), teacher_share=0.5)
    store = TokenStore(prepare(data, lambda line: None))
    taught = Batches(store, data.mixture, run.train.seed, True, Teacher(data, store.tokenizer()))
    sharding, shape = batch_sharding(run, (2, 1, 1, 4)), (2, 8, run.data.seq_len)
    found = assemble(lambda rows: taught.batch(48, 16, rows), shape, sharding)
    whole = taught.batch(48, 16)
    assert found.keys() == whole.keys() and (whole["other_labels"] >= 0).any()
    for name, array in found.items():
        np.testing.assert_array_equal(array, whole[name].reshape(shape))
