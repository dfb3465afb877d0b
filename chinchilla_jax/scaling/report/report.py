"""What did a study find? `report.json` for machines, `report.html` (one file, no links out) for people.

Both are written from the same facts; the page adds nothing that the JSON does not hold.
"""

from __future__ import annotations

import base64
import contextlib
import pathlib
import shlex
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jinja2

from chinchilla_jax.base import files
from chinchilla_jax.base.files import exists, is_folder, read_bytes, write_json, write_text
from chinchilla_jax.scaling.answers import downstream, losses, on_record
from chinchilla_jax.scaling.answers.answers import Answer
from chinchilla_jax.scaling.answers.recommended import other_sizes
from chinchilla_jax.scaling.predict.analysis import Analysis, analyse
from chinchilla_jax.scaling.predict.predict import Prediction, predict
from chinchilla_jax.scaling.predict.verdicts import judge
from chinchilla_jax.scaling.read.load import load_runs
from chinchilla_jax.scaling.read.losses import domains_of
from chinchilla_jax.scaling.read.runs import FitRefused, LoadedRuns, target_budget
from chinchilla_jax.scaling.read.tasks import of_tasks
from chinchilla_jax.scaling.report.facts import facts_of
from chinchilla_jax.scaling.report.plots import fitted, profiles
from chinchilla_jax.scaling.report.plots.losses import plot_losses
from chinchilla_jax.scaling.report.sections import Facts, Section, of_page


def write_report(
    study: str | pathlib.Path | LoadedRuns,
    *,
    budget: float | None = None,
    preset: str = "corrected",
    output: str | pathlib.Path | None = None,
    replicates: int = 1000,
    seed: int = 0,
    fits: Analysis | None = None,
    command: str | None = None,
) -> pathlib.Path:
    """Fits, predicts, draws and writes `report.html`, `report.json` and `plots/*.png`; returns the path of the first.

    A study that is not finished gives a report on what there is, with the open questions marked pending.

    Args:
      study: whatever `load_runs` takes.
      budget: FLOPs to predict for; by default as `target_budget` says.
      preset, replicates, seed: of the fits, as for `analyse`, unless `fits` of these runs are there already.
      output: directory to write into; the study directory, or that of the table, by default.
      command: what makes this report again, to be printed in it; by default built from the other arguments.

    Raises:
      FitRefused: the path holds no runs at all. Fits that are refused are reported on the page.
    """
    loaded = load_runs(study)
    study = files.path(study)
    folder = files.path(output) if output else (study if is_folder(study) else study.parent)
    target = budget or target_budget(loaded)
    prediction, refusal = None, ""
    try:
        if target is None:
            raise FitRefused("no_runs", "no IsoFLOP run is finished yet: there is nothing to fit")
        fits = fits or analyse(loaded.runs, preset, replicates=replicates, seed=seed)
        prediction = predict(fits, target)
    except FitRefused as error:
        refusal = str(error)
    waiting = {row.where for row in loaded.bad if row.reason.startswith("not finished")}
    roles = [
        row.get("role", "isoflop") for name, row in loaded.planned.items() if name in waiting and not row.get("further")
    ]
    judged = _before_further(loaded, prediction, replicates)
    images = _draw(prediction, loaded, folder / "plots") if prediction else {}
    options = {"budget": budget, "preset": preset, "output": output, "replicates": replicates, "seed": seed}
    facts = facts_of(
        loaded,
        prediction=prediction,
        target_budget=target,
        verdicts=judge(judged, loaded.runs, target, refusal, unfinished=roles.count("isoflop")),
        answers=(*other_sizes(prediction), *_domains(loaded, target, folder, images)) if prediction else (),
        tasks=_tasks(loaded, target if prediction else None),
        on_record=_on_record(folder),
        command=command or _command(study, options),
        plots={title: str(path.relative_to(folder)) for title, path in images.items()},
    )
    if prediction is None:
        facts["refused"] = {"prediction": refusal}
    write_json(folder / "report.json", facts)
    write_text(folder / "report.html", render(facts, {title: read_bytes(path) for title, path in images.items()}))
    return folder / "report.html"


