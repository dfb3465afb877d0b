"""Did the study come out: are the profiles sound, and did the held-out trainings agree with the prediction?

Three questions with thresholds fixed in advance; each is answered `pass`, `fail` or `pending` (runs not finished).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

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
    allowed, also = LOSS_TOLERANCE, ""
    if prediction is not None and "loss" in prediction.best.intervals:
        low, high = prediction.best.intervals["loss"][0.95]
        half = 0.5 * (high - low) / prediction.best.loss
        allowed, also = max(allowed, half), f", or the half-width of its 95% interval, {half:.2%}"
    question = f"The predicted loss is within {allowed:.2%} of the trained loss ({LOSS_TOLERANCE:.1%}{also})"
    if "predicted" not in held:
        return Verdict("loss", question, "pending", "the model of the predicted size is not trained yet")
    if prediction is None:
        return Verdict("loss", question, "fail", "there is no prediction")
    trained, parts = held["predicted"].loss, []
    for name, estimate in prediction.estimates.items():
        inside = ""
        if "loss" in estimate.intervals:
            low, high = estimate.intervals["loss"][0.95]
            inside = f", {'inside' if low <= trained <= high else 'outside'} the 95% interval"
        parts.append(f"{name} {estimate.loss:.4f} ({estimate.loss / trained - 1:+.2%}{inside})")
    status = "pass" if abs(prediction.best.loss / trained - 1.0) <= allowed else "fail"
    detail = f"trained {held['predicted']}; {'; '.join(parts)}; judged on {prediction.recommended}"
    return Verdict("loss", question, status, detail)


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
