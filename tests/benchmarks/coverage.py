"""How often does each approach's 95% interval hold the truth of a planted law?

    python -m tests.benchmarks.coverage [seeds] [approach ...]

Each seed draws a plan that does not know the law (sizes off centre, drifting against the optimum) and the noise. For
every approach: how many intervals of the exponent of N* and of N* at ten times the largest budget hold the truth, the
mean error and the mean width; without noise and with 0.2% from run to run (curves: and 0.5% per logged loss).
Some minutes for all.
"""

import dataclasses
import sys
from collections.abc import Callable

import numpy as np

from chinchilla_jax.scaling.fits.approach1 import envelope
from chinchilla_jax.scaling.fits.approach1.envelope import fit_envelope
from chinchilla_jax.scaling.fits.approach2 import isoflop
from chinchilla_jax.scaling.fits.approach2.isoflop import fit_isoflop
from chinchilla_jax.scaling.fits.approach3.parametric import fit_parametric, paper_starts
from chinchilla_jax.scaling.fits.resample import MinimaScatter, Preset, Resampling, Residuals, interval
from chinchilla_jax.scaling.fits.surface import Surface
from chinchilla_jax.scaling.read.runs import FitRefused, Run
from chinchilla_jax.tools.simulate import plan_horizons, plan_isoflop, simulate_curves, simulate_isoflop

LAW = Surface(1.69, 406.4, 410.7, 0.34, 0.28)
NOISE = 0.002
REPLICATES = 200
BUDGETS = np.geomspace(1e18, 2.7e19, 4)
_ROUNDING = 1e-6  # exact data can leave an interval no wider than rounding
QUANTITIES = ("exponent of N*", "N* at 10 times the largest budget")

