"""Everything that `fit`, `predict` and `report` find, as one structure of plain JSON values.

`fit --output`, `predict --output` and `report.json` hold it; text and page are made from it (`sections`). N, D and C
are numbers of parameters, tokens and FLOPs; losses are in `loss_unit`; what is called relative is a share. Intervals
are `{"80%": [low, high], "95%": [low, high]}`, empty without a bootstrap; infinite numbers are the text `inf`. All keys
are there always, null or empty where nothing was asked or found.

What was read:
  source         name of the study, folder or table; `convention`: how C was counted; `loss_unit`, in words
  reading        sentences: units, counts, what was changed on reading
  runs           a list: the fields of `Run` but its curve, `tokens_per_param`, `seconds`, `bits_per_byte`
  bad_rows       a list of `where` and `reason`: what was left out
  flops_range, tokens_per_param_range    [lowest, highest] of the fitted runs

What was fitted:
  preset         `corrected` or `paper`; `differences`, by approach, sentences: what it does that the other does not
  refused        by approach: why there is no fit; `prediction`: why there is none at all
  warnings       sentences
  envelope       approach 1: `laws`, as below; number of `curves`, and of FLOP `values` read; the share of winners
                 `on_schedule`; winners at `edges`; values `dropped`; relative `scatter` of a run; `kept_draws`
  isoflop        approach 2: `laws` of `params`, `tokens` and `loss`, each with its `form`, `exponent` and the
                 `intervals` of it; the first two with a `coefficient`, the last with `irreducible` E and
                 `irreducible_95`. `noise` of a run and `scatter`, relative. `profiles`, a list: `budget` in FLOPs,
                 `runs`, those `near` the minimum, its `params`, `tokens` and `loss`, `curvature`, `scatter`,
                 `kept_draws`. `refusals`: budgets left out. `bias`: sentences
  parametric     approach 3: `values` of E, A, B, alpha, beta, a, b, their `intervals`, and `profile_likelihood`, 95%;
                 `flat`: pairs of constants and their correlation; `known`: as `Known`, how far the runs determine them.
                 Where its `why` is no empty text they do not: values are null then, and there are no intervals; the
                 other fields of `ParametricFit`

What was predicted:
  target_budget  FLOPs; `extrapolation`: over the largest budget fitted
  prediction     `recommended` approach and `why`; `tokens_at_budget`; `estimates` by approach, as `Estimate`, with
                 `tokens_at_budget`, what spends the budget at that N; `rollouts`, as `Rollout`; `profile_likelihood`
                 of N, D and loss, 95%
  verdicts       a list of `name`, `question`, `status` (pass, fail, pending) and `detail`
  noise          relative standard deviations, as `NoiseParts`, and in `words` what the intervals of losses are of
  on_record      `predictions` that were put on record before their run began, as `Outcome`, the `calibration` of those
                 judged, and files that are `unreadable`

What was asked:
  question       of `predict`, as `Question`, or with --experts as `served.Request`; `answers`, a list of `Answer`:
                 `key`, `title`, `rows`, `notes`
  tasks          of a report, `Answer`s: how the runs did on the tasks that `evaluate` asked, and the errors to expect
  suggestion     of `suggest`, as `Suggestion`: the next runs, and what they leave of the interval
  forecasts      of `forecast`, a list of `Forecast`, with the tokens at which the alarm marked the run (`alarm_at`) and
                 what its ln loss was above its course there (`alarm_excess`), null where it did not

How it was shown: `plots`, paths by title; `command`, which makes the report again; `variants`, rows of other fits.
"""

from __future__ import annotations

import dataclasses
import math
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from chinchilla_jax.scaling.fits.approach1.envelope import EnvelopeFit
from chinchilla_jax.scaling.fits.approach2.isoflop import IsoflopFit
from chinchilla_jax.scaling.fits.approach3.likelihood import profile_likelihood, quantities
from chinchilla_jax.scaling.fits.approach3.parametric import ParametricFit
from chinchilla_jax.scaling.predict.analysis import APPROACHES, Analysis
from chinchilla_jax.scaling.predict.doubts import doubts
from chinchilla_jax.scaling.predict.estimates import LOSS_LAW, intervals_of
from chinchilla_jax.scaling.predict.noise import noise_parts
from chinchilla_jax.scaling.predict.predict import Prediction
from chinchilla_jax.scaling.read.runs import SECONDS, LoadedRuns, Run, stated_number

