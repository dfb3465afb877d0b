"""As the paper ran it: the objective averaged and stopped early."""

import numpy as np
import pytest

from chinchilla_jax.scaling.fits.approach3.as_published import fit_as_published
from chinchilla_jax.scaling.fits.approach3.parametric import fit_parametric, paper_starts
from chinchilla_jax.scaling.fits.resample import PAPER, interval

FEW = paper_starts()[::45]

# Constants of eq. 10 before rounding (TeX source, quoted by Besiroglu et al. 2024), as a start in a, b, e, alpha, beta.
PUBLISHED = np.array([[6.0073404, 6.0179186, 0.5267228, 0.33917084, 0.2849083]])


class TestAsPublished:
    """Averaging the objective stops the optimiser early: the constants, and the interval, of the paper."""

    def test_the_sum_arrives_from_a_good_start_and_the_mean_does_not(self, figure_4_trimmed):
        start = np.array([[15.0, 0.0, 1.0, 0.0, 0.0]])
        optimum = 1.0182781e-3
        summed = fit_as_published(figure_4_trimmed, average=False, starts=start, resampling=None)
        averaged = fit_as_published(figure_4_trimmed, starts=start, resampling=None)
        assert summed.objective == pytest.approx(optimum, rel=1e-4)
        assert averaged.objective > 10 * optimum and averaged.gradient > 10 * summed.gradient

    def test_averaged_it_stays_near_the_published_exponent_with_an_interval_far_too_narrow(self, figure_4_trimmed):
        published = fit_as_published(figure_4_trimmed, starts=PUBLISHED, resampling=PAPER)
        low, high = interval(published.boot.a, 0.8)
        assert published.surface.a == pytest.approx(0.4565, abs=5e-4)
        assert high - low < 0.003  # Table 2 prints 0.454 to 0.455
        converged = fit_parametric(figure_4_trimmed, starts=FEW, resampling=PAPER)
        low, high = interval(converged.boot.a, 0.8)
        assert (low, high) == pytest.approx((0.502, 0.529), abs=0.005) and high - low > 0.02

    @pytest.mark.long
    def test_the_best_of_all_4500_starts_has_the_exponent_of_the_paper(self, figure_4_trimmed):
        fit = fit_as_published(figure_4_trimmed, resampling=None)
        # Where a stopped descent lies depends on rounding; that it is near 0.45 and 8% above the optimum does not.
        assert fit.surface.a == pytest.approx(0.4497, abs=3e-3)
        assert fit.objective == pytest.approx(1.108e-3, rel=5e-3) and fit.agreement < 0.002