# Replicates of the exponent and of ln N* at 10 times the largest C, with the fit's own values in front: [2, 1 + B].
Fit = Callable[[tuple[Run, ...], int], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Approach:
    """A simulated study for a seed and a noise, and a fit of it."""

    simulate: Callable[[int, float], tuple[Run, ...]]
    fit: Fit


@dataclasses.dataclass(frozen=True)
class Coverage:
    """Over `seeds` studies, by quantity: intervals that hold the truth, mean and r.m.s. error, mean width; refusals."""

    seeds: int
    held: tuple[int, int]
    error: tuple[float, float]
    spread: tuple[float, float]
    width: tuple[float, float]
    refused: int


def coverage(approach: Approach, noise: float, seeds: int = 100) -> Coverage:
    """Coverage of 95% intervals; a refusal counts as an interval that does not hold the truth."""
    errors, bounds, refused = [], [], 0
    for seed in range(seeds):
        runs = approach.simulate(seed, noise)
        truth = np.array([LAW.a, np.log(LAW.optimum(_target(runs))[0])])
        try:
            values = approach.fit(runs, seed) - truth[:, None]
        except FitRefused:
            refused += 1
            continue
        errors.append(values[:, 0])
        bounds.append([interval(samples, 0.95) for samples in values[:, 1:]])
    errors, bounds = np.array(errors).reshape(-1, 2), np.array(bounds).reshape(-1, 2, 2)
    held = ((bounds[..., 0] <= _ROUNDING) & (bounds[..., 1] >= -_ROUNDING)).sum(0)
    return Coverage(
        seeds,
        tuple(int(n) for n in held),
        tuple(errors.mean(0)),
        tuple(np.sqrt((errors**2).mean(0))),
        tuple((bounds[..., 1] - bounds[..., 0]).mean(0)),
        refused,
    )


def curves_study(seed: int, noise: float, sizes: int = 16) -> tuple[Run, ...]:
    """`sizes` sizes from 70M to 10B with 4 horizons each over a factor 16, up to 1.65 times off centre."""
    rng = np.random.default_rng(seed)
    params = np.geomspace(7e7, 1e10, sizes) * np.exp(rng.uniform(-0.5, 0.5) * np.log(1e10 / 7e7) / (sizes - 1))
    horizons = plan_horizons(LAW, params, shift=np.exp(rng.uniform(-0.5, 0.5)))
    return simulate_curves(LAW, params, horizons, noise=noise, batch_noise=2.5 * noise, seed=seed)


def isoflop_study(seed: int, noise: float, sizes: int = 7) -> tuple[Run, ...]:
    """4 budgets over a factor 27, 7 sizes 1.6 apart, each budget's up to 1.6 times off centre and drifting."""
    rng = np.random.default_rng(seed)
    shift = rng.uniform(-0.3, 0.3) + rng.uniform(-0.3, 0.3) * np.linspace(-0.5, 0.5, len(BUDGETS))
    plan = plan_isoflop(LAW, BUDGETS, sizes, ratio=1.6, shift=np.exp(shift))
    return simulate_isoflop(LAW, BUDGETS, plan, noise=noise, seed=seed)


def of_envelope(preset: Preset, resampling: Resampling | Residuals) -> Fit:
    """Approach 1."""
    return lambda runs, seed: _laws(fit_envelope(runs, preset=preset, resampling=resampling, seed=seed), runs)


def of_isoflop(preset: Preset, resampling: Resampling | Residuals | MinimaScatter) -> Fit:
    """Approach 2."""
    return lambda runs, seed: _laws(fit_isoflop(runs, preset=preset, resampling=resampling, seed=seed), runs)


def of_surface(runs: tuple[Run, ...], seed: int) -> np.ndarray:
    """Approach 3, from few starts: a planted law has one minimum."""
    fit = fit_parametric(runs, starts=paper_starts()[::300], resampling=Resampling(REPLICATES), seed=seed)
    target = _target(runs)
    exponents = np.append(fit.surface.a, fit.boot.a)
    return np.stack([exponents, np.log(np.append(fit.surface.optimum(target)[0], fit.boot.optimum(target)[0]))])


def _laws(fit, runs: tuple[Run, ...]) -> np.ndarray:
    if fit.boot_params is None:
        raise FitRefused("no_interval", "no replicate could be fitted")
    target = _target(runs)
    exponents = np.append(fit.params_law.exponent, fit.boot_params.exponent)
    return np.stack([exponents, np.log(np.append(fit.params_law.at(target), fit.boot_params.at(target)))])


def _target(runs: tuple[Run, ...]) -> float:
    return 10.0 * max(run.flops for run in runs)


# Plain names are the corrected presets with their own resampling; `-runs` resamples runs instead, `-full` does so with
# the paper's reading.
APPROACHES: dict[str, Approach] = {
    "envelope": Approach(curves_study, of_envelope(envelope.CORRECTED, Residuals(REPLICATES))),
    "envelope-runs": Approach(curves_study, of_envelope(envelope.CORRECTED, Resampling(REPLICATES))),
    "envelope-paper": Approach(curves_study, of_envelope(envelope.PAPER, Resampling(100, 0.8))),
    "envelope-paper-full": Approach(curves_study, of_envelope(envelope.PAPER, Resampling(REPLICATES))),
    "isoflop": Approach(isoflop_study, of_isoflop(isoflop.CORRECTED, MinimaScatter(REPLICATES))),
    "isoflop-akima": Approach(isoflop_study, of_isoflop(isoflop.AKIMA, Residuals(REPLICATES))),
    "isoflop-paper": Approach(isoflop_study, of_isoflop(isoflop.PAPER, Resampling(100, 0.8))),
    "isoflop-paper-full": Approach(isoflop_study, of_isoflop(isoflop.PAPER, Resampling(REPLICATES))),
    "isoflop-paper-residuals": Approach(isoflop_study, of_isoflop(isoflop.PAPER, Residuals(REPLICATES))),
    "parametric": Approach(isoflop_study, of_surface),
}


def main() -> None:
    """Prints the table."""
    seeds = int(sys.argv[1]) if len(sys.argv) > 1 and sys.argv[1].isdigit() else 100
    names = [word for word in sys.argv[1:] if not word.isdigit()] or list(APPROACHES)
    unknown = [word for word in names if word not in APPROACHES]
    if unknown:
        sys.exit(f"no approach {unknown[0]!r}; there are {', '.join(APPROACHES)}")
    print(
        f"{'approach':24} {'noise':>6}  {'a held':>8} {'error':>8} {'rms':>7} {'width':>7}  "
        f"{'N* held':>8} {'error':>8} {'rms':>7} {'width':>7}  refused"
    )
    for name in names:
        for noise in (0.0, NOISE):
            c = coverage(APPROACHES[name], noise, seeds)
            columns = "  ".join(
                f"{c.held[k]:4d}/{c.seeds:<3d} {c.error[k]:8.4f} {c.spread[k]:7.4f} {c.width[k]:7.4f}" for k in range(2)
            )
            print(f"{name:24} {noise:6.3f}  {columns}  {c.refused}", flush=True)


if __name__ == "__main__":
    main()