_VALUES = (
    "source convention loss_unit preset command target_budget extrapolation prediction question suggestion flops_range "
    "tokens_per_param_range on_record noise"
)
_LISTS = "reading runs bad_rows warnings verdicts answers tasks variants forecasts"
_MAPPINGS = "differences refused plots"
_CONSTANTS = "E A B alpha beta a b"
_PROFILED = ("E", "alpha", "beta", "a")
_SPARE = 4  # runs beyond the unknowns for a profile likelihood
_BEYOND = 10.0  # times the largest budget: a fit without a target states the bias of approach 2 there


def facts_of(
    loaded: LoadedRuns | None = None, fits: Analysis | None = None, prediction: Prediction | None = None, **more: Any
) -> dict[str, Any]:
    """The facts of what was read, fitted and predicted, with the prediction's own fits; `more` are other keys."""
    fits = prediction.fits if prediction else fits
    facts: dict[str, Any] = dict.fromkeys((*_VALUES.split(), *APPROACHES))
    facts |= {key: [] for key in _LISTS.split()} | {key: {} for key in _MAPPINGS.split()}
    if loaded is not None:
        facts |= _reading(loaded)
    if fits is not None:
        facts |= _fits(fits, prediction.budget if prediction else None)
    if fits is not None and loaded is not None and (fit := fits.isoflop or fits.parametric):
        scatter = fit.noise if isinstance(fit, IsoflopFit) else fit.scatter
        parts = noise_parts(loaded.runs, {} if loaded.loss_is_converted else loaded.details, scatter)
        facts["noise"] = dataclasses.asdict(parts) | {"words": parts.describe()}
    if prediction is not None:
        facts |= _fields(prediction, "extrapolation warnings")
        facts |= {"target_budget": prediction.budget, "prediction": _prediction(prediction)}
    return as_json(facts | more)


def _fields(source: Any, names: str) -> dict[str, Any]:
    return {name: getattr(source, name) for name in names.split()}


def _reading(loaded: LoadedRuns) -> dict[str, Any]:
    facts = _fields(loaded, "convention loss_unit") | {"source": pathlib.Path(loaded.source).name}
    facts |= {"reading": loaded.describe(), "bad_rows": loaded.bad}
    facts["runs"] = [_run(run, loaded.details.get(run.name, {})) for run in loaded.runs]
    if fitted := loaded.role("isoflop"):
        flops, ratios = [run.flops for run in fitted], [run.tokens / run.params for run in fitted]
        facts |= {"flops_range": (min(flops), max(flops)), "tokens_per_param_range": (min(ratios), max(ratios))}
    return facts


def _run(run: Run, details: Mapping[str, Any]) -> dict[str, Any]:
    row = {field.name: getattr(run, field.name) for field in dataclasses.fields(run) if field.name != "curve"}
    return row | {
        "tokens_per_param": run.tokens / run.params,
        "seconds": stated_number(details, SECONDS),
        "bits_per_byte": details.get("bits_per_byte"),
    }


def _fits(fits: Analysis, budget: float | None) -> dict[str, Any]:
    return _fields(fits, "preset differences refused") | {
        "warnings": doubts(fits),
        "envelope": _envelope(fits.envelope) if fits.envelope else None,
        "isoflop": _isoflop(fits.isoflop, fits, budget) if fits.isoflop else None,
        "parametric": _parametric(fits.parametric, fits) if fits.parametric else None,
    }


def _laws(fit: EnvelopeFit | IsoflopFit) -> dict[str, Any]:
    """N*(C) and D*(C) of approach 1 or 2."""
    laws = {}
    for name, form in (("params", "N* = k C^a"), ("tokens", "D* = k C^b")):
        law, boot = getattr(fit, f"{name}_law"), getattr(fit, f"boot_{name}")
        laws[name] = {"form": form} | _fields(law, "coefficient exponent")
        laws[name]["intervals"] = intervals_of(boot.exponent) if boot is not None else {}
    return laws


def _envelope(fit: EnvelopeFit) -> dict[str, Any]:
    facts = {"laws": _laws(fit), "curves": len(fit.runs), "values": len(fit.points.flops)}
    return facts | _fields(fit.points, "on_schedule edges") | _fields(fit, "dropped scatter kept_draws")


