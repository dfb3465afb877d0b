"""All three approaches on the same simulated study, in both presets, and what is printed of them."""

import json

import numpy as np
import pytest

from chinchilla_jax.scaling import as_published, summary
from chinchilla_jax.scaling.analysis import analyse
from chinchilla_jax.scaling.facts import report_facts
from chinchilla_jax.scaling.page import render
from chinchilla_jax.scaling.parametric import paper_starts
from chinchilla_jax.scaling.predict import predict
from chinchilla_jax.scaling.runs import FitRefused, LoadedRuns
from chinchilla_jax.scaling.simulate import plan_horizons, plan_isoflop, simulate_curves, simulate_isoflop
from chinchilla_jax.scaling.surface import Surface

TRUTH = Surface(1.69, 406.4, 410.7, 0.34, 0.28)
BUDGETS = np.geomspace(6e18, 6e20, 4)
TARGET = 10 * BUDGETS[-1]


@pytest.fixture(scope="module")
def loaded():
    """IsoFLOP runs and, of other sizes, runs with curves over a 16x range of horizons."""
    sizes = np.geomspace(1e8, 3e9, 9)
    runs = (
        *simulate_isoflop(TRUTH, BUDGETS, plan_isoflop(TRUTH, BUDGETS, 7), noise=0.002),
        *simulate_curves(TRUTH, sizes, plan_horizons(TRUTH, sizes), noise=0.002),
    )
    columns = {name: name for name in ("params", "tokens", "flops", "loss", "budget")}
    return LoadedRuns("planted", runs, (), columns, "6nd")


@pytest.fixture(scope="module")
def corrected(loaded):
    return analyse(loaded.runs, replicates=100)


@pytest.fixture
def few_starts(monkeypatch):
    """All 4500 starts of the paper's optimiser take half a minute."""
    monkeypatch.setattr(as_published, "paper_starts", lambda: paper_starts()[::300])


def test_all_three_approaches_find_the_planted_exponent(corrected):
    a = [float(corrected.envelope.params_law.exponent), float(corrected.isoflop.params_law.exponent),
         float(corrected.parametric.surface.a)]  # fmt: skip
    assert a == pytest.approx([TRUTH.a] * 3, abs=0.03) and not corrected.refused


def test_the_paper_preset_runs_all_three_and_says_what_it_does(loaded, few_starts):
    found = analyse(loaded.runs, "paper")
    assert (found.envelope.preset.name, found.isoflop.preset.name, found.parametric.preset) == ("paper",) * 3
    assert len(found.parametric.boot.a) == 100 and found.isoflop.preset.curve == "parabola"
    corrected = analyse(loaded.runs, replicates=0).differences
    for name, lines in found.differences.items():
        assert lines and corrected[name] and set(lines).isdisjoint(corrected[name]), name


def test_no_replicates_means_no_intervals(loaded):
    found = analyse(loaded.runs, replicates=0)
    assert found.envelope.boot_params is None and found.isoflop.boot_params is None and found.parametric.boot is None


def test_the_bias_of_a_parabola_is_stated_beside_that_of_the_curve_used(corrected):
    bias = corrected.isoflop_bias(TARGET)
    assert set(bias) == {"skewed", "parabola"}
    assert abs(bias["skewed"].params) < abs(bias["parabola"].params)


def test_everything_printed_states_units_intervals_and_differences(loaded, corrected):
    lines = []
    summary.read(loaded, lines.append)
    lines += summary.fit_lines(corrected, loaded)
    text = "\n".join(lines)
    for words in ("convention 6nd", "nats per token", "approach 1", "approach 2", "approach 3", "profile likelihood",
                  "flat directions", "starts reached this minimum", "bias of the parabola", "corrected: "):  # fmt: skip
        assert words in text, words
    json.dumps(summary.fit_facts(corrected))


def test_a_report_with_curves_shows_three_approaches_side_by_side(loaded):
    prediction = predict(loaded.runs, TARGET, replicates=50)
    facts = report_facts(loaded, prediction, TARGET, "")
    facts["command"] = "command"
    assert [row["approach"] for row in facts["approaches"]] == ["envelope", "isoflop", "parametric"]
    for row in facts["approaches"]:
        assert row["a_95"][0] < row["a"] < row["a_95"][1] and row["params_95"][0] < row["params"] < row["params_95"][1]
    page = render(json.loads(json.dumps(facts)), {})
    assert "Approach 1: training-curve envelope" in page and "What preset corrected does, and why" in page
    assert "bias of the parabola profile" in page and "What else could be trained" in page


def test_unknown_presets_and_runs_without_a_fit_are_refused(loaded):
    with pytest.raises(FitRefused, match="corrected, paper"):
        analyse(loaded.runs, "papr")
    with pytest.raises(FitRefused, match="approach 2.*approach 3"):
        analyse(loaded.runs[:3])
