"""Rows split over a context axis: attention and training are what they are on one device."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from chinchilla_jax.config import MeshConfig
from chinchilla_jax.kernels.attention import attention
from chinchilla_jax.model.positions import rotary, xpos
from chinchilla_jax.parallel.attention import sharded_attention
from chinchilla_jax.parallel.mesh import make_mesh

S, K = 32, 8
IDS = np.stack([np.searchsorted([3, 9, 21], np.arange(S), side="right"), np.arange(S) // 17]).astype(np.int32)
# Heads and groups: 8 divide over 4 context devices besides 2 of heads, so that they are exchanged; the others do not.
EXCHANGED, GATHERED = (8, 8), (6, 2)


def draw(heads, groups, relative=False, rows=2, s=S):
    """Arguments of one call, and a cotangent for its output and log-sum-exp."""
    rng = np.random.default_rng(0)
    shapes = {"q_BxSxHxK": (rows, s, heads, K), "k_BxTxGxK": (rows, s, groups, K), "v_BxTxGxK": (rows, s, groups, K)}
    if relative:
        shapes |= {"r_NxHxK": (s + 5, heads, K), "u_HxK": (heads, K), "w_HxK": (heads, K)}
    arrays = {name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}
    d_out = rng.standard_normal((rows, s, heads, K), np.float32)
    return arrays, (d_out, rng.standard_normal((rows, heads, s), np.float32))


def value_and_gradients(attend, arrays, cotangents, **keywords):
    """Output, log-sum-exp and the gradients of every array, in one compiled function."""

    @jax.jit
    def run(arrays, cotangents):
        results, pull_back = jax.vjp(lambda x: attend(**x, **keywords, return_lse=True), arrays)
        return results, pull_back(cotangents)[0]

    return run(arrays, cotangents)


def near(found, expected):
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=2e-6), found, expected)


CALLS = {
    "plain": {},
    "relative": {},
    "rotary": {"q_turn_2xSxK": rotary(jnp.arange(S), K, 100.0), "k_turn_2xTxK": rotary(jnp.arange(S), K, 100.0)},
    "xpos": dict(zip(("q_turn_2xSxK", "k_turn_2xTxK"), xpos(jnp.arange(S), K, 100.0), strict=True)),
    "packed": {"segment_ids_BxT": IDS},
    "window and cap": {"window": 11, "softcap": 3.0, "segment_ids_BxT": IDS},
}


@pytest.mark.parametrize("mesh", [(1, 1, 1, 2), (2, 1, 1, 4), (1, 1, 2, 4), (1, 2, 2, 2)], ids=str)
@pytest.mark.parametrize(("heads", "call"), [
    (EXCHANGED, "plain"), (EXCHANGED, "relative"), (EXCHANGED, "xpos"), ((16, 8), "packed"),
    (GATHERED, "plain"), (GATHERED, "rotary"), ((6, 6), "relative"), (GATHERED, "packed"), (GATHERED, "window and cap"),
])  # fmt: skip
def test_outputs_and_gradients_are_those_of_one_device(mesh, heads, call):
    arrays, cotangents = draw(*heads, relative=call == "relative")
    keywords = CALLS[call] | {"implementation": "plain"}
    expected = value_and_gradients(attention, arrays, cotangents, **keywords)
    found = value_and_gradients(sharded_attention(make_mesh(MeshConfig(*mesh))), arrays, cotangents, **keywords)
    near(found, expected)
    assert min(np.abs(gradient).max() for gradient in expected[1].values()) > 0.1