def _isoflop(fit: IsoflopFit, fits: Analysis, budget: float | None) -> dict[str, Any]:
    law, largest = fit.loss_law, fit.profiles[-1].budget
    loss = {
        "form": f"L* = {LOSS_LAW}",
        "irreducible": law.irreducible_mean,
        "irreducible_95": law.irreducible_interval(0.95),
        "exponent": -law.slope(largest) / law.at(largest),  # of the loss, d ln L* / d ln C at the largest budget
        "intervals": {},
    }
    profiles = [
        {"budget": p.budget, "runs": len(p.runs), "near": len(p.near), "params": p.params.best}
        | {"tokens": p.tokens.best, "loss": p.params.lowest, "curvature": p.params.curvature}
        | _fields(p, "scatter kept_draws")
        for p in fit.profiles
    ]
    bias = [
        f"bias of the {name} profile, approach 3 taken for true: {bias.describe()}"
        for name, bias in fits.isoflop_bias(budget or _BEYOND * largest).items()
    ]
    facts = {"laws": _laws(fit) | {"loss": loss}} | _fields(fit, "noise scatter")
    return facts | {"profiles": profiles, "refusals": fit.refusals, "bias": bias}


def _parametric(fit: ParametricFit, fits: Analysis) -> dict[str, Any]:
    asked = {name: quantities()[name] for name in _PROFILED} if _has_profile(fit) else {}
    shown = fit.known.determined
    profiles = {name: profile_likelihood(fits.runs, fit, q).interval for name, q in asked.items()}
    boot = _fields(fit.boot, _CONSTANTS) if fit.boot and shown else {}
    facts: dict[str, Any] = {"values": _fields(fit.surface, _CONSTANTS) if shown else dict.fromkeys(_CONSTANTS.split())}
    facts |= {
        "intervals": {name: intervals_of(values) for name, values in boot.items()},
        "profile_likelihood": profiles,
    }
    facts |= {"misfit": fit.misfit.name, "delta": fit.misfit.delta, "runs": fit.n_runs, "starts": fit.n_starts}
    return (
        facts
        | _fields(fit, "objective gradient converged agreement scatter known boot_kept")
        | {"flat": fit.flat if shown else ()}
    )


def _has_profile(fit: ParametricFit) -> bool:
    """Whether it means something: the optimiser reached the minimum, and there are constants, spare runs and noise."""
    return fit.known.determined and fit.preset != "paper" and fit.n_runs >= 5 + _SPARE and fit.scatter > 1e-6


def _prediction(prediction: Prediction) -> dict[str, Any]:
    facts = _fields(prediction, "recommended why tokens_at_budget")
    facts["estimates"] = {
        name: dataclasses.asdict(estimate) | {"tokens_at_budget": prediction.tokens_at(estimate.params)}
        for name, estimate in prediction.estimates.items()
    }
    return facts | {"rollouts": prediction.rollouts, "profile_likelihood": profiled_prediction(prediction)}


def profiled_prediction(prediction: Prediction) -> dict[str, tuple[float, float]]:
    """95% profile-likelihood intervals of N, D and loss at the target budget; {} where approach 3 has none."""
    fit, runs = prediction.fits.parametric, prediction.fits.runs
    if fit is None or not _has_profile(fit):
        return {}
    asked, intervals = quantities(prediction.budget, prediction.flops_per), {}
    for name, key, form in (("N", "ln N*", math.exp), ("D", "ln D*", math.exp), ("loss", "loss", float)):
        low, high = profile_likelihood(runs, fit, asked[key]).interval
        intervals[name] = form(low), form(high)
    return intervals


def as_json(value: Any) -> Any:
    """Dataclasses, tuples and numpy numbers as JSON; infinite values as text, since JSON has none; levels as `95%`."""
    if dataclasses.is_dataclass(value):
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        names = [f"{key:.0%}" if isinstance(key, float) else str(key) for key in value]
        return {name: as_json(item) for name, item in zip(names, value.values(), strict=True)}
    if isinstance(value, (list, tuple)):
        return [as_json(item) for item in value]
    if isinstance(value, (np.ndarray, np.generic)):
        return as_json(value.tolist())
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
