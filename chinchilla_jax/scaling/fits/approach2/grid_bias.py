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
from chinchilla_jax.scaling.fits.approach2.isoflop import PAPER, IsoflopFit, IsoflopPreset, fit_isoflop
from chinchilla_jax.scaling.fits.frontier import fit_power
from chinchilla_jax.scaling.fits.surface import FlopsPerToken, Surface
from chinchilla_jax.scaling.read.flops import flops_per_token
from chinchilla_jax.scaling.read.runs import FitRefused, Run


@dataclasses.dataclass(frozen=True)
class Bias:
    """Noise-free errors of approach 2 on one grid under one law.

    `params`, `tokens`, `loss`: relative errors at `flops`; `params_exponent`, `tokens_exponent`: differences of a and
    b. `params_width` is the part of `params` that stays when every budget's sizes are centred on its optimum, None
    where that cannot be fitted. `reach` is the factor between the middle of the sizes and their ends (geometric mean
    over budgets), `centre` [M] the middle of each budget's sizes over its N*.
    """

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
        low, high = self.centre.min(), self.centre.max()
        parts = ""
        if self.params_width is not None:
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
    preset: IsoflopPreset = PAPER,
    flops_per: FlopsPerToken | None = None,
) -> Bias:
    """The bias of approach 2 at `flops` on the grid of the runs.

    Args:
      surface: the law taken for true, of scalars.
      flops_per: training FLOPs of one token over N; unless given, from the runs' own N, D and C.

    Raises:
      FitRefused: as `fit_isoflop`, if the procedure fails on the law's own losses.
    """
    runs = [run for run in runs if run.role == "isoflop" and run.budget is not None]
    fit = _fit(surface, runs, preset)
    c = flops_per or flops_per_token(runs)
    budgets = np.array([profile.budget for profile in fit.profiles])
    best = np.array([[float(v) for v in surface.optimum(budget, c)] for budget in budgets])
    truth = [float(v) for v in surface.optimum(flops, c)]
    params, tokens, loss = (
        float(law.at(flops)) / value - 1.0
        for law, value in zip((fit.params_law, fit.tokens_law, fit.loss_law), truth, strict=True)
    )
    sizes = [np.log([run.params for run in profile.runs]) for profile in fit.profiles]
    middle = np.exp([0.5 * (x.min() + x.max()) for x in sizes])
    width = None
    try:
        centred = _fit(surface, _centred(fit, best[:, 0] / middle, c), preset)
        if len(centred.profiles) == len(fit.profiles):
            width = float(centred.params_law.at(flops)) / truth[0] - 1.0
    except FitRefused:
        pass
    return Bias(
        flops,
        params,
        tokens,
        loss,
        float(fit.params_law.exponent - fit_power(budgets, best[:, 0]).exponent),
        float(fit.tokens_law.exponent - fit_power(budgets, best[:, 1]).exponent),
        width,
        float(np.exp(np.mean([0.5 * np.ptp(x) for x in sizes]))),
        middle / best[:, 0],
    )


def _fit(surface: Surface, runs: Sequence[Run], preset: IsoflopPreset) -> IsoflopFit:
    """Approach 2 on the runs with the law's losses in place of theirs."""
    exact = [dataclasses.replace(run, loss=float(surface.loss(run.params, run.tokens))) for run in runs]
    return fit_isoflop(exact, preset=preset, resampling=None)


def _centred(fit: IsoflopFit, factors: np.ndarray, flops_per: FlopsPerToken) -> list[Run]:
    """The same grid with the sizes of every budget times its factor, each run at its own C."""
    runs = []
    for profile, factor in zip(fit.profiles, factors, strict=True):
        for run in profile.runs:
            params = run.params * factor
            per_token = float(flops_per(np.asarray(params))) if callable(flops_per) else flops_per * params
            runs.append(dataclasses.replace(run, params=params, tokens=run.flops / per_token))
    return runs
