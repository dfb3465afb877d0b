"""Cross-entropy against float64, by formula and by automatic differentiation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from chinchilla_jax.training.loss import cross_entropy, weighted_sums


@pytest.fixture
def batch():
    rng = np.random.default_rng(0)
    logits = (3 * rng.standard_normal((2, 5, 11))).astype(np.float32)
    weights = rng.integers(0, 2, (2, 5)).astype(np.float32)
    weights[0, 0], weights[1, 4] = 1.0, 0.0
    return logits, rng.integers(0, 11, (2, 5)), weights


def by_formula(logits, targets, weights, z_loss):
    """Objective, its gradient, and the plain sum of nats, in float64."""
    logits = logits.astype(np.float64)
    top = logits.max(-1, keepdims=True)
    log_z = (top + np.log(np.exp(logits - top).sum(-1, keepdims=True)))[..., 0]
    softmax = np.exp(logits - log_z[..., None])
    one_hot = np.eye(logits.shape[-1])[targets]
    nll = log_z - (logits * one_hot).sum(-1)
    gradient = weights[..., None] * (softmax - one_hot + 2 * z_loss * log_z[..., None] * softmax)
    return (weights * (nll + z_loss * log_z**2)).sum(), gradient, (weights * nll).sum()


@pytest.mark.parametrize("z_loss", [0.0, 0.3])
@pytest.mark.parametrize("shift", [0.0, 500.0, -500.0])
def test_objective_and_gradient(batch, z_loss, shift):
    logits, targets, weights = batch
    logits = logits + np.float32(shift)
    expected, expected_gradient, nll = by_formula(logits, targets, weights, z_loss)
    (objective, sums), gradient = jax.value_and_grad(weighted_sums, has_aux=True)(logits, targets, weights, z_loss)
    far = 1e-6 if not shift else 1e-4  # float32 holds a shifted logit to 3e-5
    np.testing.assert_allclose(objective, expected, rtol=far)
    np.testing.assert_allclose(gradient, expected_gradient, rtol=far, atol=far)
    np.testing.assert_allclose(sums["nll"], nll, rtol=far)
    assert sums["weight"] == weights.sum()


def test_both_outputs_have_the_gradient_of_log_softmax(batch):
    logits, targets, _ = batch
    by_nll, by_log_z = np.random.default_rng(1).standard_normal((2, 2, 5)).astype(np.float32)

    def ours(logits):
        nll, log_z = cross_entropy(logits, targets)
        return jnp.sum(nll * by_nll + log_z * by_log_z)

    def reference(logits):
        nll = -jnp.take_along_axis(jax.nn.log_softmax(logits), targets[..., None], -1)[..., 0]
        return jnp.sum(nll * by_nll + jax.nn.logsumexp(logits, -1) * by_log_z)

    np.testing.assert_allclose(ours(logits), reference(logits), rtol=1e-6)
    np.testing.assert_allclose(jax.grad(ours)(logits), jax.grad(reference)(logits), atol=1e-6)


def test_padding_has_no_effect(batch):
    logits, targets, weights = batch
    other_logits = np.where(weights[..., None] > 0, logits, 7.0 * logits[::-1])
    other_targets = np.where(weights > 0, targets, 10 - targets)
    assert (other_targets != targets).any()

    def gradient(logits, targets):
        return jax.value_and_grad(weighted_sums, has_aux=True)(logits, targets, weights, 0.1)

    (one, one_sums), one_gradient = gradient(logits, targets)
    (two, two_sums), two_gradient = gradient(other_logits, other_targets)
    assert one == two and one_sums == two_sums
    np.testing.assert_array_equal(one_gradient, two_gradient)
    assert not one_gradient[weights == 0].any() and one_gradient[weights > 0].all()


def test_z_loss_is_minimised_but_not_reported(batch):
    (plain, reported), (with_z, reported_with_z) = (weighted_sums(*batch, z_loss) for z_loss in (0.0, 0.5))
    assert with_z > plain == reported["nll"] == reported_with_z["nll"]


def test_no_gradient_overflows():
    logits = np.array([[[1e4, -1e4, 0.0]]], np.float32)
    gradient = jax.grad(lambda x: weighted_sums(x, np.array([[1]]), np.ones((1, 1), np.float32), 0.0)[0])(logits)
    np.testing.assert_allclose(gradient, [[[1.0, -1.0, 0.0]]], atol=1e-6)
