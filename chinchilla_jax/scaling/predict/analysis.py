"""What do all three approaches make of the same runs, as the paper did it or corrected?"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence

from chinchilla_jax.scaling.fits.approach1 import envelope
from chinchilla_jax.scaling.fits.approach1.envelope import EnvelopeFit, fit_envelope
from chinchilla_jax.scaling.fits.approach2 import isoflop
from chinchilla_jax.scaling.fits.approach2.grid_bias import Bias, isoflop_bias
from chinchilla_jax.scaling.fits.approach2.isoflop import IsoflopFit, fit_isoflop
from chinchilla_jax.scaling.fits.approach3 import as_published, parametric
from chinchilla_jax.scaling.fits.approach3.as_published import fit_as_published
from chinchilla_jax.scaling.fits.approach3.parametric import ParametricFit, few_starts, fit_parametric
from chinchilla_jax.scaling.fits.resample import PAPER, Resampling
from chinchilla_jax.scaling.predict.rollout import attempt
from chinchilla_jax.scaling.read.runs import FitRefused, Run

PRESETS = ("corrected", "paper")
_LONELY = 0.05  # share of the few starts at the best minimum below which all are tried
APPROACHES = {
    "envelope": "approach 1 (training-curve envelope)",
    "isoflop": "approach 2 (IsoFLOP profiles)",
    "parametric": "approach 3 (parametric surface)",
}


@dataclasses.dataclass(frozen=True)
class Analysis:
    """The three fits of one preset, None where refused, with the reasons in `refused` by approach."""

    preset: str
    envelope: EnvelopeFit | None
    isoflop: IsoflopFit | None
    parametric: ParametricFit | None
    refused: Mapping[str, str]

    @property
    def differences(self) -> dict[str, tuple[str, ...]]:
        """By approach: what the presets do differently, and why."""
        return differences(self.preset)

    def isoflop_bias(self, flops: float) -> dict[str, Bias]:
        """Approach 2's own error at `flops` if approach 3's surface were true, of the curve used and of a parabola."""
        if self.isoflop is None or self.parametric is None:
            return {}
        presets = {self.isoflop.preset.curve: self.isoflop.preset, isoflop.PAPER.curve: isoflop.PAPER}
        refused: dict[str, str] = {}
        found = {name: attempt(name, functools.partial(
            isoflop_bias, self.isoflop.runs, self.parametric.surface, flops, preset=preset), refused)
            for name, preset in presets.items()}  # fmt: skip
        return {name: bias for name, bias in found.items() if bias is not None}


def differences(preset: str) -> dict[str, tuple[str, ...]]:
    """By approach: what this preset does that the other does not."""
    return {
        "envelope": (envelope.PAPER if preset == "paper" else envelope.CORRECTED).differences,
        "isoflop": (isoflop.PAPER if preset == "paper" else isoflop.CORRECTED).differences,
        "parametric": as_published.DIFFERENCES if preset == "paper" else parametric.DIFFERENCES,
    }


def analyse(runs: Sequence[Run], preset: str = "corrected", *, replicates: int = 1000, seed: int = 0) -> Analysis:
    """Approaches 1, 2 and 3 on the runs with role `isoflop`.

    Args:
      preset: `corrected`, or `paper`: each as Hoffmann et al. 2022 did it, approach 3 stopping early included, which
        takes half a minute.
      replicates: of the bootstrap; 0 for no intervals. The paper's 100 are not changed by it.

    Raises:
      FitRefused: `preset`; `no_fit`, when neither approach 2 nor 3 can be fitted (approach 1 alone gives no loss that
        a trained model could be compared with); the message has the reasons.
    """
    if preset not in PRESETS:
        raise FitRefused("preset", f"no preset {preset!r}; use one of {', '.join(PRESETS)}")
    fitted = [run for run in runs if run.role == "isoflop"]
    if not fitted:
        raise FitRefused("no_fit", "no IsoFLOP run is finished yet: there is nothing to fit")
    refused: dict[str, str] = {}
    paper = preset == "paper"
    resampling = (PAPER if paper else Resampling(replicates)) if replicates else None
    found = {
        "envelope": attempt("envelope", lambda: fit_envelope(
            fitted, preset=_sized(envelope.PAPER if paper else envelope.CORRECTED, replicates), seed=seed), refused),
        "isoflop": attempt("isoflop", lambda: fit_isoflop(
            fitted, preset=_sized(isoflop.PAPER if paper else isoflop.CORRECTED, replicates), seed=seed), refused),
        "parametric": attempt("parametric", lambda: _parametric(fitted, paper, resampling, seed), refused),
    }  # fmt: skip
    if found["isoflop"] is None and found["parametric"] is None:
        raise FitRefused("no_fit", "; ".join(f"{name}: {why}" for name, why in refused.items()))
    return Analysis(preset, **found, refused=refused)


def _sized(preset, replicates: int):
    """The preset with as many replicates; the paper's number stays, unless none are wanted."""
    if not replicates:
        return dataclasses.replace(preset, resampling=None)
    if preset.name == "paper":
        return preset
    return dataclasses.replace(preset, resampling=dataclasses.replace(preset.resampling, replicates=replicates))


def _parametric(runs: Sequence[Run], paper: bool, resampling: Resampling | None, seed: int) -> ParametricFit:
    if paper:
        return fit_as_published(runs, resampling=resampling, seed=seed)
    fit = fit_parametric(runs, starts=few_starts(), resampling=resampling, seed=seed)
    if fit.agreement < _LONELY:  # a minimum that few starts find may not be the best one
        fit = fit_parametric(runs, resampling=resampling, seed=seed)
    return fit
