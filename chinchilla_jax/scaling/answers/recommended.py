"""What does the recommended law say of any budget and any size? The one place where tables and plots ask it.

Approach 3 is a surface and answers by itself. Approach 2 has the minimum loss L*(C), the best size N*(C) and the shape
of its profiles, which together are a surface too:

    L(N, C) = L*(C) + slope(C) * shape(N / N*(C)),   slope(C) = -dL*/d ln C

`shape` is the loss above the minimum over the slope at that budget, as the largest profiles show it. It does not change
with C under E + A/N^alpha + B/D^beta, whose curvature is (alpha + beta) / 2 times the slope; where L* is a pure power
law it is the same as a constant relative excess.

How a size that is too small goes on with more data, no profile shows. More data at N* are worth the slope (envelope
theorem), and the part of the loss that they decide is taken to fall as D^-beta with the beta of published laws.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from chinchilla_jax.base.words import MOST_PERCENT
from chinchilla_jax.scaling.answers import answers
from chinchilla_jax.scaling.answers.answers import SMALLER, Answer, Law, SizeLaw
from chinchilla_jax.scaling.fits.approach2 import profile_shape
from chinchilla_jax.scaling.fits.approach2.isoflop import IsoflopFit
from chinchilla_jax.scaling.fits.surface import FlopsPerToken
from chinchilla_jax.scaling.predict.estimates import Intervals, estimates_of
from chinchilla_jax.scaling.predict.predict import Prediction
from chinchilla_jax.scaling.read.runs import FitRefused

_SHAPES = 3  # profiles, the largest, whose shape is taken
_FURTHEST = 1e3  # the least part of the budget that is looked at for a loss
_STEP = 1.05  # either side in C of a numerical slope
_BETA = float(np.sqrt(profile_shape.PRODUCT))  # 0.28 to 0.37 in published laws


class ProfileLaw(SizeLaw):
    """Approach 2; losses in the unit of the runs' loss. `smallest` is how far below N* its runs go, as a factor."""

    name = "approach 2"
    premise = (
        f", if the part of the loss that data decide falls as D^-{_BETA:.2f}, as in published laws, and at N* as fast "
        "as L*(C)"
    )

    def __init__(self, fit: IsoflopFit, flops_per: FlopsPerToken):
        self.fit, self.flops_per = fit, flops_per
        self.largest = fit.profiles[-_SHAPES:]
        self.smallest = min(profile.params.low / profile.params.best for profile in self.largest)
        self.words = (
            f"L*(C) and N*(C), and away from N* the shape of its {len(self.largest)} largest profiles, flatter as "
            "L*(C) flattens"
        )

    def best(self, flops: float) -> tuple[float, float]:
        return float(self.fit.params_law.at(flops)), float(self.fit.loss_law.at(flops))

    def loss(self, params: np.ndarray | float, flops: float) -> np.ndarray:
        size, lowest = self.best(flops)
        ratio = np.asarray(params) / size
        curves = [(profile.params, self._slope(profile.budget)) for profile in self.largest]
        shapes = [(curve.at(ratio * curve.best) - curve.lowest) / slope for curve, slope in curves]
        return lowest + self._slope(flops) * np.nanmedian(shapes, axis=0)

    def _slope(self, flops: float) -> float:
        """-dL*/d ln C, by a central difference; not below what keeps a law that has flattened out finite."""
        (_, low), (_, high) = self.best(flops / _STEP), self.best(flops * _STEP)
        return max((low - high) / (2.0 * math.log(_STEP)), 1e-9 * self.best(flops)[1])

    def tokens_reaching(self, params: float, loss: float, flops: float) -> float:
        tokens, excess = float(self.tokens(params, flops)), float(self.loss(params, flops)) - loss
        ratio = tokens / float(self.tokens(self.best(flops)[0], flops))
        decided = self._slope(flops) / _BETA * ratio**-_BETA  # by data, of the loss of `params` at this budget
        return tokens * (1.0 - excess / decided) ** (-1.0 / _BETA) if excess < decided else math.inf

    def flops_for(self, loss: float, flops: float) -> float:
        low, high = math.log(flops / _FURTHEST), math.log(flops)
        for _ in range(40):
            middle = 0.5 * (low + high)
            low, high = (middle, high) if self.best(math.exp(middle))[1] > loss else (low, middle)
        return math.exp(high)


def surface_law(prediction: Prediction, source: str = "") -> Law | None:
    """Approach 3's surface as a law to ask, with the FLOPs per token of the runs; None where it was not fitted, or
    the runs do not determine it."""
    fit = prediction.fits.parametric
    if fit is None or not fit.known.determined:
        return None
    return Law("approach 3", fit.surface, source, fit.boot, prediction.flops_per)


def recommended_law(prediction: Prediction) -> SizeLaw | None:
    """The law behind `Prediction.best`; None where only the loss at one D/N is known."""
    fits = prediction.fits
    if prediction.recommended == "parametric":
        return surface_law(prediction)
    assert fits.isoflop is not None  # what was not fitted is not recommended
    return ProfileLaw(fits.isoflop, prediction.flops_per)


def predicted_run(prediction: Prediction, params: float, flops: float) -> tuple[float, Intervals]:
    """The loss of a run of `params` on which `flops` are spent, and its intervals by level, {} without a bootstrap.

    Those of approach 2 are the intervals of the lowest loss at that budget, carried along the profile as a factor.
    Raises FitRefused (`undetermined`) where only the loss at one D/N is known.
    """
    law = recommended_law(prediction)
    if law is None:
        raise FitRefused("undetermined", "these runs tell the loss at their D/N only, not that of a size at a budget")
    loss = float(law.loss(params, flops))
    lowest = law.best(flops)[1]
    estimate = estimates_of(prediction.fits, flops, prediction.flops_per)[prediction.recommended]
    intervals = estimate.intervals.get("loss", {})
    return loss, {level: (low * loss / lowest, high * loss / lowest) for level, (low, high) in intervals.items()}


def other_sizes(prediction: Prediction) -> tuple[Answer, ...]:
    """What smaller models and the nearest published shapes cost at the target, under the recommended law; () if it says
    nothing of other sizes."""
    law, budget = recommended_law(prediction), prediction.budget
    if law is None:
        return ()
    smaller, near = answers.smaller(law, budget), answers.nearest_presets(law, budget)
    first = f"Follows {law.name}, the recommended law: {law.words}. D is what C = {budget:.4g} FLOPs buy at that N"
    if any(MOST_PERCENT < row["extra FLOPs"] < math.inf for row in smaller.rows):
        first += "; x5 stands for 5 times C"
    notes = [first, *smaller.notes]
    if isinstance(law, ProfileLaw) and law.smallest > SMALLER[-1]:
        notes.append(f"The profiles' own runs end at {law.smallest:.2g} N*: below that their shape is extrapolated")
    if near.rows:
        near = dataclasses.replace(near, notes=("Follows the same law", *near.notes))
    return dataclasses.replace(smaller, notes=tuple(notes)), near
