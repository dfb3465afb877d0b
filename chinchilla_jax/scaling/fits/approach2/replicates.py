"""How far would the laws of approach 2 move if its runs were others, or had other luck? Replicates of N* and D*.

For the curves of the presets `paper` and `akima`: runs are resampled, or every run's loss gets a residual of some run.
"""

from __future__ import annotations

import numpy as np

from chinchilla_jax.scaling.fits.approach2.near_minimum import MISFIT
from chinchilla_jax.scaling.fits.approach2.table import QUANTITIES, ProfileTable
from chinchilla_jax.scaling.fits.resample import LEAST_NOISE, Resampling, Residuals, sized


def residuals_of(table: ProfileTable) -> tuple[np.ndarray, np.ndarray]:
    """Relative residuals [M, n] about the parabolas or, of the runs near the minima, about the curves there; and which
    runs have one."""
    near, parabola = table.near["params"], table.curve == "parabola"
    fitted, used = (table.minima["params"].fitted[0], table.held) if parabola else (near.fitted, near.near)
    residuals = np.where(used, table.loss / np.where(used, fitted, 1.0) - 1.0, 0.0)
    if not parabola:  # what the curve is known to miss farther up is no noise
        excess = near.fitted / near.fitted.min(1, keepdims=True) - 1.0
        residuals = residuals / np.sqrt(1.0 + (MISFIT * excess / near.noise) ** 2)
    return residuals, used


def replicates(
    table: ProfileTable, resampling: Resampling | Residuals, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """N* and D* [2, B, M] of the replicates and their weight (0 or 1) [B, M], both with B = 0 where no replicate has
    enough usable budgets; and [M] the share of draws with an interior minimum.
    """
    loss, weight = table.loss[None], table.held[None].astype(float)
    if isinstance(resampling, Residuals):
        drawn, freedom = _unleveraged(table)
        loss = loss * (1.0 + resampling.draw(drawn, freedom, table.held.shape, rng) * table.held)
    else:
        weight = np.zeros((resampling.replicates, *table.held.shape))
        for m, mine in enumerate(table.held):
            weight[:, m, mine] = resampling.weights(int(mine.sum()), rng)
    minima = [table.redrawn(quantity, loss, weight) for quantity in QUANTITIES]
    good = minima[0].inside & minima[1].inside
    # A law needs two budgets; of three or more, one without a minimum may be left out.
    enough = good.sum(1) >= min(3, len(table.held))
    rows = np.flatnonzero(enough)
    if not len(rows):
        return np.empty((2, 0, len(table.held))), np.empty((0, len(table.held))), good.mean(0)
    if len(rows) < len(good):
        rows = np.where(enough, np.arange(len(good)), rng.choice(rows, len(good)))
    with np.errstate(over="ignore", invalid="ignore"):
        values = np.exp(np.stack([each.log_best[rows] for each in minima]))
    good = good[rows]
    return np.where(good, values, 1.0), good.astype(float), good.mean(0)


def _unleveraged(table: ProfileTable) -> tuple[np.ndarray, float]:
    """Residuals as large as the noise, and their degrees of freedom.

    They are divided by sqrt(1 - leverage) of their profile's three constants, and scaled to their degrees of freedom;
    for an interpolant, which has no residuals of its own, to the noise near the minima.
    """
    residuals, used = residuals_of(table)
    spared = np.ones(used.shape)
    for m, mine in enumerate(used):
        x = table.params[m, mine]
        q, _ = np.linalg.qr(np.vander((x - x.mean()) / x.std(), 3))
        spared[m, mine] = np.sqrt(np.maximum(1.0 - (q * q).sum(1), 0.05))
    unleveraged = residuals[used] / spared[used]
    if table.curve != "parabola":
        return sized(unleveraged, table.near["params"].noise), table.near["params"].freedom
    freedom = max(1.0, float((used.sum(1) - 3).clip(0).sum()))
    noise = max(LEAST_NOISE, float(np.sqrt((residuals**2).sum() / freedom)))
    return sized(unleveraged, noise), freedom
