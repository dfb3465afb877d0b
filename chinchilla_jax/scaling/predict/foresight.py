"""How sure will a study be? The study is played through many times on paper, with the luck its runs will have.

A law gives every planned cell a loss; each play adds the noise from run to run, fits approach 2 and extrapolates it to
the held-out budget, where the law says what would have been right. The law only has to bend about as the runs will:
what is asked is how much of the noise the plan, its budgets, sizes and seeds, lets through to the answer.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from chinchilla_jax.scaling.fits.approach2.isoflop import CORRECTED, fit_isoflop
from chinchilla_jax.scaling.fits.surface import Surface
from chinchilla_jax.scaling.read.runs import FitRefused, Run, flops_per_token

DRAWS = 100
_RUNS, _FEWEST = 4000, 20  # all runs of all draws; a large study is played through less often, so that a plan is quick
_LEVEL = 0.95


def expected(law: Surface, runs: Sequence[Run], budget: float, noise: float, seed: int = 0) -> tuple[float, float]:
    """How far off the study's prediction for the held-out `budget` in FLOPs will be, in 95 of 100 cases.

    The `law` gives the losses of the planned `runs`, replicates once each; `noise` is the relative standard deviation
    of one run's loss from run to run.

    Returns:
      Half width of the loss, relative to the law's lowest at the budget; and the factor by which N* may be off either
      way. Both are infinite if more than 5 of 100 such studies could not be fitted.
    """
    params, _, loss = (float(v) for v in law.optimum(budget, flops_per_token(runs)))
    losses = np.array([float(law.loss(run.params, run.tokens)) for run in runs])
    rng, off = np.random.default_rng(seed), []
    for _ in range(min(DRAWS, max(_FEWEST, _RUNS // len(runs)))):
        lucky = (y * math.exp(e) for y, e in zip(losses, noise * rng.standard_normal(len(runs)), strict=True))
        played = [dataclasses.replace(run, loss=float(y)) for run, y in zip(runs, lucky, strict=True)]
        try:
            fit = fit_isoflop(played, preset=CORRECTED, resampling=None)
        except FitRefused:
            off.append((math.inf, math.inf))
            continue
        error = abs(float(fit.loss_law.at(budget)) / loss - 1.0)
        off.append((error, math.exp(abs(math.log(float(fit.params_law.at(budget)) / params)))))
    # The smallest value that `_LEVEL` of them do not exceed; no mean of two, since some are infinite.
    rank = math.ceil(_LEVEL * len(off)) - 1
    errors, factors = (sorted(values) for values in zip(*off, strict=True))
    return errors[rank], factors[rank]


def scaled(
    runs: Sequence[Run], optimum: float, exponent: float, budget: float, *, loss: float, irreducible: float, fall: float
) -> Surface:
    """The law of the form E + A/N^alpha + B/D^beta that is lowest where a study expects it.

    Args:
      runs: cells, for the FLOPs per token that N costs.
      optimum: N* at `budget` FLOPs.
      exponent: a in N* ~ C^a.
      loss: the lowest at `budget`, in any unit.
      irreducible: E, in the same unit.
      fall: g in L* = E + k C^-g.
    """
    per_token = flops_per_token(runs)
    tokens = budget / float(per_token(np.array(optimum)))
    alpha, beta = fall / exponent, fall / (1.0 - exponent)
    # The two terms balance where a step in N gains as much as the tokens it costs lose; m = d ln c / d ln N.
    low, high = (math.log(float(per_token(np.array(optimum * math.exp(step))))) for step in (-0.5, 0.5))
    of_tokens = (loss - irreducible) * alpha / (alpha + (high - low) * beta)
    of_params = loss - irreducible - of_tokens
    return Surface(irreducible, of_params * optimum**alpha, of_tokens * tokens**beta, alpha, beta)


def offset_through(losses: Sequence[float], step: float) -> tuple[float, float]:
    """(E, g) of L = E + k C^-g through three losses at budgets a factor `step` apart; E >= 0.

    Losses that fall ever faster have no such law: E is 0 then, and g that of the first to the last.
    """
    first, second = losses[0] - losses[1], losses[1] - losses[2]
    slope = math.log(losses[0] / losses[2]) / (2.0 * math.log(step))
    if not 0 < second < first:
        return 0.0, max(slope, 1e-3)
    ratio = second / first
    irreducible = losses[2] - second * ratio / (1.0 - ratio)
    return (irreducible, -math.log(ratio) / math.log(step)) if irreducible > 0 else (0.0, max(slope, 1e-3))
