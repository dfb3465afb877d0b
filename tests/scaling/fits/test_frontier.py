"""Laws of the minimum loss with an irreducible part."""

import numpy as np
import pytest

from chinchilla_jax.scaling.fits.frontier import fit_offset


def test_offset_law_recovers_its_constants_in_every_replicate():
    flops = np.geomspace(1e11, 2.7e12, 4)
    truth = np.array([[1.7, 900.0, 0.22], [0.0, 50.0, 0.09]])
    losses = truth[:, :1] + truth[:, 1:2] * flops ** -truth[:, 2:]
    law = fit_offset(flops, losses)
    assert law.irreducible == pytest.approx(truth[:, 0], abs=2e-3)
    assert law.exponent == pytest.approx(truth[:, 2], rel=2e-3)
    assert law.at(1e13) == pytest.approx(truth[:, 0] + truth[:, 1] * 1e13 ** -truth[:, 2], rel=1e-5)


def test_offset_law_never_goes_below_zero_loss():
    flops = np.geomspace(1e11, 2.7e12, 4)
    # Steepening in log-log: an unbounded fit would ask for E < 0.
    law = fit_offset(flops, 6.0 - 0.9 * np.log10(flops / 1e11))
    assert law.irreducible == 0.0
