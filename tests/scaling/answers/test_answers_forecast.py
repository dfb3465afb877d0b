"""Forecasts of planted trainings: how near, how sure, and what they must not depend on."""

import dataclasses
import math

import numpy as np
import pytest

from chinchilla_jax.scaling.answers.flight.forecast import answer, forecast
from chinchilla_jax.scaling.answers.flight.law_at import law_at
from chinchilla_jax.scaling.read.in_flight import Schedule
from chinchilla_jax.scaling.read.runs import Curve, FitRefused
from tests.scaling.answers.flights import COSINE, planted, study, under_way

SHARES = (0.25, 0.5, 0.75, 0.9)


def level(run, share):
    """Mean ln loss over the last eighth of D before a share of it."""
    inside = (run.curve.tokens <= share * run.tokens) & (run.curve.tokens > (share - 0.125) * run.tokens)
    return float(np.log(run.curve.loss[inside]).mean())


def away(run, other):
    """How far two runs are from each other in ln N and ln D."""
    return math.hypot(math.log(run.params / other.params), math.log(run.tokens / other.tokens))


@pytest.fixture(scope="module")
def runs():
    """A study of twenty finished runs, whose losses wander by 1% on the way."""
    return study(drift=0.01)


@pytest.fixture(scope="module")
def each_in_turn(runs):
    """[(run, share, forecast)]: every run forecast beside all others."""
    made = []
    for run in runs:
        others = [other for other in runs if other is not run]
        for share in SHARES:
            made.append((run, share, forecast(others, [under_way(run, share)])[0]))
    return made


def test_forecasts_are_nearer_than_the_nearest_runs_own_ratio(runs, each_in_turn):
    """At every share: the level over the last eighth times end over level of the nearest finished run."""
    for share in SHARES:
        made = [(run, f) for run, at, f in each_in_turn if at == share]
        ratios = {run.name: math.log(run.loss) - level(run, share) for run in runs}
        off = []
        for run, _ in made:
            near = min((other for other in runs if other is not run), key=lambda other: away(run, other))
            off.append(abs(math.exp(level(run, share) + ratios[near.name]) / run.loss - 1))
        assert np.mean([abs(f.loss / run.loss - 1) for run, f in made]) < 0.8 * np.mean(off)


def test_intervals_narrow_as_the_run_goes_on(each_in_turn):
    widths = [np.mean([f.high / f.low for _, at, f in each_in_turn if at == share]) for share in SHARES]
    assert widths[0] > widths[1] > widths[2] > widths[3]


def test_intervals_hold(each_in_turn):
    assert np.mean([made.low <= run.loss <= made.high for run, _, made in each_in_turn]) >= 0.9


def test_beside_smaller_budgets_only_the_interval_is_wider_and_holds(runs):
    small, large = runs[:10], runs[-5:]
    near = forecast(runs[:-5], [under_way(run, 0.5) for run in large])
    far = forecast(small, [under_way(run, 0.5) for run in large])
    assert all(f.high / f.low > n.high / n.low for f, n in zip(far, near, strict=True))
    assert all(f.low <= run.loss <= f.high for f, run in zip(far, large, strict=True))


def test_the_law_is_weighed_in_by_its_precision(runs):
    others, run = runs[:-1], runs[-1]
    early = under_way(run, 0.1)
    law = law_at(others)
    alone, both = forecast(others, [early])[0], forecast(others, [early], law)[0]
    low, high = sorted((both.by_curve[0], both.by_law[0]))
    assert low <= both.loss <= high
    assert both.by_curve[0] == pytest.approx(alone.loss)
    assert both.high / both.low < alone.high / alone.low


@pytest.mark.parametrize("unit", [0.5, math.log2(math.e)])
def test_the_unit_of_the_loss_goes_through(runs, unit):
    def converted(run):
        curve = Curve(run.curve.tokens, unit * run.curve.loss)
        return dataclasses.replace(run, curve=curve, **({"loss": unit * run.loss} if hasattr(run, "loss") else {}))

    running = [under_way(run, 0.4) for run in runs[-3:]]
    plain = forecast(runs[:-3], running)
    other = forecast([converted(run) for run in runs[:-3]], [converted(run) for run in running])
    for one, two in zip(plain, other, strict=True):
        assert (two.loss, two.low, two.high) == pytest.approx((unit * one.loss, unit * one.low, unit * one.high))


def test_the_order_of_the_runs_does_not_matter(runs):
    running = [under_way(run, 0.6) for run in runs[-3:]]
    forward, backward = forecast(runs[:-3], running), forecast(runs[-4::-1], running[::-1])
    for one, two in zip(forward, backward[::-1], strict=True):
        assert one.name == two.name and (one.loss, one.low) == pytest.approx((two.loss, two.low), rel=1e-9)


