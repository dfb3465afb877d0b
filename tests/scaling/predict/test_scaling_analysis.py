"""All three approaches on the same simulated study, in both presets, and what is printed of them."""

import dataclasses
import json

import numpy as np
import pytest

from chinchilla_jax.scaling.answers.recommended import other_sizes
from chinchilla_jax.scaling.fits.approach2.isoflop import PAPER, fit_isoflop
from chinchilla_jax.scaling.fits.approach3 import as_published
from chinchilla_jax.scaling.fits.approach3.parametric import fit_parametric, paper_starts
from chinchilla_jax.scaling.fits.surface import Surface
from chinchilla_jax.scaling.fits.variants import compare_variants
from chinchilla_jax.scaling.predict import analysis
from chinchilla_jax.scaling.predict.analysis import analyse
from chinchilla_jax.scaling.predict.doubts import misfits
from chinchilla_jax.scaling.predict.predict import predict
from chinchilla_jax.scaling.predict.verdicts import judge
from chinchilla_jax.scaling.read.runs import FitRefused, LoadedRuns, Run
from chinchilla_jax.scaling.report.facts import facts_of, profiled_prediction
from chinchilla_jax.scaling.report.report import render
from chinchilla_jax.scaling.report.sections import of_fit
from chinchilla_jax.scaling.report.text import announce, tell
from chinchilla_jax.tools.simulate import plan_horizons, plan_isoflop, simulate_curves, simulate_isoflop

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
    a = [
        float(corrected.envelope.params_law.exponent),
        float(corrected.isoflop.params_law.exponent),
        float(corrected.parametric.surface.a),
    ]
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
    assert set(bias) == {"near", "parabola"}
    assert abs(bias["near"].params) < abs(bias["parabola"].params)


def test_everything_printed_states_units_and_intervals_and_results_come_first(loaded, corrected):
    lines = []
    announce(loaded, "corrected", lines.append)
    facts = facts_of(loaded, corrected)
    tell(of_fit(facts, explain=False), lines.append)
    text = "\n".join(lines)
    for words in (
        "convention 6nd",
        "nats per token",
        "Approach 1",
        "Approach 2",
        "Approach 3",
        "profile likelihood",
        "flat directions",
        "starts reached this minimum",
        "bias of the parabola",
        "--explain",
    ):
        assert words in text, words
    last = max(i for i, line in enumerate(lines) if "flat directions" in line or line.startswith("warning"))
    assert "Approach 1" in lines[3] and lines.index("Notes") > last
    json.dumps(facts, allow_nan=False)


def test_what_a_preset_does_is_said_once_and_only_when_asked(loaded, corrected):
    short, long, facts = [], [], facts_of(loaded, corrected)
    tell(of_fit(facts, explain=False), short.append)
    tell(of_fit(facts, explain=True), long.append)
    for paragraphs in corrected.differences.values():
        for paragraph in paragraphs:
            assert paragraph not in "\n".join(short) and "\n".join(long).count(paragraph) == 1


def test_a_report_with_curves_shows_three_approaches_side_by_side(loaded):
    prediction = predict(analyse(loaded.runs, replicates=50), TARGET)
    verdicts, answers = judge(prediction, loaded.runs, TARGET), other_sizes(prediction)
    facts = facts_of(loaded, prediction=prediction, verdicts=verdicts, answers=answers, command="command")
    assert list(facts["prediction"]["estimates"]) == ["envelope", "isoflop", "parametric"]
    for name, estimate in facts["prediction"]["estimates"].items():
        law = facts["parametric"] if name == "parametric" else facts[name]["laws"]["params"]
        a, spans = (
            (law["values"]["a"], law["intervals"]["a"]) if "values" in law else (law["exponent"], law["intervals"])
        )
        low, high = estimate["intervals"]["params"]["95%"]
        assert spans["95%"][0] < a < spans["95%"][1] and low < estimate["params"] < high
    page = render(json.loads(json.dumps(facts)), {})
    table = page[page.index("Three approaches, side by side") :]
    assert all(f"<td class=text>Approach {number}</td>" in table[: table.index("</table>")] for number in (1, 2, 3))
    assert "Approach 1: training-curve envelope" in page and "What preset corrected does, and why" in page
    assert "bias of the parabola profile" in page and "What else could be trained" in page


