"""Did the study come out: are the profiles sound, and did the held-out trainings agree with the prediction?

Three questions with thresholds fixed in advance; each is answered `pass`, `fail` or `pending` (runs not finished).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from chinchilla_jax.scaling.predict.estimates import Estimate
from chinchilla_jax.scaling.predict.predict import Prediction
from chinchilla_jax.scaling.read.runs import HeldOut, Run, held_out

# Relative error allowed between predicted and trained loss. The half-width of the prediction's own 95% interval counts
# instead where it is wider.
LOSS_TOLERANCE = 0.015
SIZE_TOLERANCE = 0.003  # half or double the predicted size may be better by this much, relative


@dataclasses.dataclass(frozen=True)
class Verdict:
    """`question` asked, `status` in {pass, fail, pending}, and the figures behind it."""

    name: str
    question: str
    status: str
    detail: str


@dataclasses.dataclass(frozen=True)
class Stated:
    """A loss that was predicted, with the 95% interval of one run or None, and how a trained one is judged by it."""

    loss: float
    interval: tuple[float, float] | None

    @property
    def half_width(self) -> float:
        """Of the interval, relative; 0 without one."""
        return 0.5 * (self.interval[1] - self.interval[0]) / self.loss if self.interval else 0.0

    @property
    def allowed(self) -> float:
        """The relative error that passes."""
        return max(LOSS_TOLERANCE, self.half_width)

    def error(self, trained: float) -> float:
        """The predicted loss over the trained one, less one."""
        return self.loss / trained - 1.0

    def status(self, trained: float) -> str:
        """`pass` or `fail`."""
        return "pass" if abs(self.error(trained)) <= self.allowed else "fail"

    def holds(self, trained: float) -> bool:
        """Whether the interval does."""
        return self.interval is not None and self.interval[0] <= trained <= self.interval[1]


def judge(
    prediction: Prediction | None, runs: Sequence[Run], budget: float | None, refusal: str = "", unfinished: int = 0
) -> tuple[Verdict, ...]:
    """The verdicts on a study, in the order they become known.

    Args:
      runs: all roles; those held out at `budget` are compared with the prediction, several seeds by their mean loss.
      refusal: why there is no prediction, when there is none.
      unfinished: IsoFLOP runs still to come; while there are any, the profiles are pending.
    """
    held = {model.role: model for model in held_out(runs, budget)}
    return _profiles(prediction, refusal, unfinished), _loss(prediction, held), _size(held)


def _profiles(prediction: Prediction | None, refusal: str, unfinished: int) -> Verdict:
    fit = prediction.fits.isoflop if prediction else None
    if prediction is None or fit is None:
        why = prediction.fits.refused.get("isoflop", "") if prediction else refusal
        status, detail = "fail", why or "approach 2 was not fitted"
    elif fit.refusals:
        status, detail = "fail", "; ".join(r.message for r in fit.refusals)
    else:
        status, detail = "pass", f"{len(fit.profiles)} of {len(fit.profiles)} profiles"
    if unfinished:
        status, detail = "pending", f"{detail} ({unfinished} runs to come)"
    question = "Every IsoFLOP profile opens upward with its minimum inside the sizes tried"
    return Verdict("profiles", question, status, detail)


def _loss(prediction: Prediction | None, held: dict[str, HeldOut]) -> Verdict:
    stated = {name: _stated(estimate) for name, estimate in prediction.estimates.items()} if prediction else {}
    allowed, also = LOSS_TOLERANCE, ""
    if prediction is not None and (best := stated[prediction.recommended]).interval:
        allowed, also = best.allowed, f", or the half-width of its 95% interval, {best.half_width:.2%}"
    question = f"The predicted loss is within {allowed:.2%} of the trained loss ({LOSS_TOLERANCE:.1%}{also})"
    if "predicted" not in held:
        return Verdict("loss", question, "pending", "the model of the predicted size is not trained yet")
    if prediction is None:
        return Verdict("loss", question, "fail", "there is no prediction")
    trained, parts = held["predicted"].loss, []
    for name, one in stated.items():
        inside = f", {'inside' if one.holds(trained) else 'outside'} the 95% interval" if one.interval else ""
        parts.append(f"{name} {one.loss:.4f} ({one.error(trained):+.2%}{inside})")
    status = stated[prediction.recommended].status(trained)
    detail = f"trained {held['predicted']}; {'; '.join(parts)}; judged on {prediction.recommended}"
    return Verdict("loss", question, status, detail)


def _stated(estimate: Estimate) -> Stated:
    return Stated(estimate.loss, estimate.intervals.get("loss", {}).get(0.95))


def _size(held: dict[str, HeldOut]) -> Verdict:
    question = f"The predicted size is the best of the three trained, or within {SIZE_TOLERANCE:.1%} of it"
    missing = [role for role in ("predicted", "half", "double") if role not in held]
    if missing:
        return Verdict("size", question, "pending", f"not trained yet: {', '.join(missing)}")
    best = min(held.values(), key=lambda model: model.loss)
    excess = held["predicted"].loss / best.loss - 1.0
    losses = ", ".join(f"{role} {held[role]}" for role in ("half", "predicted", "double"))
    detail = f"{losses}; the best is {best.role}, predicted is {excess:.2%} above it"
    return Verdict("size", question, "pass" if excess <= SIZE_TOLERANCE else "fail", detail)
