"""Digests of arrays: any number that differs is seen, and no mesh is."""

import hypothesis
import hypothesis.extra.numpy as arrays
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st
from jax.sharding import NamedSharding, PartitionSpec

from chinchilla_jax.training.digest import _on_devices, difference, digest_of_json, digests_of

SHAPES = arrays.array_shapes(min_dims=0, max_dims=3, max_side=5)


def digest(x):
    return digests_of({"x": jnp.asarray(x)})["['x']"]


@hypothesis.settings(deadline=None, max_examples=40)
@hypothesis.given(bits=arrays.arrays(np.uint32, SHAPES), at=st.integers(0, 10**6), bit=st.integers(0, 31))
def test_one_flipped_bit_is_always_seen(bits, at, bit):
    flipped = bits.copy().reshape(-1)
    flipped[at % flipped.size] ^= np.uint32(1 << bit)
    assert digest(bits) != digest(flipped.reshape(bits.shape))


def test_numbers_that_change_places_are_seen_and_so_are_the_signs_of_zeros():
    assert digest(np.float32([1, 2, 3])) != digest(np.float32([2, 1, 3]))
    assert digest(np.float32([0.0])) != digest(np.float32([-0.0]))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int32", "uint8", "bool"])
def test_devices_give_the_digest_of_the_host_however_they_share_the_array(dtype):
    x = jnp.asarray(np.random.default_rng(0).integers(0, 9, (8, 4, 6)), dtype)
    mesh = jax.sharding.Mesh(np.array(jax.devices()).reshape(4, 2), ("a", "b"))
    for spec in (PartitionSpec(), PartitionSpec("a", "b"), PartitionSpec(None, None, "b")):
        placed = jax.device_put(x, NamedSharding(mesh, spec))
        assert int(_on_devices({"x": placed})["x"]) == digest(x) == digest(placed)


def test_what_differs_is_named():
    assert difference({"a": 1, "b": 2}, {"a": 1, "b": 2}) == ""
    assert difference({"a": 1, "b": 2, "c": 3}, {"a": 5, "b": 6, "c": 3}).startswith(
        "a and 1 more is not what was saved"
    )
    assert (
        digest_of_json({"a": 1, "b": [2]}) == digest_of_json({"b": [2], "a": 1}) != digest_of_json({"a": 1, "b": [3]})
    )
