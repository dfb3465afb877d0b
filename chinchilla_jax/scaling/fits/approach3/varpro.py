"""Approach 3 by variable projection: the same least squares, searched in two dimensions instead of five.

For given alpha and beta the law is linear in E, A and B, so their best values are a non-negative least squares problem
and only (alpha, beta) has to be searched (Golub and Pereyra 1973). That has no flat valley to crawl along and needs
one grid instead of thousands of starts, in a tenth of a second: an independent check that the descent of `parametric`
found the minimum. It works for squared raw residuals only.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import scipy.optimize

from chinchilla_jax.scaling.fits.approach3.objective import SurfaceProblem
from chinchilla_jax.scaling.fits.approach3.parametric import ParametricFit, describe_fit
from chinchilla_jax.scaling.fits.multistart import SQUARED_RAW
from chinchilla_jax.scaling.read.runs import FitRefused, Run

_EXPONENTS = np.linspace(0.05, 1.5, 30)


def fit_varpro(runs: Sequence[Run]) -> ParametricFit:
    """Least squares of the raw loss on the runs with role `isoflop`, as `fit_parametric` with `SQUARED_RAW`.

    `ParametricFit.agreement` is 1: there is one search.

    Raises:
      FitRefused: as `fit_parametric`; `no_optimum` as well when E, A or B is best at zero.
    """
    problem = SurfaceProblem(runs)
    # Terms relative to the centre of the data are of order one whatever the exponents.
    x, y = np.log(problem.params) - problem.centre[0], np.log(problem.tokens) - problem.centre[1]

    def linear(exponents: np.ndarray) -> tuple[np.ndarray, float]:
        design = np.column_stack([np.ones_like(x), np.exp(-exponents[0] * x), np.exp(-exponents[1] * y)])
        return scipy.optimize.nnls(design, problem.loss)

    grid = np.stack(np.meshgrid(_EXPONENTS, _EXPONENTS, indexing="ij"), -1).reshape(-1, 2)
    start = grid[np.argmin([linear(pair)[1] for pair in grid])]
    best = scipy.optimize.minimize(
        lambda pair: linear(pair)[1] ** 2, start, method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-16}
    )
    (e, a, b), _ = linear(best.x)
    if not (min(e, a, b) > 0 and min(best.x) > 0):
        raise FitRefused(
            "no_optimum",
            f"approach 3 by variable projection: E, A, B = {e:.3g}, {a:.3g}, {b:.3g} at the centre of the data and "
            f"alpha, beta = {best.x[0]:.3g}, {best.x[1]:.3g}; loss must fall with both N and D and have a floor",
        )
    logs = np.log([a, b, e])
    theta = np.array([*logs, best.x[0] * problem.spread[0], best.x[1] * problem.spread[1]])
    return describe_fit(problem, theta, SQUARED_RAW, agreement=1.0, n_starts=1)
