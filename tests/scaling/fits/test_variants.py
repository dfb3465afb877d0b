"""Variable projection against the descent."""

import pytest

from chinchilla_jax.scaling.fits.approach3.parametric import fit_parametric, paper_starts
from chinchilla_jax.scaling.fits.minimise import SQUARED_RAW
from chinchilla_jax.scaling.fits.surface import Surface
from chinchilla_jax.scaling.fits.variants import fit_varpro
from chinchilla_jax.scaling.read.runs import FitRefused

FEW = paper_starts()[::45]


def test_variable_projection_finds_the_same_minimum(figure_4_trimmed, law_runs):
    descent = fit_parametric(figure_4_trimmed, misfit=SQUARED_RAW, starts=FEW, resampling=None)
    projected = fit_varpro(figure_4_trimmed)
    assert projected.objective == pytest.approx(descent.objective, rel=1e-8)
    assert projected.surface.a == pytest.approx(descent.surface.a, abs=1e-5)
    planted = fit_varpro(law_runs()).surface
    assert (planted.E, planted.alpha, planted.beta) == pytest.approx((1.7, 0.33, 0.37), rel=1e-5)


def test_variable_projection_refuses_a_law_without_a_floor(law_runs):
    with pytest.raises(FitRefused, match="floor") as caught:
        fit_varpro(law_runs(surface=Surface(1e-9, 60.0, 90.0, 0.1, 0.12), noise=0.01, seed=3))
    assert caught.value.reason == "no_optimum"
