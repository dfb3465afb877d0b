"""The loss of wide models from narrow ones: published proxies, planted laws, refusals."""

import csv
import json
import pathlib

import numpy as np
import pytest
from scipy.optimize import curve_fit
from scipy.stats import t

from chinchilla_jax import cli
from chinchilla_jax.scaling.answers.widths import across_widths
from chinchilla_jax.scaling.read.runs import FitRefused, LoadedRuns, Run

PROXIES = pathlib.Path(__file__).parents[1] / "data" / "flm_widths.csv"  # of the script of cofe-ai/Mu-scaling


def loaded(params, losses, tokens=1e6):
    tokens = np.broadcast_to(tokens, np.shape(params))
    runs = [Run(f"r{i}", n, d, 6 * n * d, y) for i, (n, d, y) in enumerate(zip(params, tokens, losses, strict=True))]
    return LoadedRuns("table", tuple(runs), (), {}, "6nd")


@pytest.fixture
def proxies(tmp_path):
    """The published proxies as a table of runs; D, the same for all, stands for their 20,000 steps."""
    rows = list(csv.DictReader(PROXIES.open()))
    lines = [f"{row['params_millions']}e6,20000,{row['loss_at_step_20000']}" for row in rows]
    (tmp_path / "proxies.csv").write_text("\n".join(["params,tokens,loss", *lines]))
    return tmp_path / "proxies.csv"


def test_seven_published_proxies_foretell_three_wide_models(proxies, tmp_path, capsys):
    """Li et al. 2023 (FLM-101B) chose their run by this law; errors of +0.29, -0.18 and -0.19%."""
    command = [
        "predict",
        "--across=width",
        f"--runs={proxies}",
        "--params=194.24e6",
        f"--output={tmp_path}/answer.json",
    ]
    assert cli.main(command) == 0
    assert "through 7 runs of N = 8.53M to 154M" in capsys.readouterr().out
    (answer,) = json.loads((tmp_path / "answer.json").read_text())["answers"]
    assert [row["loss"] for row in answer["rows"]] == pytest.approx([3.189, 3.080, 3.037], abs=6e-4)
    for row in answer["rows"]:
        low, high = row["95% of one run"]
        assert low < row["trained"] < high and high - low < 0.12


def test_by_default_the_largest_is_foretold_and_met(proxies, capsys):
    assert cli.main(["predict", "--across=width", f"--runs={proxies}"]) == 0
    out = capsys.readouterr().out
    assert "through 9 runs of N = 8.53M to 676M" in out and "-0.12%" in out


def test_a_planted_law_comes_back_at_a_size_that_nobody_trained():
    n = np.geomspace(1e5, 1e7, 6)
    (row,) = across_widths(loaded(n, 40.0 * n**-0.3 + 2.0), params=1e9).rows
    assert row["loss"] == pytest.approx(40.0 * 1e9**-0.3 + 2.0, rel=1e-6) and row["trained"] is row["off"] is None


def test_the_interval_is_students_of_one_more_run():
    """By the covariance that scipy's least squares gives; 60 noisy tables held the loss of the widest 58 times."""
    rng, n = np.random.default_rng(0), np.geomspace(1e5, 3e7, 8)
    losses = (20.0 * n**-0.25 + 2.0) * np.exp(0.002 * rng.standard_normal(8))
    (row,) = across_widths(loaded(n, losses)).rows

    def law(n, a, b, c):
        return a * (n / 1e6) ** b + c

    best, covariance = curve_fit(law, n[:7], losses[:7], (0.6, -0.25, 2.0))
    power = (30.0) ** best[1]
    slope = np.array([power, best[0] * power * np.log(30.0), 1.0])
    noise = np.sum((law(n[:7], *best) - losses[:7]) ** 2) / 4
    half = t.ppf(0.975, 4) * np.sqrt(noise + slope @ covariance @ slope)
    middle = law(3e7, *best)
    assert row["loss"] == pytest.approx(middle, rel=1e-5)
    assert row["95% of one run"] == pytest.approx((middle - half, middle + half), rel=1e-4)


def test_of_several_horizons_that_with_the_most_sizes_is_taken_or_the_one_asked_for():
    n = np.geomspace(1e5, 1e7, 7)
    params, tokens = np.r_[n, n[:5]], np.r_[np.full(7, 1e6), np.full(5, 2e6)]
    both = loaded(params, 40.0 * params**-0.3 + 1.0 + 1e6 / tokens, tokens)
    answer = across_widths(both)
    assert answer.rows[0]["D"] == 1e6 and answer.rows[0]["loss"] == pytest.approx(2.0 + 40.0 * 1e7**-0.3, rel=1e-5)
    assert any("5 runs on other numbers of tokens are left out" in note for note in answer.notes)
    (longer,) = across_widths(both, tokens=2e6).rows
    assert longer["N"] == n[4] and longer["loss"] == pytest.approx(1.5 + 40.0 * n[4] ** -0.3, rel=1e-5)


def test_a_level_that_the_runs_do_not_tell_is_said():
    n = np.geomspace(1e5, 1e7, 6)
    told = "do not tell a level c from none"
    assert any(told in note for note in across_widths(loaded(n, 10.0 * n**-0.1)).notes)
    assert not any(told in note for note in across_widths(loaded(n, 40.0 * n**-0.3 + 2.0)).notes)


def test_what_carries_no_prediction_is_refused():
    n = np.geomspace(1e5, 1e7, 6)
    with pytest.raises(FitRefused, match="3 sizes below N = 10M at D = 1M, 4 needed"):
        across_widths(loaded(n[2:], 40.0 * n[2:] ** -0.3 + 2.0))
    with pytest.raises(FitRefused, match="no run on D = 3M; there are 1M"):
        across_widths(loaded(n, 40.0 * n**-0.3 + 2.0), tokens=3e6)
    with pytest.raises(FitRefused, match="do not fall with N") as refused:
        across_widths(loaded(n, 2.0 + 1e-3 * n**0.3))
    assert refused.value.reason == "no_law"


def test_what_it_is_not_asked_is_a_mistake(proxies, capsys):
    assert cli.main(["predict", "--across=width", f"--runs={proxies}", "--budget=1e12"]) == 2
    assert "not --budget" in capsys.readouterr().err
