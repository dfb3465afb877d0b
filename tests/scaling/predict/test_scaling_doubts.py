"""What a reader is told to doubt: each doubt is raised by data that deserve it, and by no clean study."""

import dataclasses

import numpy as np
import pytest

from chinchilla_jax.scaling.fits.surface import Surface
from chinchilla_jax.scaling.predict.analysis import analyse
from chinchilla_jax.scaling.predict.doubts import doubts, doubts_of_prediction
from chinchilla_jax.scaling.predict.estimates import Estimate, Rollout
from chinchilla_jax.scaling.predict.predict import predict
from chinchilla_jax.scaling.read.runs import LoadedRuns, Run
from chinchilla_jax.scaling.report.facts import facts_of
from chinchilla_jax.scaling.report.sections import of_fit
from chinchilla_jax.scaling.report.text import tell

BUDGETS = np.geomspace(1e18, 64e18, 7)


def bent(budget, size):
    """The two smallest budgets lie above the law of the others."""
    return 1 + 0.10 * (budget < 3e18) + 0.04 * (3e18 < budget < 6e18)


def study(noise=0.001, seeds=1, seed_noise=0.0, lift=lambda budget, size: 1.0, last=0.0):
    """Seven budgets of seven sizes from E + A/N^a + B/D^b, some seeds each; `noise` is a size's, not a
    seed's. `last` moves the sizes of the largest budget, in ln N."""
    rng, runs = np.random.default_rng(0), []
    for c in BUDGETS:
        moved = last if c == BUDGETS[-1] else 0.0
        for size in 2.4e8 * (c / 8e18) ** 0.514 * np.exp(0.4 * (np.arange(7) - 3) + moved):
            tokens = c / (6 * size)
            loss = (1.8 + 480 / size**0.35 + 2100 / tokens**0.37) * lift(c, size)
            loss *= np.exp(noise * rng.standard_normal())
            runs += [
                Run(f"r{len(runs) + k}", size, tokens, c, loss * np.exp(seed_noise * rng.standard_normal()), c)
                for k in range(seeds)
            ]
    return runs


def raised(runs):
    return "\n".join(doubts(analyse(runs, replicates=0)))


def test_a_clean_study_raises_none():
    assert raised(study()) == ""


@pytest.mark.parametrize(
    "runs, words",
    [
        (study(lift=bent), "the minima bend by more than the noise"),
        (study(noise=0.01, seeds=2, seed_noise=0.0005), "runs that differ only in their seed differ by 0.04%"),
        (study(noise=0.05), "approach 3: runs scatter by"),
        (study(noise=0.05), "about their profiles near the minima"),
        (study(noise=0.01, last=1.0), "its minimum lies inside the sizes tried with a probability of only"),
        ([dataclasses.replace(r, flops=1.1 * r.flops) for r in study()], "49 runs spent more than 3% off their budget"),
        ([dataclasses.replace(r, params=r.tokens, tokens=r.params) for r in study()], "not swapped"),
        (
            [dataclasses.replace(r, flops=1e3 * r.flops, budget=None) for r in study()],
            "is it counted in the same units",
        ),
    ],
    ids=["bent", "misfit", "surface", "profiles", "rim", "off budget", "swapped", "units"],
)
def test_a_doubt_is_raised(runs, words):
    assert words in raised(runs)


@pytest.mark.parametrize(
    "change, words",
    [
        ({"gradient": 0.5}, "approach 3 did not converge: gradient 0.5"),
        ({"agreement": 0.01}, "only 1.0% of the starts reached the best minimum"),
        ({"boot_kept": 0.6}, "40% of bootstrap resamples had no optimum"),
        ({"surface": Surface(0.0, 480.0, 2100.0, 0.35, 0.37)}, "E went to zero"),
    ],
)
def test_a_surface_that_went_wrong_is_doubted(change, words):
    runs = study()
    found = analyse(runs, replicates=0)
    assert words not in "\n".join(doubts(found))
    spoilt = dataclasses.replace(found, parametric=dataclasses.replace(found.parametric, **change))
    assert words in "\n".join(doubts(spoilt))


def estimate(loss, half=0.05, ratio=20.0, approach="isoflop"):
    intervals = {"loss": {0.95: (loss - half, loss + half)}}
    return Estimate(approach, 1e9, ratio * 1e9, ratio, loss, "", intervals)


def test_of_a_prediction_distance_ratio_rehearsal_and_cross_check_are_doubted():
    runs, fine = study(), {"isoflop": estimate(2.5), "parametric": estimate(2.52, approach="parametric")}
    assert doubts_of_prediction(256e18, runs, fine, ()) == ()
    assert "40 times the largest" in doubts_of_prediction(40 * 64e18, runs, fine, ())[0]
    assert "far below the runs" in doubts_of_prediction(1e18, runs, fine, ())[0]
    assert "D/N 9e+04" in doubts_of_prediction(256e18, runs, {"isoflop": estimate(2.5, ratio=9e4)}, ())[0]
    leaning = fine | {"parametric": estimate(2.7, approach="parametric")}
    assert "approach 3 says 2.7000, +8.0% from approach 2" in doubts_of_prediction(256e18, runs, leaning, ())[0]
    tried = Rollout("isoflop", 6, 64e18, 1e9, 1e9, 2.7, 2.6, 0.04, 0.0)
    assert "missed the hidden largest budget by +4.0%" in doubts_of_prediction(256e18, runs, fine, (tried,))[0]


def test_fit_warns_of_the_runs_like_predict():
    runs = study(lift=bent)
    columns = dict.fromkeys(("params", "tokens", "flops", "loss", "budget"), "a column")
    lines = []
    found = analyse(runs, replicates=0)
    facts = facts_of(LoadedRuns("here", tuple(runs), (), columns, "6nd"), found)
    tell(of_fit(facts, explain=False), lines.append)
    warned = [line.removeprefix("warning: ") for line in lines if line.startswith("warning: ")]
    assert warned == list(doubts(found)) and warned
    assert set(warned) <= set(predict(analyse(runs, replicates=0), 256e18).warnings)
