"""Runs on a planted surface."""

import numpy as np
import pytest

from chinchilla_jax.scaling.fits.surface import Surface
from chinchilla_jax.scaling.read.runs import Run

TRUTH = Surface(1.7, 300.0, 900.0, 0.33, 0.37)


@pytest.fixture(scope="session")
def law_runs():
    """A function that gives 32 runs of 8 sizes and 4 ratios of tokens to parameters."""

    def runs(noise=0.0, seed=0, surface=TRUTH):
        rng = np.random.default_rng(seed)
        grid = [(n, d) for n in np.geomspace(1e6, 1e9, 8) for d in n * np.array([3.0, 10.0, 30.0, 100.0])]
        losses = [surface.loss(n, d) * np.exp(noise * rng.standard_normal()) for n, d in grid]
        return [Run(str(i), n, d, 6 * n * d, y) for i, ((n, d), y) in enumerate(zip(grid, losses, strict=True))]

    return runs
