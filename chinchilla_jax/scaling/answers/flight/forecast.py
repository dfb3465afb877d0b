"""Where will a running training end? From its curve so far, the curves of finished runs, and the scaling law.

At the share t of its training a run has the level x: the mean of its ln loss over the last eighth of its tokens,
without the noise that the study's runs share (`shared_noise`). The finished runs had their levels at the same share of
their trainings, under the same schedule, and their ends say how much was gained from there, ln(end / level): a surface
over ln N and ln D (`nearby`). The law's loss for this N and D is the second opinion; both are weighted by their
precision. Without finished runs the gain is what schedules like this one gave elsewhere, and the interval is wide.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np
import scipy.special

from chinchilla_jax.base.words import count
from chinchilla_jax.scaling.answers.answers import Answer
from chinchilla_jax.scaling.answers.flight.law_at import LawAt
from chinchilla_jax.scaling.answers.flight.nearby import FREEDOM, at_size
from chinchilla_jax.scaling.answers.flight.shared_noise import LogCurve, log_curve, without_shared_noise
from chinchilla_jax.scaling.read.in_flight import Running, Schedule
from chinchilla_jax.scaling.read.runs import Curve, FitRefused, Run

LEVEL = 0.95  # of the intervals
_WINDOW = 0.125  # of D, over which the level is taken
_NOISE = 0.004  # of ln(end / level), expected before any run has been seen
_SLOPE = 0.1  # part of the gain by which it is expected to change with a factor e of N or D
# Without finished runs: the loss falls by this power of the tokens to come and by this share of the annealing to come
# (the `cpu` studies and `cpu_long`, cosine), give or take this part of the gain and at least that much.
_POWER, _ANNEALING, _PART, _LEAST = 0.08, 0.10, 0.5, 0.02


@dataclasses.dataclass(frozen=True)
class Forecast:
    """Where a run will end.

    `share` of its training done; `level`, its loss now; `loss`, the loss at its end and its 95% interval `low` to
    `high`, all in the unit of the finished runs' loss; `rate`, the learning rate now as a share of its peak, None where
    the schedule is not known; `by_curve` and `by_law`, what the curve and the law say alone, each with its standard
    deviation in ln loss, or None; `runs`, finished runs whose curves were used.
    """

    name: str
    params: float
    tokens: float
    share: float
    level: float
    loss: float
    low: float
    high: float
    rate: float | None
    by_curve: tuple[float, float]
    by_law: tuple[float, float] | None
    runs: int


def forecast(
    finished: Sequence[Run],
    running: Sequence[Running],
    law: LawAt | None = None,
    schedules: Mapping[str, Schedule] | None = None,
) -> list[Forecast]:
    """The forecasts of `running`, in their order.

    `schedules` are those of finished runs, by name, where they are known. Finished runs without a curve of finite
    losses, and those of another schedule, are not compared with.

    Raises:
      FitRefused: `curve`, when a running run has no finite positive point or tokens that do not rise.
    """
    schedules = schedules or {}
    for run in running:
        _check(run)
    usable = [run for run in finished if run.curve is not None and _is_readable(run.curve)]
    cleaned = _cleaned([*usable, *running])
    results = []
    for run, curve in zip(running, cleaned[len(usable) :], strict=True):
        alike = [k for k, other in enumerate(usable) if _is_alike(run.schedule, schedules.get(other.name))]
        results.append(_forecast(run, curve, [usable[k] for k in alike], [cleaned[k] for k in alike], law))
    return results


def _check(run: Running) -> None:
    if not _is_readable(run.curve):
        fix = "give a curve of rising tokens and finite losses above 0"
        raise FitRefused("curve", f"{run.name}: its curve cannot be read as one; {fix}")


def _is_readable(curve: Curve) -> bool:
    """Whether there is a line, tokens rise, and losses are finite and above 0."""
    tokens, loss = curve.tokens, curve.loss
    rises = bool(len(tokens)) and bool(np.isfinite(tokens).all() and tokens[0] > 0 and (np.diff(tokens) > 0).all())
    return rises and bool((np.isfinite(loss) & (loss > 0)).all())


def _is_alike(one: Schedule | None, other: Schedule | None) -> bool:
    """Whether two schedules are one, so far as they are known."""
    return one is None or other is None or one.resembles(other)


def _cleaned(runs: Sequence[Run | Running]) -> list[LogCurve]:
    """The curves in ln loss without what those of one seed share."""
    curves = [log_curve(run) for run in runs]
    for seed in {run.seed for run in runs}:
        places = [k for k, run in enumerate(runs) if run.seed == seed]
        for k, curve in zip(places, without_shared_noise([curves[k] for k in places]), strict=True):
            curves[k] = curve
    return curves


def level_at(curve: LogCurve, share: float) -> float:
    """Mean ln loss over the last eighth of D before `share` of it."""
    high = min(max(share * curve.total, curve.tokens[0]), curve.tokens[-1])
    return curve.mean(max(high - _WINDOW * curve.total, 0.0), high)


def _forecast(
    run: Running, curve: LogCurve, others: Sequence[Run], curves: Sequence[LogCurve], law: LawAt | None
) -> Forecast:
    """The forecast of one run beside finished ones of its schedule."""
    share = min(float(curve.tokens[-1]) / run.tokens, 1.0)
    level = level_at(curve, share)
    if others:
        gains = np.array([math.log(o.loss) - level_at(c, share) for o, c in zip(others, curves, strict=True)])
        sizes = np.log([[other.params, other.tokens] for other in others])
        away = sizes - np.log([run.params, run.tokens])
        gain, deviation, freedom = at_size(away, gains, _NOISE, _SLOPE * float(np.mean(gains)))
    else:
        gain, deviation, freedom = _by_schedule(run.schedule, share)
    by_curve = level + gain, deviation
    by_law = law.log_loss(run.params, run.flops) if law is not None else None
    mean, deviation = by_curve
    if law is not None and by_law is not None:
        mean, deviation, freedom = _combined(by_curve, by_law, (freedom, law.freedom))
    reach = deviation * float(scipy.special.stdtrit(freedom, 0.5 + 0.5 * LEVEL))
    rate = run.schedule.rate(share) if run.schedule else None
    loss, low, high = (math.exp(mean + side * reach) for side in (0.0, -1.0, 1.0))
    alone = (math.exp(by_curve[0]), by_curve[1])
    other = (math.exp(by_law[0]), by_law[1]) if by_law else None
    now = math.exp(level)
    return Forecast(run.name, run.params, run.tokens, share, now, loss, low, high, rate, alone, other, len(others))


def _by_schedule(schedule: Schedule | None, share: float) -> tuple[float, float, float]:
    """(mean, scale, degrees of freedom) of the gain where no run is finished, from the schedule alone."""
    middle = max(share - 0.5 * _WINDOW, 0.5 * share)
    annealing = max(schedule.rate(middle) - schedule.rate(1.0), 0.0) if schedule else 0.5 * (1.0 - middle)
    gain = _POWER * math.log(middle) - _ANNEALING * annealing
    return gain, math.hypot(_PART * gain, _LEAST), FREEDOM


def _combined(
    one: tuple[float, float], other: tuple[float, float], freedom: tuple[float, float]
) -> tuple[float, float, float]:
    """Mean weighted by precision, its standard deviation, wider where the two contradict each other, and the degrees of
    freedom of that by Welch and Satterthwaite, from those of each."""
    variances = one[1] ** 2, other[1] ** 2
    total = variances[0] + variances[1]
    weight = variances[1] / total
    parts = weight**2 * variances[0], (1.0 - weight) ** 2 * variances[1]
    variance = parts[0] + parts[1]
    apart = max(1.0, (one[0] - other[0]) ** 2 / total)
    known = variance**2 / (parts[0] ** 2 / freedom[0] + parts[1] ** 2 / freedom[1])
    return weight * one[0] + (1.0 - weight) * other[0], math.sqrt(variance * apart), known


def answer(forecasts: Sequence[Forecast], finished: int, law: LawAt | None) -> Answer:
    """The forecasts as a table, the nearest to their end first."""
    rows = [
        {
            "run": f.name,
            "N": f.params,
            "D": f.tokens,
            "share, done": f.share,
            "rate, of peak": "-" if f.rate is None else f"{f.rate:.0%}",
            "loss, now": f.level,
            "loss, at the end": f.loss,
            "loss, 95% interval": (f.low, f.high),
            "loss, by the law": f.by_law[0] if f.by_law else None,
        }
        for f in sorted(forecasts, key=lambda f: -f.share)
    ]
    runs = [f.runs for f in forecasts]
    several = count(max(runs)) if min(runs) == max(runs) else f"{min(runs)} to {max(runs)}"
    if max(runs):
        notes = [f"What is gained from now to the end is as in {several} finished runs at this share of their training"]
    else:
        why = "no run is finished" if not finished else "no finished run has a curve under this schedule"
        notes = [f"{why[0].upper()}{why[1:]}: the gain is what such schedules gave elsewhere, and the interval wide"]
    if law is not None:
        notes.append(f"Weighted with the loss of {law.words}, each by its precision")
    if any(f.rate is None for f in forecasts):
        notes.append("The schedule is not known: taken to be that of the finished runs")
    return Answer("forecast", "Where running runs will end", tuple(rows), tuple(notes))
