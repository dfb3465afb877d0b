"""Everything a report says, as values that JSON can hold."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any

import numpy as np

from chinchilla_jax.scaling.answers.decide import per_token
from chinchilla_jax.scaling.answers.recommended import other_sizes
from chinchilla_jax.scaling.fits.approach3.likelihood import profile_likelihood, quantities
from chinchilla_jax.scaling.fits.resample import interval
from chinchilla_jax.scaling.predict.estimates import LOSS_LAW
from chinchilla_jax.scaling.predict.predict import Prediction
from chinchilla_jax.scaling.predict.verdicts import judge
from chinchilla_jax.scaling.read.runs import LoadedRuns
from chinchilla_jax.scaling.report import summary

_SECONDS = ("seconds", "train_seconds", "wall_seconds", "elapsed_seconds", "wall_clock_seconds")
_PROFILED = ("E", "alpha", "beta", "a")


def report_facts(
    loaded: LoadedRuns, prediction: Prediction | None, target: float | None, refusal: str
) -> dict[str, Any]:
    """Everything the report says, as JSON-safe values."""
    fitted = loaded.role("isoflop")
    ratios = [run.tokens / run.params for run in fitted]
    facts: dict[str, Any] = {
        "source": pathlib.Path(loaded.source).name,
        "convention": loaded.convention,
        "loss_unit": loaded.loss_unit,
        "reading": loaded.describe(),
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
        "preset": prediction.analysis.preset if prediction else None,
        "differences": {},
        "approaches": [],
        "envelope": None,
        "isoflop": None,
        "parametric": None,
        "prediction": None,
        "answers": [],
    }
    if not prediction:
        return facts
    facts["differences"] = summary.as_json(prediction.analysis.differences)
    facts["approaches"] = _approaches(prediction)
    if prediction.envelope:
        facts["envelope"] = _envelope(prediction)
    if prediction.isoflop:
        facts["isoflop"] = _isoflop(prediction)
        facts["isoflop"]["bias"] = list(summary.bias_lines(prediction.analysis, prediction.budget))
    if prediction.parametric:
        facts["parametric"] = _parametric(prediction, loaded)
        facts["parametric"]["profiled_prediction"] = summary.as_json(summary.profiled_prediction(prediction, loaded))
    facts["answers"] = summary.as_json(other_sizes(prediction))
    facts["prediction"] = {
        "recommended": prediction.recommended,
        "why": prediction.why,
        "tokens_at_budget": prediction.tokens_at_budget,
        "estimates": {name: _estimate(e, prediction) for name, e in prediction.estimates.items()},
        "rollouts": [dataclasses.asdict(r) | {"score": r.score} for r in prediction.rollouts],
    }
    return facts


def _run_row(run, loaded: LoadedRuns) -> dict[str, Any]:
    details = loaded.details.get(run.name, {})
    seconds = next((details[key] for key in _SECONDS if isinstance(details.get(key), (int, float))), None)
    row = {field.name: getattr(run, field.name) for field in dataclasses.fields(run) if field.name != "curve"}
    return row | {
        "tokens_per_param": run.tokens / run.params,
        "seconds": seconds,
        "bits_per_byte": details.get("bits_per_byte"),
    }


def _spread(samples: np.ndarray) -> dict[str, list[float]]:
    return {"80%": list(interval(samples, 0.8)), "95%": list(interval(samples, 0.95))}


def _estimate(estimate, prediction: Prediction) -> dict[str, Any]:
    row = dataclasses.asdict(estimate)
    row["tokens_at_budget"] = float(prediction.budget / per_token(estimate.params, prediction.flops_per))
    row["intervals"] = {
        name: {f"{level:.0%}": list(pair) for level, pair in levels.items()}
        for name, levels in estimate.intervals.items()
    }
    return row


def _approaches(prediction: Prediction) -> list[dict[str, Any]]:
    """Side by side: exponents of N* and D*, and the answer at the target budget, each with its 95% interval."""
    rows = []
    for name, estimate in prediction.estimates.items():
        fit = getattr(prediction, name)
        if name == "parametric":
            a, b = fit.surface.a, fit.surface.b
            boots = (fit.boot.a, fit.boot.b) if fit.boot is not None else (None, None)
        else:
            a, b = fit.params_law.exponent, fit.tokens_law.exponent
            laws = fit.boot_params, fit.boot_tokens
            boots = tuple(law.exponent if law is not None else None for law in laws)
        spans = [None if boot is None else list(interval(boot, 0.95)) for boot in boots]
        rows.append({
            "approach": name, "a": float(a), "a_95": spans[0], "b": float(b), "b_95": spans[1],
            "params": estimate.params, "tokens": estimate.tokens, "tokens_per_param": estimate.tokens_per_param,
            "loss": estimate.loss, "loss_law": estimate.loss_law,
        } | {f"{key}_95": list(levels[0.95]) for key, levels in estimate.intervals.items()})  # fmt: skip
    return rows


def _envelope(prediction: Prediction) -> dict[str, Any]:
    fit = prediction.envelope
    return {
        "values": len(fit.points.flops), "on_schedule": fit.points.on_schedule, "edges": fit.points.edges,
        "dropped": fit.dropped, "scatter": fit.scatter, "kept_draws": fit.kept_draws, "curves": len(fit.runs),
    }  # fmt: skip


def _isoflop(prediction: Prediction) -> dict[str, Any]:
    fit = prediction.isoflop
    laws = {}
    for name, symbol in (("params", "N* = k C^a"), ("tokens", "D* = k C^b")):
        law, boot = getattr(fit, f"{name}_law"), getattr(fit, f"boot_{name}")
        laws[name] = {
            "form": symbol,
            "coefficient": float(law.coefficient),
            "exponent": float(law.exponent),
            "intervals": _spread(boot.exponent) if boot else {},
        }
    law, largest = fit.loss_law, fit.profiles[-1].budget
    laws["loss"] = {
        "form": f"L* = {LOSS_LAW}",
        "irreducible": law.irreducible_mean,
        "irreducible_95": list(law.irreducible_interval(0.95)),
        "exponent": -law.slope(largest) / law.at(largest),  # of the loss, d ln L* / d ln C at the largest budget
        "intervals": {},
    }
    return {
        "laws": laws,
        "noise": fit.noise,
        "scatter": fit.scatter,
        "profiles": [
            {
                "budget": p.budget,
                "runs": len(p.runs),
                "near": len(p.near),
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


def _parametric(prediction: Prediction, loaded: LoadedRuns) -> dict[str, Any]:
    fit = prediction.parametric
    names = ("E", "A", "B", "alpha", "beta", "a", "b")
    profiles = {}
    if summary.has_profile(fit):
        profiles = {name: profile_likelihood(loaded.role("isoflop"), fit, name, quantities()[name]).interval
                    for name in _PROFILED}  # fmt: skip
    return {
        "profile_likelihood": summary.as_json(profiles),
        "flat": summary.flat_text(fit.flat),
        "misfit": fit.misfit.name,
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
