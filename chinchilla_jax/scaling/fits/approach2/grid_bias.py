"""By how much does approach 2 miss the optimum on a grid of runs, if a law is true and there is no noise?

A parabola is not the profile of L = E + A/N^alpha + B/D^beta. Its vertex is off by an amount that depends only on the
law and on the grid: on how wide the sizes range (then the exponents stay right and the intercept does not), and on how
far off centre they are (if that drifts from budget to budget, the exponents are wrong too). To find it, the losses of
the runs are replaced by the law's at the same N and D, approach 2 is fitted to them, and its answer is compared with
the law's optimum. The law is approach 3's fit or any `Surface`; only its curvature and skew near the optimum matter.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from chinchilla_jax.base.words import change
from chinchilla_jax.scaling.fits.approach2.isoflop import PAPER, IsoflopFit, fit_isoflop
from chinchilla_jax.scaling.fits.frontier import fit_power
from chinchilla_jax.scaling.fits.resample import Preset
from chinchilla_jax.scaling.fits.surface import FlopsPerToken, Surface
from chinchilla_jax.scaling.read.runs import FitRefused, Run, flops_per_token


@dataclasses.dataclass(frozen=True)
class Bias:
    """Noise-free errors of approach 2 on one grid under one law: `params`, `tokens`, `loss` are relative, at `flops`;
    `params_exponent`, `tokens_exponent` differences of a and b. `params_width` is the part of `params` that stays when
    every budget's sizes are centred on its optimum, None where that cannot be fitted. `reach` is the factor between the
    middle of the sizes and their ends (geometric mean over budgets), `centre` [M] their middle over N*."""

    flops: float
    params: float
    tokens: float
    loss: float
    params_exponent: float
    tokens_exponent: float
    params_width: float | None
    reach: float
    centre: np.ndarray

    @property
    def params_off_centre(self) -> float | None:
        """The part of `params` that centring the sizes would remove."""
        return None if self.params_width is None else (1.0 + self.params) / (1.0 + self.params_width) - 1.0

    def describe(self) -> str:
        """One sentence for outputs."""
        low, high, parts = self.centre.min(), self.centre.max(), ""
        if self.params_width is not None and self.params_off_centre is not None:
            width, off_centre = change(self.params_width), change(self.params_off_centre)
            parts = f" ({width} from the width, {off_centre} from being off centre)"
        return (
            f"sizes within {self.reach:.3g}x of their middle, which lies at {low:.3g} to {high:.3g} of N*: without "
            f"noise N* at {self.flops:.3g} FLOPs comes out {change(self.params)} off{parts}, D* {change(self.tokens)}, "
            f"the loss {self.loss:+.3%}, the exponent of N* {self.params_exponent:+.4f}"
        )


def isoflop_bias(
    runs: Sequence[Run],
    surface: Surface,
    flops: float,
    *,
    preset: Preset = PAPER,
    flops_per: FlopsPerToken | None = None,
) -> Bias:
    """The bias of approach 2 at `flops` on the grid of the runs, if `surface`, of scalars, is true.

    `flops_per` is training FLOPs of one token over N; unless given, it is read off the runs' own N, D and C. Refused as
    `fit_isoflop`, if that fails on the law's own losses.
    """
    runs = [run for run in runs if run.role == "isoflop" and run.budget is not None]

    def fit_exact(grid: Sequence[Run]) -> IsoflopFit:
        """Approach 2 on the runs with the law's losses in place of theirs."""
        exact = [dataclasses.replace(run, loss=float(surface.loss(run.params, run.tokens))) for run in grid]
        return fit_isoflop(exact, preset=preset, resampling=None)

    fit = fit_exact(runs)
    c = flops_per or flops_per_token(runs)
    budgets = np.array([profile.budget for profile in fit.profiles])
    best = np.array([[float(v) for v in surface.optimum(budget, c)] for budget in budgets])
    params, tokens, loss = (float(v) for v in surface.optimum(flops, c))
    sizes = [np.log([run.params for run in profile.runs]) for profile in fit.profiles]
    middle = np.exp([0.5 * (x.min() + x.max()) for x in sizes])
    grid = []  # the same with the sizes of every budget centred, each run at its own C
    for profile, factor in zip(fit.profiles, best[:, 0] / middle, strict=True):
        for run in profile.runs:
            size = run.params * factor
            per_token = float(c(np.asarray(size))) if callable(c) else c * size
            grid.append(dataclasses.replace(run, params=size, tokens=run.flops / per_token))
    width = None
    try:
        centred = fit_exact(grid)
        if len(centred.profiles) == len(fit.profiles):
            width = float(centred.params_law.at(flops)) / params - 1.0
    except FitRefused:
        pass
    return Bias(
        flops,
        float(fit.params_law.at(flops)) / params - 1.0,
        float(fit.tokens_law.at(flops)) / tokens - 1.0,
        float(fit.loss_law.at(flops)) / loss - 1.0,
        float(fit.params_law.exponent - fit_power(budgets, best[:, 0]).exponent),
        float(fit.tokens_law.exponent - fit_power(budgets, best[:, 1]).exponent),
        width,
        float(np.exp(np.mean([0.5 * np.ptp(x) for x in sizes]))),
        middle / best[:, 0],
    )
