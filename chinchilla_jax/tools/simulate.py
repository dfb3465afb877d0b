"""Which losses would a study have measured if a planted law were true?

A fit can only be trusted to the extent that it finds a law known beforehand. Here a plan (sizes and budgets, or sizes
and horizons) and a law `Surface` give runs with noise, in the data model of real ones. No training happens.

Shape of a curve. Under a cosine schedule whose length is the run's own horizon H the loss is on the law only at the
end, where the learning rate has decayed; before that it lies above the law by an amount that grows with the share of
the decay still to come. At tokens t of H:

    loss(t) = L(N, t) * (1 + lift * (1 + cos(pi t / H)) / 2)

with `lift` 0.03: decaying the learning rate is worth about 3% of the loss. This is a stand-in with the right ends and
the right sign, not a model of training; warm-up is left out.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from chinchilla_jax.scaling.answers.decide import per_token
from chinchilla_jax.scaling.fits.surface import FlopsPerToken, Surface
from chinchilla_jax.scaling.read.runs import Curve, Run


def plan_isoflop(
    surface: Surface,
    budgets: Sequence[float],
    sizes: int = 7,
    *,
    ratio: float = 1.6,
    shift: float | Sequence[float] = 1.0,
    flops_per: FlopsPerToken = 6.0,
) -> np.ndarray:
    """Sizes N [M budgets, `sizes`], neighbours `ratio` apart, centred on `shift` times the law's optimum.

    Args:
      shift: 1 is a perfectly centred plan; one value per budget makes the plan drift against the optimum.
    """
    steps = ratio ** (np.arange(sizes) - (sizes - 1) / 2)
    best = np.array([float(surface.optimum(budget, flops_per)[0]) for budget in budgets])
    return (best * np.asarray(shift))[:, None] * steps


def simulate_isoflop(
    surface: Surface,
    budgets: Sequence[float],
    sizes: np.ndarray,
    *,
    noise: float = 0.0,
    seed: int = 0,
    flops_per: FlopsPerToken = 6.0,
) -> tuple[Run, ...]:
    """One run for each size N of `sizes` [M budgets, n], each spending its budget exactly.

    Args:
      noise: standard deviation of the relative error of one run's loss.
      flops_per: training FLOPs of one token over N, as in `Surface.optimum`.
    """
    params = np.asarray(sizes, np.float64)
    spent = np.broadcast_to(np.asarray(budgets, np.float64)[:, None], params.shape)
    tokens = spent / per_token(params, flops_per)
    error = noise * np.random.default_rng(seed).standard_normal(params.shape)
    loss = surface.loss(params, tokens) * (1.0 + error)
    rows = np.stack([params, tokens, spent, loss], -1).reshape(-1, 4).tolist()
    return tuple(Run(f"c{c:.3g}-{i:03d}", n, d, c, y, c) for i, (n, d, c, y) in enumerate(rows))


def plan_horizons(
    surface: Surface, sizes: Sequence[float], horizons: int = 4, *, span: float = 16.0, shift: float = 1.0
) -> np.ndarray:
    """Horizons in tokens [M sizes, `horizons`]: evenly in log over a factor `span`, as in section 3.1 of the paper.

    Centred on `shift` times the D for which each size is optimal under C = 6 N D.
    """
    n = np.asarray(sizes, np.float64)
    ratio = surface.beta * surface.B / (surface.alpha * surface.A)
    best = (ratio * n**surface.alpha) ** (1.0 / surface.beta)
    return shift * best[:, None] * np.geomspace(span**-0.5, span**0.5, horizons)


def simulate_curves(
    surface: Surface,
    sizes: Sequence[float],
    horizons: np.ndarray,
    *,
    points: int = 100,
    lift: float = 0.03,
    noise: float = 0.0,
    batch_noise: float = 0.0,
    seed: int = 0,
    flops_per: FlopsPerToken = 6.0,
) -> tuple[Run, ...]:
    """One run with its training curve for each size N [M] and each of its `horizons` [M, H] in tokens.

    Args:
      points: logged losses per run, evenly in tokens; the last one is at the horizon.
      lift: relative height of the curve above the law before the learning rate decays; see above.
      noise: relative standard deviation from run to run, the same along the whole curve (initialisation, data order).
      batch_noise: that of each logged loss about its curve; a run's final `loss` is free of it.
    """
    rng = np.random.default_rng(seed)
    done = np.arange(1, points + 1) / points
    above = 1.0 + lift * 0.5 * (1.0 + np.cos(np.pi * done))
    runs = []
    for params, row in zip(np.asarray(sizes, np.float64), np.asarray(horizons, np.float64), strict=True):
        rate = float(per_token(params, flops_per))
        for horizon in row:
            run_error, errors = noise * rng.standard_normal(), batch_noise * rng.standard_normal(points)
            tokens = horizon * done
            loss = surface.loss(params, tokens) * above * (1.0 + run_error) * (1.0 + errors)
            final = float(surface.loss(params, horizon)) * (1.0 + run_error)
            name = f"n{params:.3g}-d{horizon:.3g}"
            runs.append(Run(name, float(params), float(horizon), rate * horizon, final, curve=Curve(tokens, loss)))
    return tuple(runs)
