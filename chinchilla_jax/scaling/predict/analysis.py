"""What do the three approaches give for the same runs, as the paper did them or corrected?"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from chinchilla_jax.scaling.fits.approach1 import envelope
from chinchilla_jax.scaling.fits.approach1.envelope import EnvelopeFit, fit_envelope
from chinchilla_jax.scaling.fits.approach2 import isoflop
from chinchilla_jax.scaling.fits.approach2.grid_bias import Bias, isoflop_bias
from chinchilla_jax.scaling.fits.approach2.isoflop import IsoflopFit, fit_isoflop
from chinchilla_jax.scaling.fits.approach3 import as_published, parametric
from chinchilla_jax.scaling.fits.approach3.as_published import fit_as_published
from chinchilla_jax.scaling.fits.approach3.parametric import ParametricFit, few_starts, fit_parametric
from chinchilla_jax.scaling.fits.resample import FULL, PAPER, MinimaScatter, Resampling, Residuals
from chinchilla_jax.scaling.read.runs import FitRefused, Run

APPROACHES = {
    "envelope": "approach 1: training-curve envelope",
    "isoflop": "approach 2: IsoFLOP profiles",
    "parametric": "approach 3: parametric surface",
}
# The presets of approaches 1 and 2, and what approach 3 does.
PRESETS = {
    "corrected": (envelope.CORRECTED, isoflop.CORRECTED, parametric.DIFFERENCES),
    "paper": (envelope.PAPER, isoflop.PAPER, as_published.DIFFERENCES),
}
_LONELY = 0.05  # share of the few starts at the best minimum below which all are tried
_Fit = TypeVar("_Fit")
_Scheme = Resampling | Residuals | MinimaScatter | None


@dataclasses.dataclass(frozen=True)
class Analysis:
    """The fits of one preset to `runs`, all of role `isoflop`; None where refused, with the reason in `refused`."""

    preset: str
    runs: tuple[Run, ...]
    seed: int
    envelope: EnvelopeFit | None
    isoflop: IsoflopFit | None
    parametric: ParametricFit | None
    refused: Mapping[str, str]

    @property
    def differences(self) -> dict[str, tuple[str, ...]]:
        """By approach: what this preset does that the other does not, and why."""
        first, second, third = PRESETS[self.preset]
        return {"envelope": first.differences, "isoflop": second.differences, "parametric": third}

    def isoflop_bias(self, flops: float) -> dict[str, Bias]:
        """Approach 2's own error at `flops` if approach 3's surface were true: of the curve used, and of a parabola."""
        if self.isoflop is None or self.parametric is None or not self.parametric.known.determined:
            return {}
        presets = {preset.curve: preset for preset in (self.isoflop.preset, isoflop.PAPER)}
        asked = self.isoflop.runs, self.parametric.surface, flops
        biases = {name: attempt(name, {}, isoflop_bias, *asked, preset=preset) for name, preset in presets.items()}
        return {name: bias for name, bias in biases.items() if bias is not None}


def attempt(name: str, refused: dict[str, str], fit: Callable[..., _Fit], *args: Any, **options: Any) -> _Fit | None:
    """`fit(*args, **options)`, or None with the reason noted in `refused` under `name`."""
    try:
        return fit(*args, **options)
    except FitRefused as refusal:
        refused[name] = str(refusal)
        return None


def analyse(runs: Sequence[Run], preset: str = "corrected", *, replicates: int = 1000, seed: int = 0) -> Analysis:
    """Approaches 1, 2 and 3 on the runs with role `isoflop`.

    Args:
      preset: `corrected`, or `paper`: each as Hoffmann et al. 2022 did it; approach 3 then takes half a minute.
      replicates: of the bootstrap; 0 for no intervals. The paper's 100 are not changed by it.

    Raises:
      FitRefused: `preset`; `no_fit`, when neither approach 2 nor 3 can be fitted (approach 1 has the training loss
        only); the message has the reasons.
    """
    if preset not in PRESETS:
        raise FitRefused("preset", f"no preset {preset!r}; use one of {', '.join(PRESETS)}")
    fitted = tuple(run for run in runs if run.role == "isoflop")
    if not fitted:
        raise FitRefused("no_fit", "no IsoFLOP run is finished yet: there is nothing to fit")
    fits = fit_all(fitted, preset, replicates, seed)
    if fits.isoflop is None and fits.parametric is None:
        raise FitRefused("no_fit", "; ".join(f"{name}: {why}" for name, why in fits.refused.items()))
    return fits


def fit_all(runs: Sequence[Run], preset: str, replicates: int = 0, seed: int = 0, *, quick: bool = False) -> Analysis:
    """As `analyse`, but never refused as a whole. `quick`: approach 3 starts from a ninth of the starts only."""
    refused: dict[str, str] = {}
    paper, (first, second, _) = preset == "paper", PRESETS[preset]

    def fit(name: str, function: Callable[..., _Fit], scheme: _Scheme, *args: Any, **options: Any) -> _Fit | None:
        if scheme and not paper:
            scheme = dataclasses.replace(scheme, replicates=replicates)
        options |= {"resampling": scheme if replicates else None, "seed": seed}
        return attempt(name, refused, function, runs, *args, **options)

    curves = fit("envelope", fit_envelope, first.resampling, preset=first)
    profiles = fit("isoflop", fit_isoflop, second.resampling, preset=second)
    surface = fit("parametric", _surface, PAPER if paper else FULL, paper, quick)
    return Analysis(preset, tuple(runs), seed, curves, profiles, surface, refused)


def _surface(runs: Sequence[Run], paper: bool, quick: bool, **options: Any) -> ParametricFit:
    few = {"starts": few_starts()} | options
    if paper:
        return fit_as_published(runs, **(few if quick else options))
    fit = fit_parametric(runs, **few)
    if fit.agreement < _LONELY and not quick:  # a minimum that few starts find may not be the best one
        fit = fit_parametric(runs, **options)
    return fit
