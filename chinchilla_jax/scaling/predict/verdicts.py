"""Did the study come out: are the profiles sound, and did the held-out trainings agree with the prediction?

Three questions with thresholds fixed in advance; each is answered `pass`, `fail` or `pending` (runs not finished).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from chinchilla_jax.scaling.predict.predict import Prediction
from chinchilla_jax.scaling.read.heldout import HeldOut, held_out
from chinchilla_jax.scaling.read.runs import Run

# Relative error allowed between predicted and trained loss, or the half-width of the prediction's own 95% interval
# where that is wider: a method that says how unsure it is cannot be held to less.
LOSS_TOLERANCE = 0.015
SIZE_TOLERANCE = 0.003  # the predicted size may lose this much, relative, to half or double the size


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
      runs: all roles; those held out at `budget` are compared with the prediction, a model that was trained with
        several seeds by its mean loss.
      refusal: why there is no prediction, when there is none.
      unfinished: IsoFLOP runs still to come; while there are any, the profiles are pending.
    """
    held = {model.role: model for model in held_out(runs, budget)}
    return _profiles(prediction, refusal, unfinished), _loss(prediction, held), _size(held)


def _profiles(prediction: Prediction | None, refusal: str, unfinished: int) -> Verdict:
    question = "Every IsoFLOP profile opens upward with its minimum inside the sizes tried"
    failed, waiting = ("pending", f" ({unfinished} runs to come)") if unfinished else ("fail", "")
    if prediction is None or prediction.isoflop is None:
        why = prediction.refused.get("isoflop", "") if prediction else refusal
        detail = why or "approach 2 was not fitted"
        return Verdict("profiles", question, failed, detail + waiting)
    good, refused = prediction.isoflop.profiles, prediction.isoflop.refusals
    if refused:
        return Verdict("profiles", question, failed, "; ".join(r.message for r in refused) + waiting)
    return Verdict(
        "profiles", question, "pending" if unfinished else "pass", f"{len(good)} of {len(good)} profiles{waiting}"
    )


def _loss(prediction: Prediction | None, held: dict[str, HeldOut]) -> Verdict:
    half, said = _half_width(prediction)
    allowed = max(LOSS_TOLERANCE, half)
    question = f"The predicted loss is within {allowed:.2%} of the trained loss ({LOSS_TOLERANCE:.1%}{said})"
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
    error = abs(prediction.best.loss / trained - 1.0)
    return Verdict(
        "loss",
        question,
        "pass" if error <= allowed else "fail",
        f"trained {held['predicted']}; {'; '.join(parts)}; judged on {prediction.recommended}",
    )


def _half_width(prediction: Prediction | None) -> tuple[float, str]:
    """Of the recommended loss's 95% interval, relative, and in words; 0 where there is none."""
    if prediction is None or "loss" not in prediction.best.intervals:
        return 0.0, ""
    low, high = prediction.best.intervals["loss"][0.95]
    half = 0.5 * (high - low) / prediction.best.loss
    return half, f", or the half-width of its 95% interval, {half:.2%}"


def _size(held: dict[str, HeldOut]) -> Verdict:
    question = f"The predicted size is the best of the three trained, or within {SIZE_TOLERANCE:.1%} of it"
    missing = [role for role in ("predicted", "half", "double") if role not in held]
    if missing:
        return Verdict("size", question, "pending", f"not trained yet: {', '.join(missing)}")
    best = min(held.values(), key=lambda model: model.loss)
    excess = held["predicted"].loss / best.loss - 1.0
    losses = ", ".join(f"{role} {held[role]}" for role in ("half", "predicted", "double"))
    return Verdict(
        "size",
        question,
        "pass" if excess <= SIZE_TOLERANCE else "fail",
        f"{losses}; the best is {best.role}, predicted is {excess:.2%} above it",
    )
