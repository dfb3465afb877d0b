"""Derivatives by hand against differences."""

import numpy as np
import pytest

from chinchilla_jax.scaling.fits.approach3.objective import SurfaceProblem
from chinchilla_jax.scaling.fits.multistart import HUBER, SQUARED_RAW, Misfit


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("misfit", [HUBER, SQUARED_RAW, Misfit("wide", "raw", 0.05)], ids=lambda m: m.name)
def test_derivatives_are_those_of_the_value(misfit, tied, law_runs):
    problem = SurfaceProblem(law_runs(0.01), tied)
    value = problem.objective(misfit, np.random.default_rng(0).integers(0, 3, (4, 32)).astype(float))
    rows = np.arange(4)
    theta = problem.standardise(np.array([[5.0, 6.5, 0.5, 0.3, 0.35]] * 4))
    theta = theta + 0.1 * np.random.default_rng(1).standard_normal(theta.shape)
    _, gradient, hessian = value(theta, rows)
    for i, step in enumerate(np.eye(problem.unknowns) * 1e-6):
        (up, g_up, _), (down, g_down, _) = value(theta + step, rows), value(theta - step, rows)
        assert gradient[:, i] == pytest.approx((up - down) / 2e-6, rel=2e-4, abs=1e-4 * np.abs(gradient).max())
        if misfit is not HUBER:  # its second derivative jumps where a residual crosses the threshold
            slope = (g_up - g_down) / 2e-6
            assert hessian[:, :, i] == pytest.approx(slope, rel=2e-4, abs=1e-4 * np.abs(hessian).max())