def test_what_was_logged_later_does_not_reach_back(runs):
    """A forecast at half time is one of a run whose second half is not there."""
    run, others = runs[-1], runs[:-1]
    spoiled = dataclasses.replace(run, curve=Curve(run.curve.tokens, run.curve.loss * (run.curve.tokens < 1e9)))
    assert forecast(others, [under_way(run, 0.5)]) == forecast(others, [under_way(spoiled, 0.5)])


def test_without_finished_runs_the_schedule_alone_answers_widely(runs):
    run = runs[-1]
    made = forecast([], [under_way(run, 0.5, COSINE)])[0]
    beside = forecast(runs[:-1], [under_way(run, 0.5, COSINE)])[0]
    assert made.runs == 0 and made.low <= run.loss <= made.high
    assert made.high - made.low > 3 * (beside.high - beside.low)


def test_a_run_before_its_cooldown_has_more_to_gain_than_one_on_a_cosine(runs):
    cooldown = Schedule("cooldown", 0.05, 0.1, 0.2)
    ends = [forecast([], [under_way(runs[-1], 0.7, s)])[0].loss for s in (Schedule("constant"), COSINE, cooldown)]
    assert ends[0] > ends[1] > ends[2]


def test_only_runs_of_the_same_schedule_are_compared_with(runs):
    cooldown = Schedule("cooldown", 0.05, 0.1, 0.2)
    rng = np.random.default_rng(1)
    branches = [planted(f"b{k}", r.params, r.tokens, rng, schedule=cooldown) for k, r in enumerate(runs[:-1])]
    schedules = {run.name: COSINE for run in runs} | {run.name: cooldown for run in branches}
    truth = planted("x", runs[-1].params, runs[-1].tokens, rng, schedule=cooldown)
    made = forecast([*runs[:-1], *branches], [under_way(truth, 0.7, cooldown)], schedules=schedules)[0]
    assert made.runs == len(branches) and made.rate == 1.0
    assert made.loss == pytest.approx(truth.loss, rel=0.01)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -1.0])
def test_a_curve_with_a_loss_that_is_none_is_refused_by_name(runs, bad):
    running = under_way(runs[-1], 0.5)
    running.curve.loss[3] = bad
    with pytest.raises(FitRefused, match="c2e\\+12-2: its curve") as refused:
        forecast(runs[:-1], [running])
    assert refused.value.reason == "curve"


def test_a_finished_run_without_a_curve_of_finite_losses_is_not_compared_with(runs):
    spoiled = dataclasses.replace(runs[0], curve=Curve(runs[0].curve.tokens, runs[0].curve.loss * math.nan))
    bare = dataclasses.replace(runs[0], curve=None)
    running = [under_way(runs[-1], 0.5)]
    (expected,) = forecast(runs[1:-1], running)
    assert expected.runs == 18 and forecast([spoiled, bare, *runs[1:-1]], running) == [expected]


def test_a_finished_run_that_went_wrong_hardly_counts(runs):
    running = [under_way(run, 0.5) for run in runs[-3:]]
    broken = dataclasses.replace(runs[4], loss=1.5 * runs[4].loss)
    clean, spoiled = forecast([*runs[:4], *runs[5:-3]], running), forecast([*runs[:4], broken, *runs[5:-3]], running)
    for one, two in zip(clean, spoiled, strict=True):
        assert two.loss == pytest.approx(one.loss, rel=0.003)
        assert two.high / two.low < 1.5 * (one.high / one.low - 1) + 1


def test_a_run_that_breaks_leaves_the_forecasts_of_the_others_alone(runs):
    fine, breaks = under_way(runs[-1], 0.5), under_way(runs[-2], 0.5)
    half = len(breaks.curve.loss) // 2
    torn = dataclasses.replace(breaks, curve=Curve(breaks.curve.tokens, breaks.curve.loss.copy()))
    torn.curve.loss[half:] *= 2.0
    one, two = forecast(runs[:-2], [fine, breaks])[0], forecast(runs[:-2], [fine, torn])[0]
    assert two.loss == pytest.approx(one.loss, rel=0.001)


def test_a_single_line_is_enough(runs):
    run = runs[-1]
    made = forecast(runs[:-1], [under_way(run, 1.01 * 25000 / run.tokens)])[0]
    assert made.low <= run.loss <= made.high


def test_the_table_says_what_it_rests_on(runs):
    law = law_at(runs[:-2])
    made = forecast(runs[:-2], [under_way(runs[-1], 0.5, COSINE), under_way(runs[-2], 0.8)], law)
    result = answer(made, 18, law)
    assert [row["run"] for row in result.rows] == [runs[-2].name, runs[-1].name]
    assert "18 finished runs" in result.notes[0] and law.words in result.notes[1]
    assert "not known" in result.notes[2]
