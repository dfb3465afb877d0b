"""How many training FLOPs does one token of a model of N parameters cost, going by the runs themselves?

6 N holds for large models only: at the sizes of a laptop study attention and the logits add tens of percent, and which
of them are counted is the convention's choice. The optimum of a surface under C = c(N) D needs c(N) between the sizes
that were trained, and the runs' own N, D and C carry it whatever the convention.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from chinchilla_jax.scaling.read.runs import Run

_ROUNDING = 0.01


def flops_per_token(runs: Sequence[Run]) -> Callable[[np.ndarray], np.ndarray]:
    """c(N) = C / D as a function of N [...], through every size among the runs.

    ln(c / 6N) is interpolated linearly in ln N, so that C = 6 N D comes back exactly. Beyond the sizes tried it goes on
    along the straight line through the outer third of them.
    """
    log_n = np.log([run.params for run in runs])
    log_ratio = np.log([run.flops / (6.0 * run.params * run.tokens) for run in runs])
    knots, inverse = np.unique(log_n, return_inverse=True)
    values = np.bincount(inverse.ravel(), log_ratio) / np.bincount(inverse.ravel())
    outer = max(2, len(knots) // 3)
    slopes = [_slope(knots[part], values[part]) for part in (slice(None, outer), slice(-outer, None))]

    def per_token(params: np.ndarray) -> np.ndarray:
        x = np.log(params)
        beyond = slopes[0] * np.minimum(x - knots[0], 0.0) + slopes[1] * np.maximum(x - knots[-1], 0.0)
        return 6.0 * np.asarray(params) * np.exp(np.interp(x, knots, values) + beyond)

    return per_token


def flops_of(runs: Sequence[Run]) -> float | Callable[[np.ndarray], np.ndarray]:
    """6 where every run has C = 6 N D within 1%, else `flops_per_token`."""
    if not runs or all(abs(run.flops / (6.0 * run.params * run.tokens) - 1.0) < _ROUNDING for run in runs):
        return 6.0
    return flops_per_token(runs)


def _slope(x: np.ndarray, y: np.ndarray) -> float:
    centred = x - x.mean()
    return float((centred * y).sum() / (centred * centred).sum()) if len(x) > 1 else 0.0
