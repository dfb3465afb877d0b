"""The alarm: good runs are left alone, however noisy; broken ones are marked at once; nothing looks ahead."""

import math

import numpy as np
import pytest

from chinchilla_jax.scaling.answers.flight.alarm import FALSE_ALARMS, alarm
from chinchilla_jax.scaling.read.in_flight import Running
from chinchilla_jax.scaling.read.runs import Curve
from tests.scaling.answers.flights import LINE, log_loss, study, under_way

PARAMS, TOTAL = 5e4, 200 * LINE
TOKENS = np.arange(LINE, TOTAL + 1.0, LINE)


def good(rng, noise=0.01, tail=None, lines=200):
    """ln loss of a good run with noise that is normal, or Student's t with so many degrees of freedom."""
    drawn = rng.standard_normal(lines) if tail is None else rng.standard_t(tail, lines)
    return log_loss(PARAMS, TOTAL, TOKENS - 0.5 * LINE)[:lines] + noise * drawn


def running(values, unit=1.0):
    """A run with this ln loss so far."""
    curve = Curve(TOKENS[: len(values)], unit * np.exp(values))
    return Running("run", PARAMS, TOTAL, 6 * PARAMS * TOTAL, curve)


def marked(values, **options):
    """The line that marks the run, or None."""
    tokens = alarm(running(values), **options).tokens
    return None if tokens is None else round(tokens / LINE)


@pytest.mark.parametrize(("noise", "tail"), [(0.003, None), (0.01, None), (0.05, None), (0.01, 8)])
def test_good_runs_are_rarely_marked(noise, tail):
    """Of 200 runs one is expected at most; five or more would be a chance of 1 in 270 at that rate."""
    rng = np.random.default_rng(0)
    alarms = sum(marked(good(rng, noise, tail)) is not None for _ in range(200))
    assert alarms <= 4


@pytest.mark.parametrize(("start", "jump"), [(20, 0.5), (20, 1.5), (60, 0.2), (120, 0.1), (180, 0.1), (180, 1.5)])
def test_a_loss_that_jumps_is_marked_within_two_percent(start, jump):
    rng = np.random.default_rng(start)
    values = good(rng)
    values[start:] += jump
    assert start < marked(values) <= start + 4


def test_a_spike_that_heals_is_marked_while_it_lasts():
    values = good(np.random.default_rng(1))
    values[80:84] += np.array([1.0, 0.6, 0.3, 0.1])
    assert 80 < marked(values) <= 84


def test_one_bad_line_is_no_alarm():
    values = good(np.random.default_rng(2))
    values[100] += 0.05  # five standard deviations
    assert marked(values) is None


def test_a_loss_that_falls_faster_is_no_alarm():
    values = good(np.random.default_rng(3))
    values[100:] -= 0.3
    assert marked(values) is None


def test_the_evidence_up_to_a_line_does_not_depend_on_what_follows():
    values = good(np.random.default_rng(4))
    values[100:] += 0.2
    whole = alarm(running(values)).evidence
    part = alarm(running(values[:102])).evidence
    np.testing.assert_array_equal(whole[:102], part)


def test_the_unit_of_the_loss_does_not_matter():
    values = good(np.random.default_rng(5))
    values[100:] += 0.1
    one, two = (alarm(running(values, unit)) for unit in (1.0, 1 / math.log(2)))
    np.testing.assert_allclose(one.evidence, two.evidence, rtol=1e-6)
    assert one.tokens == two.tokens


def test_a_stricter_rate_marks_later():
    values = good(np.random.default_rng(6))
    values[100:] += 0.12
    strict, loose = (marked(values, rate=rate) for rate in (1e-6, FALSE_ALARMS))
    assert 100 < loose < strict


def test_wrong_from_the_first_line_shows_beside_finished_runs():
    """A loss that stays where those of good runs fall makes no jump; by itself it is a run that learns slowly."""
    finished = study()
    values = good(np.random.default_rng(7))
    slow = np.maximum(values, values[0] - 0.1)
    assert marked(slow, finished=finished) <= 8 and marked(slow) is None
    assert marked(values, finished=finished) is None


def test_good_runs_of_a_study_are_not_marked_beside_each_other():
    """Of 40 runs in two studies 0.2 are expected to be."""
    for runs in (study(1), study(2)):
        others = {run.name: [other for other in runs if other is not run] for run in runs}
        assert sum(alarm(under_way(run, 1.0), others[run.name]).tokens is not None for run in runs) == 0


def test_a_curve_of_one_line_is_no_alarm():
    assert marked(good(np.random.default_rng(8))[:1]) is None


@pytest.mark.parametrize("rise", [0.6, 1.0])
def test_a_loss_that_climbs_slowly_is_marked(rise):
    values = good(np.random.default_rng(1))
    values[100:] = values[100] + rise * np.arange(100) / 100
    assert 100 < marked(values) < 170
