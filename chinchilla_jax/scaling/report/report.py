"""What did a study find? `report.json` for machines, `report.html` (one file, no links out) for people.

Both are written from the same facts; the page adds nothing that the JSON does not hold.
"""

from __future__ import annotations

import pathlib
import shlex
from collections.abc import Mapping
from typing import Any

from chinchilla_jax.base.files import write_json, write_text
from chinchilla_jax.scaling.answers.recommended import other_sizes
from chinchilla_jax.scaling.predict.analysis import analyse
from chinchilla_jax.scaling.predict.predict import Prediction, predict
from chinchilla_jax.scaling.read.load import load_runs
from chinchilla_jax.scaling.read.runs import FitRefused, LoadedRuns
from chinchilla_jax.scaling.read.target import target_budget
from chinchilla_jax.scaling.report.facts import facts_of, verdicts_of
from chinchilla_jax.scaling.report.html import render
from chinchilla_jax.scaling.report.plots import fitted, frontier, profiles


def write_report(
    study: str | pathlib.Path | LoadedRuns,
    *,
    budget: float | None = None,
    preset: str = "corrected",
    output: str | pathlib.Path | None = None,
    replicates: int = 1000,
    seed: int = 0,
    command: str | None = None,
) -> pathlib.Path:
    """Fit, predict, draw and write; returns the path of `report.html`.

    Files appear in `output`: `report.html`, `report.json`, `plots/*.png`. A study that is not finished gives a report
    on what there is, with the open questions marked pending.

    Args:
      study: a study directory, run directories or a table of runs (see `load_runs`), or what was loaded from them.
      budget: FLOPs to predict for; by default that of the held-out runs, else `StudyConfig.holdout_factor` times the
        largest budget.
      preset: of the fits, `corrected` or `paper`.
      output: directory to write into; the study directory, or that of the table, by default.
      replicates: of the bootstrap.
      command: what makes this report again, to be printed in it; by default built from the other arguments.

    Raises:
      FitRefused: the path holds no runs at all. Fits that are refused are reported on the page.
    """
    loaded = load_runs(study)
    study = pathlib.Path(study)
    folder = pathlib.Path(output) if output else (study if study.is_dir() else study.parent)
    target = budget or target_budget(loaded)
    prediction, refusal = None, ""
    try:
        if target is None:
            raise FitRefused("no_runs", "no IsoFLOP run is finished yet: there is nothing to fit")
        prediction = predict(analyse(loaded.runs, preset, replicates=replicates, seed=seed), target)
    except FitRefused as error:
        refusal = str(error)
    options = {"budget": budget, "preset": preset, "output": output, "replicates": replicates, "seed": seed}
    images = _draw(prediction, loaded, folder / "plots") if prediction else {}
    facts = facts_of(
        loaded,
        prediction=prediction,
        target_budget=target,
        verdicts=verdicts_of(loaded, prediction, target, refusal),
        answers=other_sizes(prediction) if prediction else (),
        command=command or _command(study, options),
        plots={title: str(path.relative_to(folder)) for title, path in images.items()},
        **({} if prediction else {"refused": {"prediction": refusal}}),
    )
    write_json(folder / "report.json", facts)
    write_text(folder / "report.html", render(facts, {title: path.read_bytes() for title, path in images.items()}))
    return folder / "report.html"


def _draw(prediction: Prediction, loaded: LoadedRuns, folder: pathlib.Path) -> dict[str, pathlib.Path]:
    """The figures that these fits allow: paths by title."""
    fits, runs, unit = prediction.fits, loaded.runs, loaded.loss_unit
    figures = {
        "IsoFLOP profiles": ("profiles.png", profiles.plot_profiles),
        "Frontier": ("frontier.png", frontier.plot_frontier),
        "Loss frontier": ("loss_frontier.png", frontier.plot_loss_frontier),
        "Held-out budget": ("heldout.png", profiles.plot_heldout),
        "Envelope": ("envelope.png", fitted.plot_envelope),
        "Contours": ("contours.png", fitted.plot_contours),
        "Residuals": ("residuals.png", fitted.plot_residuals),
        "Coverage of N and D": ("coverage.png", fitted.plot_coverage),
    }
    possible = {"IsoFLOP profiles": any(run.budget for run in fits.runs), "Envelope": fits.envelope}
    possible |= dict.fromkeys(("Contours", "Residuals"), fits.parametric)
    return {
        title: plot(prediction, runs, folder / name, unit)
        for title, (name, plot) in figures.items()
        if possible.get(title, True)
    }


def _command(study: pathlib.Path, options: Mapping[str, Any]) -> str:
    """The command that makes this report again, from the folder that holds the study or table."""
    defaults = {"budget": None, "preset": "corrected", "output": None, "replicates": 1000, "seed": 0}
    source = "study" if (study / "manifest.jsonl").exists() else "runs"
    words = [f"--{source}={study.resolve().name}"]
    words += [f"--{name}={value}" for name, value in options.items() if value != defaults[name]]
    return f"python -m chinchilla_jax report {shlex.join(words)}"