def _before_further(loaded: LoadedRuns, prediction: Prediction | None, replicates: int) -> Prediction | None:
    """The prediction that the held-out runs are judged by: that of the study's first runs. Runs that were added later
    may have been chosen with the held-out ones in sight."""
    first = [run for run in loaded.runs if not loaded.planned.get(run.name, {}).get("further")]
    if prediction is None or len(first) == len(loaded.runs):
        return prediction
    fits = prediction.fits
    try:
        return predict(analyse(first, fits.preset, replicates=replicates, seed=fits.seed), prediction.budget)
    except FitRefused:
        return None


def _domains(
    loaded: LoadedRuns, budget: float | None, folder: pathlib.Path, images: dict[str, pathlib.Path]
) -> tuple[Answer, ...]:
    """Each domain of the study's mixture, where there are several; its plot joins the images."""
    every = domains_of(loaded)
    if budget is None or len(every) < 2:
        return ()
    fits = losses.fit_losses(every, budget)
    if path := plot_losses(fits, budget, folder / "plots" / "losses.png"):
        images["Each loss"] = path
    return (losses.answer(fits, budget),)


def _tasks(loaded: LoadedRuns, budget: float | None) -> tuple[Answer, ...]:
    """How the runs did on tasks, and the errors that go with the loss at the budget, where they say."""
    found = downstream.scores(loaded)
    with contextlib.suppress(FitRefused):
        if found and budget is not None:
            predicted = losses.fit_losses({"loss": loaded}, budget)[0]
            if not predicted.refused:
                found += (downstream.downstream(loaded, of_tasks(loaded), predicted),)
    return found


def _on_record(folder: pathlib.Path) -> dict[str, Any] | None:
    """The predictions on record beside the report, and how well they did; None where there are none."""
    rows, unreadable = on_record.outcomes(folder / on_record.FOLDER)
    if not rows and not unreadable:
        return None
    return {"predictions": rows, "unreadable": unreadable, "calibration": on_record.calibration(rows)}


def _draw(prediction: Prediction, loaded: LoadedRuns, folder: pathlib.Path) -> dict[str, pathlib.Path]:
    figures: dict[str, Callable[..., pathlib.Path | None]] = {
        "IsoFLOP profiles": profiles.plot_profiles,
        "Frontier": profiles.plot_frontier,
        "Loss frontier": profiles.plot_loss_frontier,
        "Held-out budget": profiles.plot_heldout,
        "Envelope": fitted.plot_envelope,
        "Contours": fitted.plot_contours,
        "Residuals": fitted.plot_residuals,
        "Coverage of N and D": fitted.plot_coverage,
    }
    drawn = {}
    for title, plot in figures.items():
        path = folder / f"{plot.__name__.removeprefix('plot_')}.png"
        if plot(prediction, loaded.runs, path, loaded.loss_unit):
            drawn[title] = path
    return drawn


def _command(study: pathlib.Path, options: Mapping[str, Any]) -> str:
    """The command that makes this report again, from the folder that holds the study or table."""
    words = [f"--{'study' if exists(study / 'manifest.jsonl') else 'runs'}={files.resolved(study).name}"]
    defaults = write_report.__kwdefaults__ or {}
    words += [f"--{name}={value}" for name, value in options.items() if value != defaults.get(name)]
    return f"python -m chinchilla_jax report {shlex.join(words)}"


def render(facts: Facts, images: Mapping[str, bytes]) -> str:
    """The page of `facts_of`; the `images`, PNGs by title, are embedded, and nothing is fetched."""
    return render_page(f"Scaling study: {facts['source']}", *of_page(facts), images)


def render_page(title: str, first: Sequence[Section], then: Sequence[Section], images: Mapping[str, bytes]) -> str:
    """A page of the sections `first`, the figures, and the sections `then`."""
    loader = jinja2.PackageLoader("chinchilla_jax.scaling.report")
    options = {"autoescape": True, "trim_blocks": True, "lstrip_blocks": True, "undefined": jinja2.StrictUndefined}
    page = jinja2.Environment(loader=loader, **options).get_template("page.html.j2")
    embedded = {name: base64.b64encode(data).decode() for name, data in images.items()}
    return page.render(title=title, first=first, then=then, images=embedded)
