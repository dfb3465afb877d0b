"""How far would the laws of approach 2 move if its runs were others, or had other luck? Replicates of N* and D*.

For the curves of the presets `paper` and `akima`: runs are resampled, or every run's loss gets a residual of some run.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from chinchilla_jax.scaling.fits.approach2.curve import Minima, least_noise
from chinchilla_jax.scaling.fits.approach2.near_minimum import MISFIT, NearFit
from chinchilla_jax.scaling.fits.approach2.table import WORDS, ProfileTable
from chinchilla_jax.scaling.fits.resample import Resampling, Residuals


def residuals_of(curve: str, table: ProfileTable, minima: Minima, near: NearFit) -> tuple[np.ndarray, np.ndarray]:
    """Relative residuals [M, n] about the parabolas or, of the runs near the minima, about the curves there; and which
    runs have one."""
    fitted, used = (minima.fitted[0], table.held) if curve == "parabola" else (near.fitted, near.near)
    residuals = np.where(used, table.loss / np.where(used, fitted, 1.0) - 1.0, 0.0)
    if curve != "parabola":  # what the curve is known to miss farther up is no noise
        excess = near.fitted / near.fitted.min(1, keepdims=True) - 1.0
        residuals = residuals / np.sqrt(1.0 + (MISFIT * excess / near.noise) ** 2)
    return residuals, used


def replicates(
    curve: str,
    table: ProfileTable,
    near: Mapping[str, NearFit],
    resampling: Resampling | Residuals,
    rng: np.random.Generator,
) -> tuple[tuple[np.ndarray, ...] | None, np.ndarray]:
    """N*, D* and weight (0 or 1) of the replicates, each [B, M], or None where no replicate has enough usable budgets;
    and [M] the share of draws with an interior minimum.
    """
    held = table.held
    loss, weight = table.loss[None], held[None].astype(float)
    if isinstance(resampling, Residuals):
        minima = table.minima(curve, "params", near["params"])
        residuals, used = residuals_of(curve, table, minima, near["params"])
        drawn, freedom = _unleveraged(table, residuals, used)
        if curve != "parabola":  # an interpolant has no residuals of its own
            freedom = near["params"].freedom
            drawn = drawn * near["params"].noise / max(1e-300, float(np.sqrt((drawn**2).mean())))
        loss = loss * (1.0 + resampling.draw(drawn, freedom, held.shape, rng) * held)
    else:
        weight = np.zeros((resampling.replicates, *held.shape))
        for m, mine in enumerate(held):
            weight[:, m, mine] = resampling.weights(int(mine.sum()), rng)
    found = [table.minima(curve, word, near[word], loss, weight) for word in WORDS]
    with np.errstate(over="ignore", invalid="ignore"):
        values = np.exp(np.stack([each.log_best for each in found]))
    good = found[0].inside & found[1].inside
    # A law needs two budgets; of three or more, one without a minimum may be left out.
    whole = np.flatnonzero(good.sum(1) >= min(3, len(held)))
    if not len(whole):
        return None, good.mean(0)
    if len(whole) < len(good):
        rows = np.where(good.sum(1) >= min(3, len(held)), np.arange(len(good)), rng.choice(whole, len(good)))
        values, good = values[:, rows], good[rows]
    return (*np.where(good, values, 1.0), good.astype(float)), good.mean(0)


def _unleveraged(table: ProfileTable, residuals: np.ndarray, used: np.ndarray) -> tuple[np.ndarray, float]:
    """Residuals as large as the noise: divided by sqrt(1 - leverage) of their profile's three constants, and scaled to
    their degrees of freedom, which come second."""
    spared = np.ones(used.shape)
    for m, mine in enumerate(used):
        x = table.params[m, mine]
        q, _ = np.linalg.qr(np.vander((x - x.mean()) / x.std(), 3))
        spared[m, mine] = np.sqrt(np.maximum(1.0 - (q * q).sum(1), 0.05))
    freedom = float((used.sum(1) - 3).clip(0).sum())
    drawn = residuals[used] / spared[used]
    size = max(1e-300, float(np.sqrt((drawn**2).mean())))
    return drawn * least_noise(residuals, freedom) / size, max(1.0, freedom)
