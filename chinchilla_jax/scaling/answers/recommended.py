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
from collections.abc import Callable

import numpy as np

from chinchilla_jax.base.words import MOST_PERCENT
from chinchilla_jax.ledger import train_flops_per_token
from chinchilla_jax.scaling.answers import answers
from chinchilla_jax.scaling.answers.answers import SMALLER, Law, Section
from chinchilla_jax.scaling.answers.decide import per_token
from chinchilla_jax.scaling.fits.approach2 import profile_shape
from chinchilla_jax.scaling.fits.surface import FlopsPerToken
from chinchilla_jax.scaling.predict.predict import Prediction

_SHAPES = 3  # profiles, the largest, whose shape is taken
_FURTHEST = 1e3  # the least part of the budget that is looked at for a loss
_STEP = 1.05  # either side in C of a numerical slope
_BETA = float(np.sqrt(profile_shape.PRODUCT))  # 0.28 to 0.37 in published laws


def isoflop_loss(prediction: Prediction, budget: float | np.ndarray) -> np.ndarray:
    """Approach 2's minimum loss at `budget` FLOPs, a number or an array, in the unit of the runs' loss."""
    return prediction.isoflop.loss_law.at(budget)


def isoflop_loss_band(prediction: Prediction, budgets: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """The 95% band of approach 2's minimum loss at `budgets` [K]; None where no intervals were asked for."""
    fit = prediction.isoflop
    if fit.boot_params is None:
        return None
    return tuple(np.array([fit.loss_law.interval(budget, 0.95, one_run=False) for budget in budgets]).T)


@dataclasses.dataclass(frozen=True)
class SizeLaw:
    """Loss of any size at any budget under one approach, a key of `Prediction.estimates`.

    `best` (C) -> (N*, L*), `loss` (N, C) -> loss, both in the unit of the runs' loss; `flops_per` training FLOPs per
    token; `words` names the law; `reach` (low, high) is how far from N*, as a factor, the runs behind it went.
    """

    approach: str
    words: str
    best: Callable[[float], tuple[float, float]]
    loss: Callable[[np.ndarray | float, float], np.ndarray]
    flops_per: FlopsPerToken
    reach: tuple[float, float] | None = None

    def slope(self, budget: float) -> float:
        """-dL*/d ln C, in the unit of the runs' loss."""
        return slope_of(lambda c: self.best(c)[1], budget)

    def tokens(self, params: float | np.ndarray, budget: float) -> np.ndarray:
        """D that spends `budget` on a model of `params`."""
        return budget / per_token(params, self.flops_per)


def slope_of(law: Callable[[float], float], budget: float) -> float:
    """-d law/d ln C at `budget`, by a central difference; not below what keeps a law that has flattened out finite."""
    return max((law(budget / _STEP) - law(budget * _STEP)) / (2.0 * float(np.log(_STEP))), 1e-9 * law(budget))


def recommended_law(prediction: Prediction) -> SizeLaw:
    """The law behind `Prediction.best`."""
    if prediction.recommended == "parametric":
        surface, c = prediction.parametric.surface, prediction.flops_per
        return SizeLaw(
            "parametric",
            "approach 3, the recommended law: its surface E + A/N^alpha + B/D^beta",
            lambda budget: tuple(float(v) for v in surface.optimum(budget, c)[::2]),
            lambda params, budget: surface.loss(params, budget / per_token(params, c)),
            c,
        )
    return _isoflop_law(prediction)


def recommended_loss(prediction: Prediction, budget: float) -> float:
    """The recommended law's minimum loss at `budget` FLOPs."""
    return recommended_law(prediction).best(budget)[1]


def _isoflop_law(prediction: Prediction) -> SizeLaw:
    fit = prediction.isoflop
    largest = [profile.params for profile in fit.profiles[-_SHAPES:]]

    def slope(budget: float) -> float:
        return slope_of(lambda c: float(isoflop_loss(prediction, c)), budget)

    slopes = [slope(profile.budget) for profile in fit.profiles[-_SHAPES:]]

    def shape(ratio: np.ndarray | float) -> np.ndarray:
        above = [curve.at(ratio * curve.best) - curve.lowest for curve in largest]
        return np.nanmedian([one / slope for one, slope in zip(above, slopes, strict=True)], axis=0)

    def best(budget: float) -> tuple[float, float]:
        return float(fit.params_law.at(budget)), float(isoflop_loss(prediction, budget))

    def loss(params: np.ndarray | float, budget: float) -> np.ndarray:
        size, lowest = best(budget)
        return lowest + slope(budget) * shape(np.asarray(params) / size)

    reach = min(c.low / c.best for c in largest), max(c.high / c.best for c in largest)
    words = (
        f"approach 2, the recommended law: L*(C) and N*(C), and away from N* the shape of its {len(largest)} largest "
        "profiles, flatter as L*(C) flattens"
    )
    return SizeLaw("isoflop", words, best, loss, prediction.flops_per, reach)


def other_sizes(prediction: Prediction) -> tuple[Section, Section]:
    """What smaller models and the nearest published shapes cost at the target, under the recommended law."""
    law, budget = recommended_law(prediction), prediction.budget
    if law.approach == "parametric":
        own = Law("approach 3", prediction.parametric.surface, "", prediction.parametric.boot, prediction.flops_per)
        found = answers.smaller(own, budget), answers.nearest_presets(own, budget)
    else:
        found = _smaller(law, budget), _nearest(law, budget)
    followed = f"follows {law.words}. D is what C = {budget:.4g} FLOPs buy at that N"
    smaller, near = found
    if any(MOST_PERCENT < row["extra FLOPs"] < np.inf for row in smaller.rows):
        followed += "; x5 stands for 5 times C"
    return (
        dataclasses.replace(smaller, notes=(followed, *smaller.notes)),
        dataclasses.replace(near, notes=("follows the same law", *near.notes)) if near.rows else near,
    )


def _smaller(law: SizeLaw, budget: float) -> Section:
    best, lowest = law.best(budget)
    rows = []
    for factor in (1.0, *SMALLER):
        size = factor * best
        loss, tokens = float(law.loss(size, budget)), float(law.tokens(size, budget))
        more = 1.0 if factor == 1.0 else _more_tokens(law, size, loss - lowest, budget)
        rows.append(
            {
                "size": f"{factor:g} N*",
                "N": size,
                "D": tokens,
                "D/N": tokens / size,
                "loss": loss,
                "above optimum": loss / lowest - 1,
                "extra FLOPs": more - 1,
                "D for the loss of N*": more * tokens,
            }
        )
    notes = [
        "left: all of C spent on that size. Right: what that size needs to reach the loss of the optimum, if the part "
        f"of the loss that data decide falls as D^-{_BETA:.2f}, as in published laws, and at N* as fast as L*(C)"
    ]
    if law.reach[0] > SMALLER[-1]:
        notes.append(f"the profiles' own runs end at {law.reach[0]:.2g} N*: below that their shape is extrapolated")
    return Section("smaller", answers.SMALLER_TITLE, tuple(rows), tuple(notes))


def _nearest(law: SizeLaw, budget: float) -> Section:
    best, lowest = law.best(budget)
    rows = []
    for preset in answers.presets_near(best):
        size = float(preset.params_exact)
        tokens, loss = float(law.tokens(size, budget)), float(law.loss(size, budget))
        counted = train_flops_per_token(preset.model, answers.CONTEXT, "executed") * tokens
        rows.append(
            {
                "preset": preset.name,
                "N": size,
                "D": tokens,
                "D/N": tokens / size,
                "loss": loss,
                "above optimum": loss / lowest - 1,
                "FLOPs wasted": _wasted(law, loss, budget),
                "C, executed": counted,
            }
        )
    return answers.presets_section(rows, best)


def _more_tokens(law: SizeLaw, params: float, excess: float, budget: float) -> float:
    """How many times the tokens that `budget` buys take `excess` off the loss of `params`; infinite where none do."""
    ratio = float(law.tokens(params, budget) / law.tokens(law.best(budget)[0], budget))
    decided = law.slope(budget) / _BETA * ratio**-_BETA  # by data, of the loss of `params` at this budget
    return float((1.0 - excess / decided) ** (-1.0 / _BETA)) if excess < decided else np.inf


def _wasted(law: SizeLaw, loss: float, budget: float) -> float:
    """The share of `budget` that an optimal model would not need for this loss."""
    low, high = np.log(budget / _FURTHEST), np.log(budget)
    for _ in range(40):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if law.best(float(np.exp(middle)))[1] > loss else (low, middle)
    return max(0.0, 1.0 - float(np.exp(high)) / budget)
