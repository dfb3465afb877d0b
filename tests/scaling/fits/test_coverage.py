"""From a planted law through plan, simulated losses and fit: how often do intervals of approaches 1 and 2 hold it?

The plans do not know the law; see `tests.benchmarks.coverage`, which prints the same for every preset and resampling.
"""

import dataclasses

import pytest

from chinchilla_jax.scaling.fits.approach1 import envelope
from chinchilla_jax.scaling.fits.approach2 import isoflop
from chinchilla_jax.scaling.fits.resample import MinimaScatter, Resampling, Residuals
from tests.benchmarks.coverage import APPROACHES, NOISE, QUANTITIES, coverage, of_envelope, of_isoflop

CORRECTED = {
    "envelope": of_envelope(envelope.CORRECTED, Residuals(150)),
    "isoflop": of_isoflop(isoflop.CORRECTED, MinimaScatter(150)),
}


def approach(name):
    return dataclasses.replace(APPROACHES[name], fit=CORRECTED[name])


def held(found):
    return dict(zip(QUANTITIES, found.held, strict=True))


@pytest.mark.parametrize("name", CORRECTED)
@pytest.mark.parametrize(("studies", "least"), [(40, 37), pytest.param(100, 90, marks=pytest.mark.long)])
def test_95_percent_intervals_hold_the_truth_in_at_least_9_of_10_noisy_studies(name, studies, least):
    found = coverage(approach(name), NOISE, studies)
    assert min(found.held) >= least and found.refused == 0, held(found)
    # Held because it is near, not because the interval is wide: widths are at most 5.5 times the error's own size,
    # where a normal error asks for 3.9. Approach 2 supposes that optima scatter by 8% whatever the noise of runs: those
    # of real tables do by 2 to 20%, those of a planted law do not.
    if name == "envelope":
        assert all(width < 5.5 * spread for width, spread in zip(found.width, found.spread, strict=True)), found
    assert found.width[0] < 0.2, found
    assert all(abs(error) < 0.5 * spread for error, spread in zip(found.error, found.spread, strict=True)), found


@pytest.mark.parametrize("name", CORRECTED)
def test_without_noise_the_truth_is_held_and_met(name):
    found = coverage(approach(name), 0.0, 20)
    assert found.held == (20, 20) and found.refused == 0, held(found)
    assert found.spread[0] < 1e-3 and found.spread[1] < 5e-3


@pytest.mark.long
@pytest.mark.parametrize("noise", [0.0, NOISE])
@pytest.mark.parametrize("name", ["envelope", "envelope-runs", "isoflop", "isoflop-akima"])
def test_coverage_of_every_corrected_scheme(name, noise):
    found = coverage(APPROACHES[name], noise)
    # An interpolant has no residuals of its own; drawn from those near the minima, its intervals are a little narrow.
    assert min(found.held) >= (85 if name == "isoflop-akima" else 90), held(found)


def test_the_papers_envelope_is_far_off_and_sure_of_it():
    found = coverage(APPROACHES["envelope-paper"], NOISE, 20)
    assert max(found.held) <= 4 and found.error[0] == pytest.approx(-0.038, abs=0.01), held(found)


def test_the_papers_80_percent_subsets_hold_the_truth_too_seldom():
    found = coverage(APPROACHES["isoflop-paper"], NOISE, 50)
    assert max(found.held) < 45, held(found)


def test_resampling_the_runs_of_short_profiles_makes_intervals_twice_too_wide():
    widths = []
    for scheme in (Resampling(100), Residuals(100)):
        fit = of_isoflop(isoflop.PAPER, scheme)
        widths.append(coverage(dataclasses.replace(APPROACHES["isoflop"], fit=fit), NOISE, 20).width[0])
    full, residuals = widths
    assert 1.7 < full / residuals < 3.5
