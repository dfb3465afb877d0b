"""Which predictions does a study put on record, and what came of them?"""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

from chinchilla_jax.base import files
from chinchilla_jax.base.words import Echo
from chinchilla_jax.study import folder
from chinchilla_jax.study.folder import PlannedRun

if TYPE_CHECKING:  # fits are slow to import
    from chinchilla_jax.scaling.predict.predict import Prediction
    from chinchilla_jax.scaling.read.runs import LoadedRuns

FOLDER = "predictions"


def not_on_record(study: pathlib.Path, runs: Sequence[PlannedRun]) -> list[PlannedRun]:
    """Those of `runs` that have no record, and have not begun."""
    return [
        run
        for run in runs
        if not files.exists(study / FOLDER / f"{run.name}.json")
        and not files.exists(folder.run_folder(study, run.name) / "config.json")
    ]


def put_on_record(study: pathlib.Path, prediction: Prediction, loaded: LoadedRuns, runs: Sequence[PlannedRun]) -> None:
    """Writes the predicted loss of each held-out run to STUDY/predictions, before it begins."""
    from chinchilla_jax.scaling.answers import on_record
    from chinchilla_jax.scaling.read.directories import validation_of

    for run in not_on_record(study, runs):
        counts = float(run.params), float(run.tokens), run.cost
        target = on_record.Target(*counts, run.name, run.config_hash, run.flops, validation_of(run.config))
        on_record.register(study / FOLDER / f"{run.name}.json", prediction, loaded, target)


def judge_by_record(study: pathlib.Path, echo: Echo) -> None:
    """Judges every finished run that a prediction of the study is on record for, and says what came of it; a run that
    cannot be judged is no reason to stop."""
    from chinchilla_jax.scaling.answers import on_record
    from chinchilla_jax.scaling.read.runs import FitRefused

    for path in files.glob(study / FOLDER, "*.json"):
        target = folder.run_folder(study, path.stem)
        if not path.name.endswith(".verdict.json") and files.exists(target / folder.RESULT):
            try:
                echo(on_record.describe(on_record.verify(path, target)))
            except FitRefused as refused:
                echo(f"not judged: {refused}")
