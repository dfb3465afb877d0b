"""What all runs of a study have in common at one batch is taken away; what is a run's own stays."""

import numpy as np
import pytest

from chinchilla_jax.scaling.answers.flight.shared_noise import LogCurve, without_shared_noise
from tests.scaling.answers.flights import LINE, log_loss, study


def noise(curves):
    """Standard deviation about the planted curves of what changes from line to line."""
    left = [c.log_loss - log_loss(c.params, c.total, c.tokens - 0.5 * LINE) for c in curves if len(c.tokens) > 20]
    return np.mean([np.diff(part).std() / np.sqrt(2) for part in left])


def as_curves(runs):
    return [LogCurve(run.params, run.tokens, run.curve.tokens, np.log(run.curve.loss)) for run in runs]


def test_shared_luck_goes():
    curves = as_curves(study(shared=0.01, own=0.002))
    assert noise(without_shared_noise(curves)) < 0.45 * noise(curves)


def test_without_shared_luck_nothing_is_taken():
    curves = as_curves(study(shared=0.0, own=0.01))
    assert noise(without_shared_noise(curves)) == pytest.approx(noise(curves), rel=0.06)


def test_two_curves_are_left_as_they_are():
    curves = as_curves(study())[:2]
    for before, after in zip(curves, without_shared_noise(curves), strict=True):
        np.testing.assert_array_equal(before.log_loss, after.log_loss)


def test_the_unit_of_the_loss_does_not_matter():
    curves = as_curves(study())
    other = [LogCurve(c.params, c.total, c.tokens, c.log_loss + 0.7) for c in curves]
    for one, two in zip(without_shared_noise(curves), without_shared_noise(other), strict=True):
        np.testing.assert_allclose(one.log_loss + 0.7, two.log_loss, atol=1e-9)
