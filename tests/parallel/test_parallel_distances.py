"""Keys of relative distances: both ways to get them are the same function."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from chinchilla_jax.model import positions
from chinchilla_jax.parallel import distances


@pytest.mark.parametrize("n", [9, 10], ids=["products of parts", "the weight gathered"])
def test_the_keys_of_distances_and_their_gradient_do_not_depend_on_the_way(n, monkeypatch):
    rng = np.random.default_rng(0)
    sinusoids, w = positions.sinusoids(jnp.arange(n), 32), rng.standard_normal((32, 12)).astype(np.float32)
    direction = rng.standard_normal((n, 12)).astype(np.float32)
    parts = []
    in_parts = distances.project_in_parts
    monkeypatch.setattr(distances, "project_in_parts", lambda *arrays: parts.append(n) or in_parts(*arrays))
    ours, pull = jax.vjp(lambda w: distances.project(sinusoids, w, jnp.float32), w)
    expected, pull_expected = jax.vjp(lambda w: positions.project(sinusoids, w, jnp.float32), w)
    np.testing.assert_allclose(ours, expected, atol=1e-5)
    np.testing.assert_allclose(pull(direction)[0], pull_expected(direction)[0], atol=1e-5)
    assert parts == ([9] if n == 9 else [])