def test_unknown_presets_and_runs_without_a_fit_are_refused(loaded):
    with pytest.raises(FitRefused, match="corrected, paper"):
        analyse(loaded.runs, "papr")
    with pytest.raises(FitRefused, match="approach 2.*approach 3"):
        analyse(loaded.runs[:3])


def test_a_slip_in_the_table_is_named_and_not_taken_for_a_law(loaded):
    def spoilt(index, loss):
        return [dataclasses.replace(r, loss=loss) if i == index else r for i, r in enumerate(loaded.runs)]

    warnings = " ".join(predict(analyse(spoilt(5, 25.1), replicates=0), TARGET).warnings)
    assert loaded.runs[5].name in warnings and "check them" in warnings
    assert "far off" not in " ".join(predict(analyse(loaded.runs, replicates=0), TARGET).warnings)


def test_a_profile_that_dips_below_every_loss_is_refused():
    sizes = np.geomspace(1e8, 8e8, 4)
    good = [Run(f"a{i}", n, 1e18 / n, 6e18, 3 + 0.1 * np.log(n / 3e8) ** 2, 6e18) for i, n in enumerate(sizes)]
    losses = dict(zip(sizes, (2.6, 2.5, 2.5, 55), strict=True))
    bad = [Run(f"b{i}", n, 5e18 / n, 3e19, losses[n], 3e19) for i, n in enumerate(sizes)]
    with pytest.raises(FitRefused, match="check the run of loss 55"):
        fit_isoflop([*good, *bad], preset=PAPER, resampling=None)


def test_a_surface_that_leans_at_the_largest_compute_is_told(loaded):
    own = [run for run in loaded.runs if run.budget]
    bent = [dataclasses.replace(r, loss=r.loss * (0.97 if r.budget == BUDGETS[-1] else 1)) for r in own]
    fit = fit_parametric(own, starts=paper_starts()[::45], resampling=None)
    assert not misfits(fit, own)
    (warning,) = misfits(fit, bent)
    assert "+3.0% off on average" in warning and "its form does not hold there" in warning


def test_rollouts_are_those_of_the_preset(loaded, few_starts):
    paper = predict(analyse(loaded.runs, preset="paper", replicates=0), TARGET).rollouts
    other = predict(analyse(loaded.runs, replicates=0), TARGET).rollouts
    for name in ("isoflop", "envelope"):
        one, two = (next(r for r in found if r.candidate == name) for found in (paper, other))
        assert one.predicted_params != two.predicted_params, name


def test_without_noise_or_spare_runs_there_is_no_profile_likelihood():
    exact = simulate_isoflop(TRUTH, BUDGETS, plan_isoflop(TRUTH, BUDGETS, 7))
    assert profiled_prediction(predict(analyse(exact, replicates=0), TARGET)) == {}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda r: {"params": r.params / 1e6, "tokens": r.tokens / 1e9}, "the same unit"),
        (lambda r: {"flops": r.flops / 3}, "0.333 times 6 N D"),
    ],
)
def test_slips_of_unit_are_told(loaded, change, words):
    runs = [dataclasses.replace(r, **change(r)) for r in loaded.runs if r.budget]
    assert words in " ".join(predict(analyse(runs, replicates=0), TARGET).warnings)


def test_every_variant_is_there_and_near_the_planted_exponent(loaded):
    rows = compare_variants([run for run in loaded.runs if run.budget])
    assert len(rows) == 14 and len({row["variant"] for row in rows}) == 14
    for row in rows:
        tied = "alpha = beta" in row["variant"]
        assert row["a"] == pytest.approx(0.5 if tied else TRUTH.a, abs=1e-9 if tied else 0.08), row


def test_a_target_far_below_the_runs_is_told(loaded):
    assert "far below the runs" in " ".join(predict(analyse(loaded.runs, replicates=0), 1e18).warnings)


def test_all_starts_are_tried_where_few_of_the_few_agree(loaded, monkeypatch):
    assert analyse(loaded.runs, replicates=0).parametric.n_starts == 196
    monkeypatch.setattr(analysis, "_LONELY", 1.1)
    assert analyse(loaded.runs, replicates=0).parametric.n_starts == 4500
