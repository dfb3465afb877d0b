"""What does a plan promise before anything is trained? How far off its prediction will be, if the noise is known; and
whether approach 3 will know its constants."""

from __future__ import annotations

import math
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

from chinchilla_jax.base import files
from chinchilla_jax.base.words import Echo
from chinchilla_jax.config import RunConfig
from chinchilla_jax.scaling.fits.surface import Surface
from chinchilla_jax.scaling.laws import published
from chinchilla_jax.scaling.read.runs import FitRefused, Run, noise_of_repeats
from chinchilla_jax.study.folder import MANIFEST, NOISE_RESULT, Manifest, finished, planned_runs, read_json_or
from chinchilla_jax.study.guess import published_surfaces
from chinchilla_jax.study.plan import holdout_budget

LEAST_FREEDOM = 3  # degrees of freedom below which a spread says nothing: a pair may agree by chance
_LAW = "besiroglu2024"
# E over the lowest loss at the largest budget, where no run says: most published tables have 0.4 to 0.8.
_IRREDUCIBLE = 0.6


def foresee(manifest: Manifest, study: pathlib.Path | None, echo: Echo) -> None:
    """Prints how sure the prediction of a study will be, or how to measure what that depends on, and what the design is
    short of if it leaves the constants of approach 3 open. `study` is its folder, if it has one. Raises StudyError if a
    file there, or of the study that the guess names, is damaged.
    """
    config = manifest.template()
    known = known_noise(study, config)
    planned = [run for run in manifest.runs if run.role == "isoflop"]
    runs = [Run(run.name, run.params, run.tokens, run.cost, 1.0, run.budget) for run in planned]
    law, source_of_law = _law(dict(manifest.header["guess"]["params"]), config, runs)
    if short := _short_of(law, runs, known):
        echo(f"approach 3 will not determine its constants: {short}")
    if known is None:
        echo(
            "how sure the prediction will be depends on the noise from run to run, which is not known yet; to measure "
            "it: python -m chinchilla_jax noise with the same --config and --study"
        )
        return
    # The fits are slow to import, and most plans do not get here.
    from chinchilla_jax.scaling.predict.foresight import expected

    noise, source = known
    half, factor = expected(law, runs, holdout_budget(config), noise)
    promise = f"the predicted loss will be within +-{half:.1%} (95%), N* within a factor {factor:.2f}"
    if not math.isfinite(half):
        promise = "more than one such study in twenty cannot be fitted: add sizes (study.sizes) or seeds (study.seeds)"
    echo(f"at {noise:.2%} noise from run to run ({source}) {promise}; simulated with {source_of_law}")


def _short_of(law: Surface, runs: Sequence[Run], noise: tuple[float, str] | None) -> str:
    """What keeps the planned runs from determining approach 3 if `law` is true; "" if they do. Noise that is not known
    is taken to be usual."""
    from chinchilla_jax.scaling.fits.approach2.near_minimum import USUAL_NOISE
    from chinchilla_jax.scaling.fits.approach3.known import known
    from chinchilla_jax.scaling.fits.minimise import HUBER

    params, tokens = np.array([(run.params, run.tokens) for run in runs]).T
    return known(law, params, tokens, HUBER.noise(noise[0] if noise else USUAL_NOISE)).why


def known_noise(study: pathlib.Path | None, config: RunConfig) -> tuple[float, str] | None:
    """The relative standard deviation of one run and where it is from; None if nothing says.

    Asked in this order: this study's `noise.json` and its repeated runs, then those of the study in `study.guess`.
    Raises StudyError if such a file is damaged.
    """
    for folder in filter(None, (study, files.path(config.study_section.guess.strip()))):
        measured = read_json_or(folder / NOISE_RESULT, {}) if files.exists(folder / NOISE_RESULT) else {}
        if isinstance(measured.get("noise"), float) and measured.get("freedom", 0) >= LEAST_FREEDOM:
            return measured["noise"], f"{folder / NOISE_RESULT}, {measured['freedom']} degrees of freedom"
        if files.exists(folder / MANIFEST):
            noise, freedom = repeated(folder)
            if freedom >= LEAST_FREEDOM:
                return noise, f"runs of {folder} that differ in their seed, {freedom} degrees of freedom"
    return None


def repeated(study: pathlib.Path) -> tuple[float, int]:
    """(Noise, degrees of freedom) of a study's finished runs that differ only in their seed; (NaN, 0) without any."""
    groups: dict[tuple, list[float]] = {}
    for run, result in finished(study, planned_runs(study)):
        if not result.get("diverged"):
            groups.setdefault((run.role, run.budget, run.params, run.tokens), []).append(result["loss"])
    return noise_of_repeats(groups.values())


def _law(guessed: Mapping[float, float], config: RunConfig, runs: Sequence[Run]) -> tuple[Surface, str]:
    """The law to simulate with, and its name: the guess's if it is a surface, else one made to fit N* by budget."""
    from chinchilla_jax.scaling.predict import foresight

    text = config.study_section.guess.strip()
    if text in published_surfaces():
        return published.surface(text), text
    optima = sorted(guessed.items())
    (low, n_low), (high, n_high) = optima[0], optima[-1]
    middle = math.sqrt(low * high)
    exponent = 0.5 if low == high else math.log(n_high / n_low) / math.log(high / low)
    exponent = min(max(exponent, 0.2), 0.8)  # outside, one of the two terms of the law is all there is
    fitted = _fitted(text, config, middle, high)
    if fitted:
        (loss, irreducible, fall), source = fitted, f"the fit of {text}"
    else:
        known = published.surface(_LAW)
        fall = float(known.alpha + known.beta) * exponent * (1.0 - exponent)
        # In units of the reducible part at the middle budget.
        irreducible = _IRREDUCIBLE / (1.0 - _IRREDUCIBLE) * (high / middle) ** -fall
        loss, source = 1.0 + irreducible, f"{_LAW} scaled to this study"
    optimum = math.sqrt(n_low * n_high)
    law = foresight.scaled(runs, optimum, exponent, middle, loss=loss, irreducible=irreducible, fall=fall)
    return law, source


def _fitted(text: str, config: RunConfig, budget: float, largest: float) -> tuple[float, float, float] | None:
    """Lowest loss at `budget`, E and g of the runs that the guess names; None where approach 2 does not fit them."""
    from chinchilla_jax.scaling.fits.approach2.isoflop import fit_isoflop
    from chinchilla_jax.scaling.predict.foresight import offset_through
    from chinchilla_jax.scaling.read.load import load_runs

    if not files.exists(text):
        return None
    try:
        loaded = load_runs(text)
        if loaded.convention != config.study_section.convention:
            return None
        fit = fit_isoflop(loaded.role("isoflop"), resampling=None)
    except FitRefused:
        return None
    step = config.study_section.holdout_factor * largest / budget
    losses = [float(fit.loss_law.at(budget * step**i)) for i in (-1, 0, 1)]
    return losses[1], *offset_through(losses, step)
