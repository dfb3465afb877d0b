"""The frontiers of arms whose surfaces (approach 3) are compared, where there are too few profiles for their minima."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from chinchilla_jax.scaling.answers import decide
from chinchilla_jax.scaling.fits.approach3.parametric import few_starts, fit_parametric
from chinchilla_jax.scaling.fits.resample import Resampling
from chinchilla_jax.scaling.fits.surface import FlopsPerToken, Surface
from chinchilla_jax.scaling.read.runs import FitRefused, Run, flops_of

_SAME = 0.03  # of ln N and ln D: runs of two arms closer than this are of the same cell


@dataclasses.dataclass(frozen=True)
class SurfaceFrontiers:
    """B replicates of the surfaces of K arms. Where all arms have the same cells, replicate b resamples the same cells
    in all of them; `paired` says whether."""

    surfaces: tuple[Surface, ...]
    flops_per: tuple[FlopsPerToken, ...]
    paired: bool

    def loss(self, arm: int, flops: float | np.ndarray) -> np.ndarray:
        """[B]: the minimum loss at C = flops, a number or one for each replicate."""
        return self.surfaces[arm].optimum(flops, self.flops_per[arm])[2]

    def flops(self, arm: int, loss: np.ndarray) -> np.ndarray:
        """[B]: the C that reaches `loss` [B]; infinite at or below the irreducible loss."""
        return decide.flops_for_loss(self.surfaces[arm], loss, self.flops_per[arm])

    def params(self, arm: int, flops: float | np.ndarray) -> np.ndarray:
        """[B]: N* at C = flops."""
        return self.surfaces[arm].optimum(flops, self.flops_per[arm])[0]


def draw_surfaces(arms: Sequence[Sequence[Run]], draws: int, seed: int) -> SurfaceFrontiers:
    """`draws` bootstrap replicates of each arm's surface, or fewer. Refused as `fit_parametric`, or as `no_draws`."""
    ordered = [sorted(runs, key=lambda run: (run.params, run.tokens)) for runs in arms]
    boots = []
    for runs in ordered:
        fit = fit_parametric(runs, starts=few_starts(), resampling=Resampling(draws), seed=seed)
        if not fit.known.determined:
            raise FitRefused("undetermined", f"an arm's runs leave its surface open: {fit.known.why}")
        if fit.boot is None:
            raise FitRefused("no_draws", "no resample of an arm has an optimum: more runs are needed to compare it")
        boots.append((fit.boot, fit.boot_kept))
    paired = _same_cells(ordered) and all(kept == 1.0 for _, kept in boots)
    count = min(np.size(boot.E) for boot, _ in boots)
    surfaces = tuple(
        Surface(**{field.name: getattr(boot, field.name)[:count] for field in dataclasses.fields(Surface)})
        for boot, _ in boots
    )
    return SurfaceFrontiers(surfaces, tuple(flops_of(runs) for runs in ordered), paired)


def _same_cells(arms: Sequence[Sequence[Run]]) -> bool:
    if len({len(runs) for runs in arms}) > 1:
        return False
    cells = np.log([[(run.params, run.tokens) for run in runs] for runs in arms])
    return bool(np.ptp(cells, axis=0).max() < _SAME)
