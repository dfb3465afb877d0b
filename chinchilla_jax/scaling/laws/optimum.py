"""Where is a law lowest when parameters and tokens share a budget of training FLOPs?

For laws without a closed form: a grid over ln N, refined around its best point. `Surface.optimum` has the closed form
of the Chinchilla law.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np

from chinchilla_jax.scaling.fits.minimise import minimise_on_grid
from chinchilla_jax.scaling.read.runs import FitRefused

_LEAST = 10.0  # parameters, and tokens


@dataclasses.dataclass(frozen=True)
class Allocation:
    """`params` N, `tokens` D with flops = flops_per N D, and the `loss` there."""

    params: float
    tokens: float
    loss: float


def allocate(loss: Callable[[np.ndarray, np.ndarray], np.ndarray], flops: float, flops_per: float = 6.0) -> Allocation:
    """The lowest `loss(N [G], D [G])` with flops_per * N * D = flops.

    Raises:
      FitRefused: `no_optimum`, when the loss still falls at the end of the range (N or D of 10).
    """
    ends = np.log(_LEAST), np.log(flops / flops_per / _LEAST)

    def at(log_params: np.ndarray) -> np.ndarray:
        return np.asarray(loss(np.exp(log_params), flops / (flops_per * np.exp(log_params))))

    point = minimise_on_grid(at, np.linspace(*ends, 800), rounds=9, points=21)
    if min(point - ends[0], ends[1] - point) < 1e-3:
        why = f"the law falls to the end of the range of sizes, N = {np.exp(point):.3g}"
        raise FitRefused("no_optimum", f"at {flops:.3g} FLOPs {why}")
    params = float(np.exp(point))
    return Allocation(params, flops / (flops_per * params), float(at(point)))
