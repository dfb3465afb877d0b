"""Cross-entropy against float64, by formula; chunks and devices change nothing but rounding."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from chinchilla_jax.config import MeshConfig
from chinchilla_jax.parallel.mesh import make_mesh
from chinchilla_jax.parallel.vocabulary import lookup
from chinchilla_jax.training import loss
from chinchilla_jax.training.loss import output_loss

B, S, D, V = 2, 8, 8, 12


@pytest.fixture
def batch():
    """The last layer's output, the output matrix, a bias; targets and weights, of which some are zero."""
    rng = np.random.default_rng(0)
    x, w, bias = (rng.standard_normal(shape).astype(np.float32) for shape in ((B, S, D), (V, D), (V,)))
    weights = rng.integers(0, 2, (B, S)).astype(np.float32)
    weights[0, 0], weights[1, 4] = 1.0, 0.0
    return (x, w, bias), rng.integers(0, V, (B, S)), weights


def value_and_gradients(arrays, targets, weights, z_loss):
    """Objective, sums, and the gradients of output, matrix and bias."""

    @jax.jit
    def run(arrays):
        return jax.value_and_grad(lambda a: output_loss(*a, targets, weights, z_loss), has_aux=True)(arrays)

    (objective, sums), gradients = run(arrays)
    return objective, sums, gradients


def by_formula(arrays, targets, weights, z_loss):
    """The same in float64, without automatic differentiation."""
    x, w, bias = (a.astype(np.float64) for a in arrays)
    logits = x @ w.T + bias
    top = logits.max(-1, keepdims=True)
    log_z = (top + np.log(np.exp(logits - top).sum(-1, keepdims=True)))[..., 0]
    softmax, one_hot = np.exp(logits - log_z[..., None]), np.eye(V)[targets]
    nll = log_z - (logits * one_hot).sum(-1)
    d_logits = weights[..., None] * (softmax - one_hot + 2 * z_loss * log_z[..., None] * softmax)
    gradients = d_logits @ w, np.einsum("bsv,bsd->vd", d_logits, x), d_logits.sum((0, 1))
    return (weights * (nll + z_loss * log_z**2)).sum(), (weights * nll).sum(), gradients


@pytest.mark.parametrize("chunk_bytes", [2**20, 4 * V * 4, 1], ids=["one chunk", "four chunks", "a token each"])
@pytest.mark.parametrize("z_loss", [0.0, 0.3])
@pytest.mark.parametrize("shift", [0.0, 500.0, -500.0])
def test_objective_and_gradients(batch, z_loss, shift, chunk_bytes, monkeypatch):
    monkeypatch.setattr(loss, "CHUNK_BYTES", chunk_bytes)
    (x, w, bias), targets, weights = batch
    arrays = x, w, bias + np.float32(shift)
    expected, nll, expected_gradients = by_formula(arrays, targets, weights, z_loss)
    objective, sums, gradients = value_and_gradients(arrays, targets, weights, z_loss)
    far = 2e-6 if not shift else 2e-4  # float32 holds a shifted logit to 3e-5
    np.testing.assert_allclose(objective, expected, rtol=far)
    np.testing.assert_allclose(sums["nll"], nll, rtol=far)
    assert sums["weight"] == weights.sum()
    scale = 1.0 + abs(2 * z_loss * shift)
    for found, right in zip(gradients, expected_gradients, strict=True):
        np.testing.assert_allclose(found, right, rtol=far, atol=far * scale * 10)


def test_without_gradients_the_sums_are_the_same(batch):
    arrays, targets, weights = batch
    plain, plain_sums = output_loss(*arrays, targets, weights, 0.3)
    objective, sums, _ = value_and_gradients(arrays, targets, weights, 0.3)
    np.testing.assert_allclose([plain, plain_sums["nll"]], [objective, sums["nll"]], rtol=1e-6)


def test_gradients_scale_with_what_is_made_of_the_objective(batch):
    arrays, targets, weights = batch
    _, _, expected = value_and_gradients(arrays, targets, weights, 0.0)
    tripled = jax.grad(lambda a: 3.0 * output_loss(*a, targets, weights, 0.0)[0])(arrays)
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6),
        tripled,
        jax.tree.map(lambda g: 3.0 * g, expected),
    )


def test_padding_has_no_effect(batch):
    (x, w, bias), targets, weights = batch
    other_x = np.where(weights[..., None] > 0, x, 7.0 * x[::-1])
    other_targets = np.where(weights > 0, targets, V - 1 - targets)
    assert (other_targets != targets).any()
    one = value_and_gradients((x, w, bias), targets, weights, 0.1)
    two = value_and_gradients((other_x, w, bias), other_targets, weights, 0.1)
    jax.tree.map(np.testing.assert_array_equal, one, two)
    dx = one[2][0]
    assert not dx[weights == 0].any() and dx[weights > 0].all()


def test_z_loss_is_minimised_but_not_reported(batch):
    arrays, targets, weights = batch
    (plain, reported), (with_z, reported_with_z) = (output_loss(*arrays, targets, weights, z) for z in (0.0, 0.5))
    assert with_z > plain == reported["nll"] == reported_with_z["nll"]


@pytest.mark.parametrize("mesh", [MeshConfig(2, 2, 2), MeshConfig(1, 2, 2, context=2)], ids=str)
def test_the_vocabulary_may_be_split(batch, mesh, monkeypatch):
    """Both ends of the model, on as many rows as the mesh needs, with two chunks on every device."""
    monkeypatch.setattr(loss, "CHUNK_BYTES", 4 * V // mesh.tensor * S // 2)
    (_, table, bias), _, _ = batch
    rng = np.random.default_rng(1)
    tokens, targets = rng.integers(0, V, (2, 4, S))
    weights = rng.integers(0, 2, (4, S)).astype(np.float32)

    def both_ends(arrays):
        table, bias = arrays
        return output_loss(jnp.sin(lookup(table, tokens)), table, bias, targets, weights, 0.1)

    def run(arrays):
        return jax.value_and_grad(both_ends, has_aux=True)(arrays)

    expected = jax.jit(run)((table, bias))
    devices = make_mesh(mesh)

    @functools.partial(jax.jit, in_shardings=NamedSharding(devices, PartitionSpec()))
    def on_devices(arrays):
        with jax.sharding.use_abstract_mesh(devices.abstract_mesh):
            return run(arrays)

    found = on_devices((table, bias))
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5), found, expected)
