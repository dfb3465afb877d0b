"""How are thousands of small non-linear fits brought to their minimum together?

A scaling-law fit is small, but is wanted from thousands of starting points and for thousands of bootstrap resamples.
So they advance in step: one vectorised evaluation, one batched eigen-decomposition, and the finished ones leave.

The method is a damped Newton step with the absolute values of the Hessian's eigenvalues (Levenberg 1944, Marquardt
1963 for the damping; the absolute value makes saddle points repel). Second derivatives are exact, so that near the
minimum the number of correct digits doubles per step and no stopping tolerance has to be guessed: Besiroglu et al.
(arXiv 2404.10102) trace the published approach-3 constants of Hoffmann et al. to an optimiser that stopped early.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

# value_[B], gradient_[BxP] and Hessian_[BxPxP] at theta_[BxP]; the second argument tells which problem each row is.
Objective = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray, np.ndarray]]

_DAMPING_START, _DAMPING_MIN, _DAMPING_MAX = 1e-2, 1e-12, 1e14
_STALL_WINDOW, _STALL_DECREASE = 15, 1e-9


class Minima(NamedTuple):
    """Where each of B problems ended: `theta` [B, P]; `value` [B]; `gradient` [B], the largest absolute component."""

    theta: np.ndarray
    value: np.ndarray
    gradient: np.ndarray


def minimise(
    objective: Objective, starts: np.ndarray, *, tolerance: float = 1e-6, max_steps: int = 300, chunk: int = 128
) -> Minima:
    """Minimise B independent problems of P unknowns each, until no component of the gradient is above `tolerance`.

    Args:
      objective: vectorised; must be thread-safe. Scale it so that values of interest are well above 1.
      starts: [B, P], in coordinates where a unit step matters about equally in each direction.
      chunk: problems per batch; small enough that the working arrays stay in the processor's cache.
    """
    starts = np.asarray(starts, np.float64)
    blocks = [np.arange(i, min(i + chunk, len(starts))) for i in range(0, len(starts), chunk)]

    with ThreadPoolExecutor(max(1, min(len(blocks), os.cpu_count() or 1))) as pool:
        parts = pool.map(lambda rows: _descend(objective, starts[rows], rows, tolerance, max_steps), blocks)
        return Minima(*map(np.concatenate, zip(*parts, strict=True)))


@np.errstate(over="ignore", invalid="ignore", divide="ignore")
def _descend(objective: Objective, theta: np.ndarray, rows: np.ndarray, tolerance: float, max_steps: int) -> Minima:
    value, grad, hess = objective(theta, rows)
    damping = np.full(len(theta), _DAMPING_START)
    reference = value.copy()
    alive = np.isfinite(value) & (np.abs(grad).max(1) > tolerance)
    for step in range(1, max_steps + 1):
        live = np.flatnonzero(alive)
        if not len(live):
            break
        roots, axes = np.linalg.eigh(hess[live])
        # Damping is relative to the largest curvature, so that rescaling the objective changes nothing.
        damp = damping[live] * np.maximum(np.abs(roots).max(1), 1e-300)
        along = np.einsum("bji,bj->bi", axes, grad[live]) / (np.abs(roots) + damp[:, None])
        trial = theta[live] - np.einsum("bij,bj->bi", axes, along)
        new_value, new_grad, new_hess = objective(trial, rows[live])
        better = np.isfinite(new_value) & np.isfinite(new_hess).all((1, 2)) & (new_value <= value[live])
        won = live[better]
        theta[won], value[won] = trial[better], new_value[better]
        grad[won], hess[won] = new_grad[better], new_hess[better]
        damping[live] = np.clip(damping[live] * np.where(better, 0.1, 10.0), _DAMPING_MIN, None)
        alive[live] = (np.abs(grad[live]).max(1) > tolerance) & (damping[live] < _DAMPING_MAX)
        if step % _STALL_WINDOW == 0:
            # A start that slides down an endless slope (E -> 0, say) would otherwise use every step there is.
            alive &= value < reference - _STALL_DECREASE * np.abs(reference)
            reference = value.copy()
    return Minima(theta, value, np.abs(grad).max(1))


def minimise_on_grid(
    function: Callable[[np.ndarray], np.ndarray], grid: np.ndarray, *, rounds: int, points: int
) -> np.ndarray:
    """The lowest point [...] of a function of one unknown, whose values at a grid [..., G] may be infinite.

    By `rounds` grids: the first, and ever finer ones of `points` between the neighbours of the best. It cannot fail to
    converge, nor land in a local minimum that the first grid tells from the lowest one.
    """
    share = np.linspace(0.0, 1.0, points)
    for _ in range(rounds):
        best = function(grid).argmin(-1)[..., None]
        low = np.take_along_axis(grid, np.maximum(best - 1, 0), -1)
        high = np.take_along_axis(grid, np.minimum(best + 1, grid.shape[-1] - 1), -1)
        lowest = np.take_along_axis(grid, best, -1)[..., 0]
        grid = low + (high - low) * share
    return lowest
