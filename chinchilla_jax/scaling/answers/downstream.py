"""Which downstream error goes with a loss, and how did runs do on tasks?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from chinchilla_jax.scaling.answers.answers import Answer
from chinchilla_jax.scaling.answers.losses import LossFit
from chinchilla_jax.scaling.fits.minimise import SQUARED_RAW
from chinchilla_jax.scaling.read.runs import FitRefused, LoadedRuns
from chinchilla_jax.scaling.read.tasks import records_of, value_of

_LAW = "Err = epsilon - k exp(-gamma L), Gadre et al. 2024 eq. 5"


def downstream(
    loaded: LoadedRuns, errors: Mapping[str, Mapping[str, float]], predicted: LossFit, seed: int = 0
) -> Answer:
    """The errors that go with the predicted loss: Err = epsilon - k exp(-gamma L) (Gadre et al. 2024, arXiv 2403.08540,
    eq. 5), fitted to all runs that have one.

    Args:
      errors: by name and run (`read.tasks.errors_of`).
    """
    rows, refused = [], []
    for name, of_runs in errors.items():
        row: dict[str, Any] = {"error": name, "runs": str(len(of_runs))}
        try:
            rows.append(row | _at(loaded, of_runs, predicted, seed))
        except FitRefused as error:
            rows.append(row | {"at the target": "refused"})
            refused.append(f"{name}: {error}")
    notes = (
        f"{_LAW}; the interval is that of the loss carried through, the scatter comes on top. A column named after "
        "accuracy is taken as 1 - error",
        *refused,
    )
    return Answer("downstream", f"Downstream error at a loss of {predicted.loss:.4f}", tuple(rows), notes)


def _at(loaded: LoadedRuns, of_runs: Mapping[str, float], predicted: LossFit, seed: int) -> dict[str, Any]:
    from chinchilla_jax.scaling.laws.fit import fit_form  # forms are fitted by JAX, which is slow to import
    from chinchilla_jax.scaling.laws.form import form

    losses, errors = np.array([(run.loss, of_runs[run.name]) for run in loaded.runs if run.name in of_runs]).T
    if len(np.unique(errors)) < 2:
        raise FitRefused("points", f"all runs have the error {errors[0]:g}: nothing of it goes with the loss")
    fit = fit_form(form("downstream_error"), {"loss": losses}, errors, SQUARED_RAW, seed=seed)
    low, high = (float(fit.predict(loss=np.array(end))) for end in predicted.loss_95)
    return {
        "at the target": float(fit.predict(loss=np.array(predicted.loss))),
        "95% by the loss": (low, high),
        "scatter of runs": float(np.std(fit.predict(loss=losses) - errors)),
    }


def scores(loaded: LoadedRuns) -> tuple[Answer, ...]:
    """How the runs did on each task that `evaluate` asked them; none where it asked none."""
    rows: list[dict[str, Any]] = []
    loss = {run.name: run.loss for run in loaded.runs}
    for task, records in records_of(loaded).items():
        values = {name: value_of(record) for name, record in records.items()}
        best = min(values, key=loss.__getitem__)
        first = records[best]
        row: dict[str, Any] = {"task": task, "metric": first.get("main"), "runs": str(len(values))}
        row |= {"questions": str(first.get("questions")), "shots": str(first.get("shots", 0))}
        row |= {"guessing": first.get("chance"), "run of the lowest loss": values[best]}
        error = first["metrics"].get(f"{first.get('main')}_stderr")
        row |= {"standard error": error, "all runs": (min(values.values()), max(values.values()))}
        rows.append(row)
    notes = ("Every run's scores are in its result.json; `evaluate` asks for them",)
    return (Answer("tasks", "Scores on tasks", tuple(rows), notes),) if rows else ()
