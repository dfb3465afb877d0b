"""What did a study find? `report.json` for machines, `report.html` (one file, no links out) for people.

Both are written from the same facts; the page adds nothing that the JSON does not hold.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
from typing import Any

import numpy as np

from chinchilla_jax.config import StudyConfig
from chinchilla_jax.scaling import plots
from chinchilla_jax.scaling.flops import flops_per_token
from chinchilla_jax.scaling.page import render
from chinchilla_jax.scaling.predict import Prediction, predict
from chinchilla_jax.scaling.resample import Resampling, interval
from chinchilla_jax.scaling.runs import FitRefused, LoadedRuns, load_runs
from chinchilla_jax.scaling.verdicts import judge

_SECONDS = ("seconds", "train_seconds", "wall_seconds", "elapsed_seconds", "wall_clock_seconds")


def write_report(
    study: str | pathlib.Path | LoadedRuns,
    *,
    budget: float | None = None,
    output: str | pathlib.Path | None = None,
    bootstrap: int = 1000,
    seed: int = 0,
) -> pathlib.Path:
    """Fit, predict, draw and write; returns the path of `report.html`.

    Files appear in `output`: `report.html`, `report.json`, `plots/*.png`. A study that is not finished gives a report
    on what there is, with the open questions marked pending.

    Args:
      study: a study directory, or a table of runs (see `load_runs`).
      budget: FLOPs to predict for; by default that of the held-out runs, else `StudyConfig.holdout_factor` times the
        largest budget.
      output: directory to write into; the study directory, or that of the table, by default.

    Raises:
      FitRefused: the path holds no runs at all. Fits that are refused are reported on the page.
    """
    loaded = load_runs(study)
    study = pathlib.Path(study)
    folder = pathlib.Path(output) if output else (study if study.is_dir() else study.parent)
    target = budget or _target_budget(loaded)
    prediction, refusal = None, ""
    try:
        if target is None:
            raise FitRefused("no_runs", "no IsoFLOP run is finished yet: there is nothing to fit")
        prediction = predict(loaded.runs, target, resampling=Resampling(bootstrap) if bootstrap else None, seed=seed)
    except FitRefused as error:
        refusal = str(error)
    facts = report_facts(loaded, prediction, target, refusal)
    facts["command"] = _command(study, budget, output, bootstrap, seed)
    images = _draw(prediction, loaded, folder / "plots") if prediction else {}
    facts["plots"] = {title: str(path.relative_to(folder)) for title, path in images.items()}
    _write(folder / "report.json", json.dumps(facts, indent=1, allow_nan=False) + "\n")
    return _write(folder / "report.html", render(facts, {title: path.read_bytes() for title, path in images.items()}))


def report_facts(
    loaded: LoadedRuns, prediction: Prediction | None, target: float | None, refusal: str
) -> dict[str, Any]:
    """Everything the report says, as JSON-safe values."""
    fitted = loaded.role("isoflop")
    ratios = [run.tokens / run.params for run in fitted]
    facts: dict[str, Any] = {
        "source": pathlib.Path(loaded.source).name,
        "convention": loaded.convention,
        "columns": dict(loaded.columns),
        "target_budget": target,
        "extrapolation": prediction.extrapolation if prediction else None,
        "tokens_per_param_range": [min(ratios), max(ratios)] if ratios else None,
        "flops_range": [min(r.flops for r in fitted), max(r.flops for r in fitted)] if fitted else None,
        "verdicts": [
            dataclasses.asdict(v) for v in judge(prediction, loaded.runs, target, refusal, _unfinished(loaded))
        ],
        "runs": [_run_row(run, loaded) for run in loaded.runs],
        "bad_rows": [dataclasses.asdict(row) for row in loaded.bad],
        "refused": dict(prediction.refused) if prediction else {"prediction": refusal},
        "warnings": list(prediction.warnings) if prediction else [],
        "isoflop": None,
        "parametric": None,
        "prediction": None,
    }
    if not prediction:
        return facts
    if prediction.isoflop:
        facts["isoflop"] = _isoflop(prediction)
    if prediction.parametric:
        facts["parametric"] = _parametric(prediction)
    facts["prediction"] = {
        "recommended": prediction.recommended,
        "why": prediction.why,
        "tokens_at_budget": prediction.tokens_at_budget,
        "estimates": {name: _estimate(e) for name, e in prediction.estimates.items()},
        "rollouts": [dataclasses.asdict(r) | {"score": r.score} for r in prediction.rollouts],
    }
    return facts


def _run_row(run, loaded: LoadedRuns) -> dict[str, Any]:
    details = loaded.details.get(run.name, {})
    seconds = next((details[key] for key in _SECONDS if isinstance(details.get(key), (int, float))), None)
    return dataclasses.asdict(run) | {
        "tokens_per_param": run.tokens / run.params,
        "seconds": seconds,
        "bits_per_byte": details.get("bits_per_byte"),
    }


def _spread(samples: np.ndarray) -> dict[str, list[float]]:
    return {"80%": list(interval(samples, 0.8)), "95%": list(interval(samples, 0.95))}


def _estimate(estimate) -> dict[str, Any]:
    row = dataclasses.asdict(estimate)
    row["intervals"] = {
        name: {f"{level:.0%}": list(pair) for level, pair in levels.items()}
        for name, levels in estimate.intervals.items()
    }
    return row


def _isoflop(prediction: Prediction) -> dict[str, Any]:
    fit = prediction.isoflop
    laws = {}
    for name, symbol in (("params", "N* = k C^a"), ("tokens", "D* = k C^b"), ("loss_power", "L* = k C^-g")):
        law = fit.loss_power if name == "loss_power" else getattr(fit, f"{name}_law")
        boot = getattr(fit, f"boot_{name}")
        laws[name] = {
            "form": symbol,
            "coefficient": float(law.coefficient),
            "exponent": float(law.exponent),
            "intervals": _spread(boot.exponent) if boot else {},
        }
    if fit.loss_offset:
        law = fit.loss_offset
        laws["loss_offset"] = {
            "form": "L* = E + k C^-g",
            "irreducible": float(law.irreducible),
            "exponent": -float(law.exponent),
            "coefficient": float(law.value * np.exp(law.exponent * law.log_centre)),
            "intervals": _spread(-fit.boot_loss_offset.exponent) if fit.boot_loss_offset else {},
        }
    return {
        "laws": laws,
        "scatter": fit.scatter,
        "profiles": [
            {
                "budget": p.budget,
                "runs": len(p.runs),
                "params": p.params.best,
                "tokens": p.tokens.best,
                "loss": p.params.lowest,
                "curvature": p.params.curvature,
                "scatter": p.scatter,
                "kept_draws": p.kept_draws,
            }
            for p in fit.profiles
        ],
        "refusals": [dataclasses.asdict(r) for r in fit.refusals],
    }


def _parametric(prediction: Prediction) -> dict[str, Any]:
    fit = prediction.parametric
    names = ("E", "A", "B", "alpha", "beta", "a", "b")
    return {
        "values": {name: float(getattr(fit.surface, name)) for name in names},
        "intervals": {name: _spread(getattr(fit.boot, name)) for name in names} if fit.boot else {},
        "delta": fit.misfit.delta,
        "runs": fit.n_runs,
        "starts": fit.n_starts,
        "objective": fit.objective,
        "gradient": fit.gradient,
        "converged": fit.converged,
        "agreement": fit.agreement,
        "scatter": fit.scatter,
        "boot_kept": fit.boot_kept,
    }


def _unfinished(loaded: LoadedRuns) -> int:
    waiting = {row.where for row in loaded.bad if row.reason.startswith("not finished")}
    return sum(row.get("role", "isoflop") == "isoflop" for name, row in loaded.planned.items() if name in waiting)


def _target_budget(loaded: LoadedRuns) -> float | None:
    held = [run.budget for run in loaded.runs if run.role != "isoflop" and run.budget]
    held += [
        row["budget"]
        for row in loaded.planned.values()
        if row.get("role", "isoflop") != "isoflop" and isinstance(row.get("budget"), (int, float))
    ]
    fitted = [run.budget or run.flops for run in loaded.role("isoflop")]
    if held:
        return float(max(held))
    # A half-finished study is asked about the budget its config holds out, not a multiple of what is there.
    study = ((loaded.header.get("config") or {}).get("study")) or {}
    factor = study.get("holdout_factor", StudyConfig().holdout_factor)
    planned = [*study.get("budgets", ()), *(row["budget"] for row in loaded.planned.values() if row.get("budget"))]
    return float(factor * max(planned or fitted)) if planned or fitted else None


def _draw(prediction: Prediction, loaded: LoadedRuns, folder: pathlib.Path) -> dict[str, pathlib.Path]:
    runs = loaded.runs
    images = {}
    if any(run.role == "isoflop" and run.budget for run in runs):
        images["IsoFLOP profiles"] = plots.plot_profiles(prediction, runs, folder / "profiles.png")
    images["Frontier"] = plots.plot_frontier(prediction, runs, folder / "frontier.png")
    images["Loss frontier"] = plots.plot_loss_frontier(prediction, runs, folder / "loss_frontier.png")
    images["Held-out budget"] = plots.plot_heldout(
        prediction, runs, flops_per_token(loaded.role("isoflop")), folder / "heldout.png"
    )
    return images


def _command(study: pathlib.Path, budget: float | None, output: Any, bootstrap: int, seed: int) -> str:
    """The call that makes this report again, with the study named as the reader would from its parent folder."""
    options = "".join(
        f", {k}={v!r}"
        for k, v, default in (("budget", budget, None), ("bootstrap", bootstrap, 1000), ("seed", seed, 0))
        if v != default
    )
    if output:
        options += f", output={pathlib.Path(output).name!r}"
    name = study.resolve().name
    return f'python -c "from chinchilla_jax.scaling.report import write_report; write_report({name!r}{options})"'


def _write(path: pathlib.Path, text: str) -> pathlib.Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)
    return path
