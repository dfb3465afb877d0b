"""Noise in figures: spread, rates, and what they say."""

import json
import math

import numpy as np
import pytest

from chinchilla_jax.study.noise.spread import Spread, behind, facts, findings, noise_of, pooled, rates, table


def group(factor, losses, cell="a", **more):
    """The runs of one cell at one rate."""
    return Spread(cell, 1e12, 10**6, 10**7, factor, 1e-3 * factor, tuple(losses), **more)


def test_the_noise_is_pooled_over_cells_and_is_that_of_the_recipes_rate():
    rng = np.random.default_rng(0)
    found = [
        group(f, level * (1 + sd * rng.standard_normal(400)), cell)
        for cell, level in (("a", 3.0), ("b", 2.0))
        for f, sd in ((0.5, 0.01), (1.0, 0.005))
    ]
    assert noise_of(found) == (pytest.approx(0.005, rel=0.1), 798, 1.0)
    assert pooled(found[:1]) == (pytest.approx(found[0].deviation), 399)
    assert math.isnan(pooled([group(1.0, [3.0])])[0])
    assert facts([group(1.0, [3.0])])["noise"] is None


def test_a_lower_rate_that_is_as_good_and_calmer_is_recommended():
    found = [group(0.7, [3.001, 3.002, 3.0, 3.001]), group(1.0, [2.98, 3.02, 2.99, 3.01]), group(1.4, [3.1] * 4)]
    lines = findings(found)
    assert "best on the mean: rate 1 (standard error 0.30%)" in lines
    assert "rate 0.7 is as good within the error" in lines[-1] and "scatters less, 0.03% against" in lines[-1]
    calm_best = [group(0.7, [2.99, 3.02]), group(1.0, [3.0, 3.001])]
    assert "best on the mean: rate 1" in findings(calm_best)[-2] and "scatters no less" in findings(calm_best)[-1]


def test_luck_that_seeds_share_does_not_hide_which_rate_is_better():
    luck = np.array([0.0, 0.05, -0.04, 0.02])
    found = [group(0.7, 3.02 + luck), group(1.0, 3.0 + luck)]
    loss, error = behind(found, 0.7, 1.0)
    assert loss == pytest.approx(0.02 / 3.01, rel=0.01) and error < 1e-9
    assert "no lower rate is as good within the error: 0.7 loses 0.66%" in findings(found)[-1]
    assert "the highest tried: --rates may go further" in findings(found)[-2]


def test_a_rate_at_which_a_run_diverged_is_never_the_best():
    found = [group(0.7, [3.1, 3.11]), group(1.0, [2.9], diverged=1)]
    lines = findings(found)
    assert "rate 1: a run diverged" in lines and any("best on the mean: rate 0.7" in line for line in lines)
    assert rates(found)[1].excess == math.inf and facts(found)["rates"][1]["excess"] is None
    assert json.dumps(facts(found), allow_nan=False)
    assert "1 diverged" in table(found)[2] and table([group(1.0, [], diverged=2)])[1].endswith("2 diverged")


def test_the_table_has_a_line_for_each_cell_and_rate():
    lines = table([group(0.7, [3.0, 3.03], seconds=150.0), group(1.0, [3.0])])
    assert lines[1].split() == ["a", "0.7", "0.0007", "2", "3.0150", "0.70%", "3.0000", "3.0300", "+0.50%", "2", "min"]
    assert lines[2].split() == ["a", "1", "0.001", "1", "3.0000", "-", "3.0000", "3.0000", "+0.00%"]
